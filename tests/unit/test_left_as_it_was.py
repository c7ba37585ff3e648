"""Models that remember or draw something when they run: public calls leave no trace of it."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunella

BATCHES = list(torch.randn(24, 6, generator=torch.Generator().manual_seed(1)).split(8))


class Plain(nn.Module):
    """What the others add something to."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Linear(6, 16), nn.BatchNorm1d(16)
        self.two, self.three = nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.three(F.relu(self.two(F.relu(self.norm(self.one(self.noted(x)))))))

    def noted(self, x: Tensor) -> Tensor:
        return x


class Counting(Plain):
    """Counts its calls, and keeps a running mean, in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(6))

    def noted(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.mean.mul_(0.9).add_(0.1 * x.mean(0))
        return x


class Replacing(Plain):
    """Puts a new tensor into a buffer, of other sizes too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(1, 6))

    def noted(self, x: Tensor) -> Tensor:
        self.last = x.detach().clone()
        return x


class Drawing(Plain):
    """Draws random numbers, in evaluation mode too."""

    def noted(self, x: Tensor) -> Tensor:
        return x + 1e-4 * torch.randn_like(x)


class Loss:
    """What `analyze` is given: a mean over the batches."""

    def __call__(self, model: nn.Module) -> float:
        with torch.no_grad():
            return float(torch.stack([model(batch).square().mean() for batch in BATCHES]).mean())


def trace(model: nn.Module) -> Any:
    return prunella.trace(model, BATCHES[0])


def groups(model: nn.Module) -> prunella.Groups:
    return prunella.couple(trace(model))


def plan(model: nn.Module) -> prunella.Plan:
    return prunella.allocate(groups(model), prunella.score(model, groups(model)), 0.5)


def calibration() -> prunella.Calibration:
    return prunella.Calibration([((batch,), {}) for batch in BATCHES])


def alone(call: Callable[[nn.Module], Any]) -> Callable[[nn.Module, Path], Any]:
    return lambda model, path: call(model)


def certify(model: nn.Module) -> Any:
    made = plan(model)
    return prunella.certify(model, prunella.transform(model, made), made, (BATCHES[0],))


def analyze(model: nn.Module) -> Any:
    found = groups(model)
    scores = prunella.score(model, found)
    return prunella.analyze(
        model, found, scores, Loss(), metric="loss", higher_is_better=False, recalibrate=None
    )


def estimate(model: nn.Module, **options: Any) -> Any:
    found = groups(model)
    return prunella.estimate(model, found, prunella.score(model, found), calibration(), **options)


def reconstruct(model: nn.Module) -> Any:
    found = groups(model)
    made = prunella.reconstruct(model, found, prunella.score(model, found), calibration())
    return prunella.value(model, found, made, calibration())


CALLS: dict[str, Callable[[nn.Module, Path], Any]] = {
    "trace": alone(trace),
    "score": alone(lambda m: prunella.score(m, groups(m))),
    "fisher": alone(lambda m: prunella.score(m, groups(m), "fisher", BATCHES)),
    "wanda": alone(lambda m: prunella.score(m, groups(m), "wanda", BATCHES)),
    "mask": alone(lambda m: prunella.mask(m, plan(m))),
    "transform": alone(lambda m: prunella.transform(m, plan(m))),
    "unproven": alone(lambda m: prunella.transform(m, plan(m), certify=False)),
    "certify": alone(certify),
    "compensate": alone(lambda m: prunella.compensate(m, plan(m), calibration())),
    "reconstruct": alone(reconstruct),
    "analyze": alone(analyze),
    "estimate": alone(estimate),
    "estimate a metric": alone(lambda m: estimate(m, evaluate=Loss(), metric="a")),
    "prune": alone(lambda m: prunella.prune(m, BATCHES[0], macs=0.5)),
    "prune by data": alone(lambda m: prunella.prune(m, BATCHES[0], macs=0.5, calibration=BATCHES)),
    "prune by search": alone(
        lambda m: prunella.prune(m, BATCHES[0], macs=0.5, calibration=BATCHES, candidates=3)
    ),
    "prune the graph": alone(lambda m: prunella.prune(m, BATCHES[0], macs=0.5, form="graph")),
    "count_macs": alone(lambda m: prunella.count_macs(m, BATCHES[0])),
    "count_activation_bytes": alone(lambda m: prunella.count_activation_bytes(m, BATCHES[0])),
    "export": lambda model, path: prunella.export(model, BATCHES[0], path / "m.onnx"),
}


def fingerprint(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {id(tensor)}".encode())
        digest.update(tensor.detach().numpy().tobytes())
    digest.update(str([module.training for module in model.modules()]).encode())
    return digest.hexdigest()


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("kind", [Plain, Counting, Replacing, Drawing])
def test_the_model_and_the_random_numbers_are_as_they_were(
    kind: type[nn.Module], name: str, tmp_path: Path
) -> None:
    if (kind, name) in {(Counting, "export"), (Replacing, "export"), (Drawing, "export")}:
        pytest.skip("a file cannot remember, nor give what is drawn")
    model = kind()
    model.two.train(mode=False)
    before, numbers = fingerprint(model), torch.get_rng_state()
    CALLS[name](model, tmp_path)
    assert fingerprint(model) == before
    assert torch.equal(torch.get_rng_state(), numbers)


@pytest.mark.parametrize("kind", [Counting, Replacing])
def test_what_comes_back_has_remembered_nothing(kind: type[nn.Module]) -> None:
    model = kind()
    result = prunella.prune(model, BATCHES[0], macs=0.5, calibration=BATCHES)
    kept = {"calls", "mean", "last"}
    found = {n: b for n, b in result.model.named_buffers() if n in kept}
    assert found
    assert all(torch.equal(b, dict(model.named_buffers())[n]) for n, b in found.items())
