"""Fake quantisation: what imitates int8 in training is pruned before it is prepared for that."""

from prunella.graph import Node, refs
from prunella.labels import Labels, Layers
from prunella.rules._registry import rule


@rule(
    "aten.fused_moving_avg_obs_fake_quant.default",
    "aten._fused_moving_avg_obs_fq_helper.default",
    "aten.fake_quantize_per_channel_affine.default",
    "aten.fake_quantize_per_tensor_affine.tensor_qparams",
    "aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams.default",
    "aten._fake_quantize_learnable_per_tensor_affine.default",
    "aten._fake_quantize_learnable_per_channel_affine.default",
)
def fake_quantize(labels: Labels, node: Node) -> list[Layers]:
    """Freeze what is rounded to a grid: in the float32 that this asks for, nothing is proven.

    A last digit decides to which of two neighbours a number goes, and they are 1/255 apart.
    """
    for ref in refs((node.args, node.kwargs)):
        for layer in labels.of(ref):
            labels.freeze(layer, "is fake-quantised: prune the model before preparing it", node)
    return [() for _ in node.outputs]
