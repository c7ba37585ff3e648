"""Models that remember or draw something when they run: public calls leave no trace of it."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import prunella
from prunella.model.modes import evaluating

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


class Growing(nn.Module):
    """Makes a table as long as what comes in, and remembers how long it is."""

    def __init__(self) -> None:
        super().__init__()
        self.length = 2
        self.register_buffer("table", torch.ones(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.length:
            self.length = len(x)
            self.register_buffer("table", torch.ones(len(x)), persistent=False)
        return x * self.table[: len(x)]


class Late(nn.Module):
    """Makes what it needs when it runs for the first time."""

    ready = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            self.register_buffer("made", torch.ones(len(x)))
            self.ready = True
        return x * self.made


class Begun(nn.Module):
    """Fills what is there when it runs for the first time."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = False
        self.register_buffer("filled", torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        if not self.begun:
            self.filled.fill_(1.0)
            self.begun = True
        return x * self.filled


@pytest.mark.parametrize("kind", [Growing, Late, Begun])
def test_what_goes_with_a_buffer_goes_back_with_it(kind: type[nn.Module]) -> None:
    model, x = kind(), torch.arange(5.0)
    for _ in range(2):
        with evaluating(model):
            assert torch.equal(model(x), x)
    assert {n: b.tolist() for n, b in model.named_buffers()} == {
        n: b.tolist() for n, b in kind().named_buffers()
    }
    assert torch.equal(model(x), x)


def test_a_buffer_that_two_modules_share() -> None:
    model = nn.ModuleList([Begun(), Begun()])
    model[1].filled = model[0].filled
    x = torch.arange(5.0)
    with evaluating(model):
        model[1](model[0](x))
    assert [module.begun for module in model] == [False, False]
    assert torch.equal(model[1](model[0](x)), x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_modules() -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("last", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.last = x
            return x + 1

    model = nn.Sequential(nn.Linear(3, 3), torch.jit.script(Counted()))
    with evaluating(model):
        model(torch.ones(2, 3))
    assert float(model[1].calls) == 0
    assert model[1].last.tolist() == [0]


def test_lazy_modules_are_made_by_the_first_run() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d())
    with evaluating(model):
        wanted = model(torch.ones(2, 3))
    assert torch.equal(model.eval()(torch.ones(2, 3)), wanted)


RARE: dict[str, Callable[[], Tensor]] = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "expanded": lambda: torch.ones(1).expand(4),
    "nan": lambda: torch.full((2,), torch.nan),
}


@pytest.mark.parametrize("kind", RARE)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_rare_kinds_of_buffers(kind: str) -> None:
    model, buffer = nn.Linear(3, 3), RARE[kind]()
    model.register_buffer("rare", buffer)
    with evaluating(model):
        model(torch.ones(2, 3))
    assert model.rare is buffer


def test_a_model_without_numbers() -> None:
    with FakeTensorMode():
        model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        with evaluating(model):
            assert model(torch.ones(2, 3)).shape == (2, 3)
