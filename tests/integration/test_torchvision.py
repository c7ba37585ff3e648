"""A dozen of torchvision's networks, one of each kind, on small images; the rest is benchmarked."""

import random

import pytest
import torch

import prunella
from benchmarks.zoo import build, names
from tests import oracle

# Network: side of the images.
NETWORKS = {
    "densenet121": 64,
    "efficientnet_b0": 64,
    "googlenet": 64,
    "inception_v3": 96,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "regnet_x_400mf": 64,
    "regnet_y_400mf": 64,
    "resnet18": 64,
    "resnext50_32x4d": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
}


TRAINING_OUTPUTS = {"googlenet": 3}
"""Networks with auxiliary heads, and how many outputs they have in training mode."""

UNSEEN = {"inception_v3": {"AuxLogits.conv0.conv.weight", "AuxLogits.conv1.conv.weight"}}
"""Convolutions that cannot run on images this small, in either mode: a warning names them."""


def test_the_networks_are_of_the_benchmarks_collection() -> None:
    assert set(NETWORKS) <= set(names())
    assert len(names()) == len(set(names())) >= 60


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_pruned_equals_masked_and_costs_are_as_predicted(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, image = build(name, NETWORKS[name])
    before = oracle.state(model)
    groups = prunella.couple(prunella.trace(model, image))
    scores = prunella.score(model, groups)
    draw = random.Random(name)
    uneven = {group.name: draw.uniform(0.1, 0.9) for group in groups}
    plan = prunella.allocate(groups, scores, 0.5 if len(name) % 2 else uneven)
    pruned = prunella.transform(model, plan, image)
    assert oracle.unchanged(model, before)

    model, pruned, image = model.double(), pruned.double(), image.double()
    other = torch.randn(image.shape, generator=torch.Generator().manual_seed(7)).double()
    oracle.check_pruned(model, plan, pruned, (other,), {})
    outputs = [oracle.outputs(pruned, (x,), {}) for x in (image, other)]
    assert oracle.difference(*outputs) > 1e-3, "equality proves nothing: the input does not matter"
    assert plan.after.macs == prunella.count_macs(pruned, image)
    assert plan.after.params == prunella.count_params(pruned)
    assert plan.before.macs == prunella.count_macs(model, image)
    assert plan.after.macs < 0.75 * plan.before.macs

    frozen = {axis.tensor for group in groups.frozen for axis in group.axes}
    cut = {axis.tensor for group in groups for axis in group.axes}
    convolutions = [
        f"{path}.weight"
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Conv2d)
    ]
    unseen = UNSEEN.get(name, set())
    assert set(convolutions) - unseen <= cut, sorted(set(convolutions) & frozen - cut)
    warned = [record.getMessage() for record in caplog.records if record.name == "prunella"]
    assert all(any(path.removesuffix(".weight") in said for said in warned) for path in unseen)
    if name in TRAINING_OUTPUTS:
        outputs = oracle.leaves(pruned.train()(torch.cat([image, other])))
        assert [out.shape[0] for out in outputs] == [2] * TRAINING_OUTPUTS[name]
