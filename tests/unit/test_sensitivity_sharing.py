"""What evaluations share: the numbers are those of the plain loop, bit for bit."""

import copy
import itertools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunella
from prunella.masking import zeroed
from prunella.model.outputs import tensors_in
from prunella.model.structure import tensors
from prunella.replaying import Course
from prunella.sensitivity import Sensitivity, analyze, route
from tests import oracle
from tests.models import ZOO, Case

PLENTY = 1 << 30
RATIOS = (0.25, 0.5, 0.75)
Evaluate = Callable[[nn.Module], float]


def loops(
    model: nn.Module,
    example: tuple[Any, ...],
    evaluate: Evaluate,
    kwargs: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[Sensitivity, Sensitivity]:
    """Run the shared and the plain loop."""
    groups = prunella.couple(prunella.trace(model, example, kwargs))
    scores = prunella.score(model, groups)
    settings = {"metric": "m", "higher_is_better": True, "ratios": RATIOS, **options}
    before = oracle.state(model)
    shared = analyze(model, groups, scores, evaluate, **{"memory": PLENTY, **settings})
    assert oracle.unchanged(model, before)
    return shared, analyze(model, groups, scores, evaluate, **{**settings, "memory": 0})


@contextmanager
def counted(model: nn.Module) -> Iterator[list[int]]:
    """Count how often the model's own forward runs, captures left out."""
    calls: list[int] = []
    plain = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_exporting():
            calls.append(1)
        return plain(*args, **kwargs)

    model.forward = forward
    try:
        yield calls
    finally:
        del model.forward


def batches(case: Case, count: int = 3) -> list[tuple[tuple[Tensor, ...], dict[str, Tensor]]]:
    return [(case.inputs(seed=i), case.keywords(seed=i)) for i in range(1, count + 1)]


def mean_square(given: list[Any]) -> Evaluate:
    @torch.no_grad()
    def evaluate(model: nn.Module) -> float:
        found = [t for args, kwargs in given for t in tensors_in(model(*args, **kwargs))]
        return sum(float(t.double().square().mean()) for t in found)

    return evaluate


@pytest.mark.parametrize("name", ZOO)
def test_every_network_of_the_zoo(name: str) -> None:
    case = ZOO[name]
    model = case.model(dtype=torch.float32)
    example, kwargs = case.inputs(dtype=torch.float32), case.keywords(dtype=torch.float32)
    given = [
        (case.inputs(seed=i, dtype=torch.float32), case.keywords(seed=i, dtype=torch.float32))
        for i in (1, 2)
    ]
    groups = prunella.couple(prunella.trace(model, example, kwargs))
    if not len(groups):
        pytest.skip("nothing to prune")
    shared, plain = loops(model, example, mean_square(given), kwargs)
    assert shared == plain


class Net(nn.Module):
    """Convolutions with a residual, in-place operators, and an output that is an early value."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.first = nn.Conv2d(8, 12, 3, padding=1)
        self.second = nn.Conv2d(12, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map `[batch, 3, 8, 8]` to logits and what the stem made."""
        early = self.stem(images)
        hidden = F.relu(self.first(early))
        part = hidden[..., :4]
        part.mul_(2)
        hidden = self.second(F.relu_(hidden)).add_(early)
        hidden = F.relu(self.third(F.relu_(hidden)), inplace=True)
        return {"logits": self.head(hidden.mean((2, 3))), "early": early.sum(1)}


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


EXAMPLE = (torch.zeros(1, 3, 8, 8),)


def images(*sizes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, 3, 8, 8, generator=generator) for n in sizes]


def accuracy_like(given: list[Tensor]) -> Evaluate:
    @torch.no_grad()
    def evaluate(model: nn.Module) -> float:
        return sum(float(model(x)["logits"].softmax(1)[:, 1].sum()) for x in given)

    return evaluate


def test_the_model_itself_runs_only_for_the_record() -> None:
    model, given = net(), images(4, 4, 3)
    with counted(model) as calls:
        shared, plain = loops(model, EXAMPLE, accuracy_like(given))
    cells = 1 + len(plain.curves) * len(RATIOS)
    assert shared == plain
    assert len(calls) == 3 * (1 + cells)


def test_what_is_shared_grows_in_the_order_of_the_network() -> None:
    model = net()
    groups = prunella.couple(prunella.trace(model, EXAMPLE))
    told: list[str] = []

    @torch.no_grad()
    def evaluate(given: nn.Module) -> float:
        told.extend(n for n, t in tensors(given).items() if t.ndim == 4 and not t[0].any())
        return float(given(EXAMPLE[0])["logits"].sum())

    analyze(
        model,
        groups,
        prunella.Scores("own", {g.name: list(range(g.channels)) for g in groups}),
        evaluate,
        metric="m",
        higher_is_better=True,
        memory=PLENTY,
    )
    expected = ["stem.0.weight", "second.weight", "first.weight", "third.weight"]
    assert list(dict.fromkeys(told)) == expected


def test_early_values_may_be_written_to_by_who_gets_them() -> None:
    given = images(4, 4)

    @torch.no_grad()
    def evaluate(model: nn.Module) -> float:
        total = 0.0
        for x in given:
            out = model(x)
            total += float(out["logits"].sum()) + float(out["early"].sum())
            out["early"].zero_()
        return total

    model = net()
    with counted(model) as calls:
        shared, plain = loops(model, EXAMPLE, evaluate)
    assert shared == plain
    assert len(calls) == 2 * (2 + len(plain.curves) * len(RATIOS))


@pytest.mark.parametrize("room", [3_000, 20_000, 60_000])
def test_too_little_memory_shares_a_part(room: int, caplog: pytest.LogCaptureFixture) -> None:
    model, given = net(), images(4, 4, 4, 4)
    with counted(model) as calls, caplog.at_level(logging.INFO, "prunella"):
        shared, plain = loops(model, EXAMPLE, accuracy_like(given), memory=room)
    assert shared == plain
    cells = 1 + len(plain.curves) * len(RATIOS)
    assert 4 + 4 * cells < len(calls) <= 8 * cells
    assert "do not fit" in caplog.text or "fit 3,000 bytes" in caplog.text


@pytest.mark.parametrize("memory", [0, PLENTY])
def test_autocast_around_it_all_casts_the_weights_as_they_are(memory: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4)).eval()
    example = torch.randn(8, 6)
    evaluate = mean_square([((example,), {})])

    def inside(given: nn.Module) -> float:
        with torch.autocast("cpu", torch.bfloat16):
            return evaluate(given)

    groups = prunella.couple(prunella.trace(model, (example,)))
    given = (model, groups, prunella.score(model, groups))
    settings = {"metric": "m", "higher_is_better": True, "ratios": RATIOS, "memory": memory}
    wanted = analyze(*given, inside, **settings)
    with torch.autocast("cpu", torch.bfloat16):
        assert analyze(*given, evaluate, **settings) == wanted
        assert evaluate(model) == wanted.baseline


def test_autocast_of_the_function_is_that_of_the_graph() -> None:
    given = images(4, 4)

    @torch.no_grad()
    def evaluate(model: nn.Module) -> float:
        with torch.autocast("cpu", torch.bfloat16):
            return sum(float(model(x)["logits"].float().softmax(1)[:, 1].sum()) for x in given)

    model = net()
    with counted(model) as calls:
        shared, plain = loops(model, EXAMPLE, evaluate)
    assert shared == plain
    assert len(calls) == 2 * (2 + len(plain.curves) * len(RATIOS))


def test_inference_mode() -> None:
    given = images(4, 4)

    @torch.inference_mode()
    def evaluate(model: nn.Module) -> float:
        return sum(float(model(x)["logits"].softmax(1)[:, 1].sum()) for x in given)

    model = net()
    with counted(model) as calls:
        shared, plain = loops(model, EXAMPLE, evaluate)
    assert shared == plain
    assert len(calls) == 2 * (2 + len(plain.curves) * len(RATIOS))


def shuffled() -> Evaluate:
    given = images(*[4] * 4)
    order = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def evaluate(model: nn.Module) -> float:
        picked = [given[i] for i in torch.randperm(4, generator=order)]
        return sum(float(model(x)["logits"].sum()) for x in picked)

    return evaluate


def hooked() -> Evaluate:
    @torch.no_grad()
    def evaluate(model: nn.Module) -> float:
        seen: list[Tensor] = []
        hook = model.get_submodule("third").register_forward_hook(lambda m, i, o: seen.append(o))
        for x in images(4, 4):
            model(x)
        hook.remove()
        return sum(float(o.sum()) for o in seen)

    return evaluate


def with_gradients() -> Evaluate:
    def evaluate(model: nn.Module) -> float:
        loss = model(images(4)[0])["logits"].square().sum()
        found = torch.autograd.grad(loss, model.get_parameter("third.weight"))
        return float(found[0].norm())

    return evaluate


def averaged() -> Evaluate:
    """Evaluate with other weights, as who keeps an average of them does."""

    @torch.no_grad()
    def evaluate(model: nn.Module) -> float:
        weight = model.get_parameter("stem.0.weight")
        saved = weight.clone()
        weight.mul_(0.5)
        value = float(model(images(4)[0])["logits"].sum())
        weight.copy_(saved)
        return value

    return evaluate


def in_training() -> Evaluate:
    @torch.no_grad()
    def evaluate(model: nn.Module) -> float:
        twin = copy.deepcopy(model).train()
        twin(images(4)[0])
        return float(twin.eval()(images(4)[0])["logits"].sum())

    return evaluate


def parts() -> Evaluate:
    @torch.no_grad()
    def evaluate(model: nn.Module) -> float:
        early = model.get_submodule("stem")(images(4)[0])
        whole = model(images(4)[0])["logits"]
        return float(model.get_submodule("first")(early).sum() + whole.sum())

    return evaluate


def several_kinds() -> Evaluate:
    return accuracy_like(images(1, 2, 3, 4, 5, 6, 5, 6))


def more_and_more() -> Evaluate:
    """Look at other batches every time, and at more than the first time."""
    given = images(*[4] * 6)
    evaluations = itertools.count(2)

    @torch.no_grad()
    def evaluate(model: nn.Module) -> float:
        size = min(next(evaluations), 6)
        return sum(float(model(x)["logits"].sum()) for x in given[-size:])

    return evaluate


@pytest.mark.parametrize(
    "made",
    [
        shuffled,
        hooked,
        with_gradients,
        averaged,
        in_training,
        parts,
        several_kinds,
        more_and_more,
    ],
)
def test_functions_that_do_otherwise_get_what_the_plain_loop_gets(
    made: Callable[[], Evaluate],
) -> None:
    model = net()
    groups = prunella.couple(prunella.trace(model, EXAMPLE))
    scores = prunella.score(model, groups)
    found = [
        analyze(model, groups, scores, made(), metric="m", higher_is_better=True, memory=memory)
        for memory in (PLENTY, 0)
    ]
    assert found[0] == found[1]


def test_a_course_that_depends_on_values_is_not_replayed(caplog: pytest.LogCaptureFixture) -> None:
    class Choosy(Net):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            out = super().forward(images)
            return out if float(out["logits"].sum()) > 0 else {k: -v for k, v in out.items()}

    torch.manual_seed(0)
    with caplog.at_level(logging.INFO, "prunella"):
        shared, plain = loops(Choosy().eval(), EXAMPLE, accuracy_like(images(4, 4)))
    assert shared == plain
    assert "it could be captured only as one recorded run" in caplog.text


def test_chance_in_the_model_is_not_shared(caplog: pytest.LogCaptureFixture) -> None:
    class Noisy(Net):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return super().forward(F.dropout(images, 0.5, training=True))

    given = images(4, 4)

    @torch.no_grad()
    def evaluate(model: nn.Module) -> float:
        torch.manual_seed(3)
        return sum(float(model(x)["logits"].sum()) for x in given)

    torch.manual_seed(0)
    with caplog.at_level(logging.INFO, "prunella"), torch.random.fork_rng():
        shared, plain = loops(Noisy().eval(), EXAMPLE, evaluate)
    assert shared == plain
    assert "its graph does not compute the same numbers" in caplog.text


def test_the_function_is_given_what_passes_for_the_model() -> None:
    model = net()

    @torch.no_grad()
    def evaluate(given: nn.Module) -> float:
        assert isinstance(given, Net)
        assert not given.training
        assert [id(p) for p in given.parameters()] == [id(p) for p in model.parameters()]
        assert given.to("cpu") is given
        assert given.state_dict().keys() == model.state_dict().keys()
        twin = copy.deepcopy(given)
        assert type(twin) is Net
        for name, tensor in tensors(given).items():
            assert torch.equal(tensors(twin)[name], tensor)
        return float(given(EXAMPLE[0])["logits"].sum())

    shared, plain = loops(model, EXAMPLE, evaluate)
    assert shared == plain


def test_an_analysis_that_was_killed_goes_on_and_shares_again(tmp_path: Path) -> None:
    model, given = net(), images(4, 4)
    plain = accuracy_like(given)
    left = [5]

    def dying(given: nn.Module) -> float:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return plain(given)

    with pytest.raises(KeyboardInterrupt):
        loops(model, EXAMPLE, dying, record=tmp_path / "journal")
    before = oracle.state(model)
    with counted(model) as calls:
        shared, _ = loops(model, EXAMPLE, plain, record=tmp_path / "journal")
    assert len(calls) == 2, "the dense model, once more for the record"
    assert oracle.unchanged(model, before)
    assert shared == loops(model, EXAMPLE, plain)[1]


@pytest.mark.parametrize("more", ["third.bias", "stem.0.bias"])
def test_a_cut_may_change_more_than_the_group(more: str) -> None:
    """Behind the group that is seen by what is replayed; before it, the model itself runs."""

    @contextmanager
    def cut(model: nn.Module, groups: prunella.Groups, gone: Any) -> Iterator[nn.Module]:
        with zeroed(model, groups, gone), torch.no_grad():
            tensor = model.get_parameter(more)
            saved = tensor.clone()
            tensor.add_(0.25)
            try:
                yield model
            finally:
                tensor.copy_(saved)

    model, given = net(), images(4, 4)
    with counted(model) as calls:
        shared, plain = loops(model, EXAMPLE, accuracy_like(given), cut=cut)
    assert shared == plain
    runs = len(plain.curves) * len(RATIOS)
    twice = runs if more == "third.bias" else 2 * runs - len(RATIOS)
    assert len(calls) == 2 * (2 + twice)


def test_short_loops_are_left_alone() -> None:
    model, given = net(), images(4, 4)
    with counted(model) as calls:
        found, plain = loops(model, EXAMPLE, accuracy_like(given), memory=None)
    assert found == plain
    assert len(calls) == 4 * (1 + len(plain.curves) * len(RATIOS))


def test_a_course_in_two_parts_is_the_model() -> None:
    model, (x,) = net(), images(4)
    course = Course(prunella.trace(model, (x,)))
    named = tensors(model)
    with torch.no_grad():
        whole = model(x.clone())
        for position in range(course.end + 1):
            kept = x.clone()
            live = course.run({course.graph.inputs[0]: kept}, 0, position, named)
            copies = {name: tensor.clone() for name, tensor in live.items()}
            for _ in range(2):
                end = course.run(live, position, course.end, named)
                found = course.returned(end, named)
                assert all(torch.equal(found[key], whole[key]) for key in whole)
            assert all(torch.equal(live[name], copies[name]) for name in live)
            assert torch.equal(kept, x)


class Centred(Net):
    """What it returns for one sample depends on the others."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map images to logits, from what is common to all."""
        return super().forward(images - images.mean(0))


@pytest.mark.parametrize(
    ("make", "sizes", "parts"),
    [(Net, (32, 32), {4}), (Net, (32, 15, 32), {4, 1}), (Centred, (32,), {4, 1})],
)
def test_large_batches_go_in_parts_where_the_numbers_are_the_same(
    make: Callable[[], nn.Module],
    sizes: tuple[int, ...],
    parts: set[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(route, "_CACHE", 1)
    monkeypatch.setattr(route, "_FEWEST", 8)
    used: list[int] = []
    kept = route.Route.run

    def run(self: route.Route, *args: Any) -> route.Live:
        used.append(self.parts)
        return kept(self, *args)

    monkeypatch.setattr(route.Route, "run", run)
    torch.manual_seed(0)
    model, given = make().eval(), images(*sizes)
    with counted(model) as calls:
        shared, plain = loops(model, EXAMPLE, accuracy_like(given))
    assert shared == plain
    cells = 1 + len(plain.curves) * len(RATIOS)
    assert len(calls) == len(sizes) * (1 + cells)
    assert set(used) == parts
    assert used[-1] == (1 if make is Centred else 4)


def test_parts_are_as_large_as_fits_and_equally_large(monkeypatch: pytest.MonkeyPatch) -> None:
    def size(samples: int) -> int:
        return route.part_size(Course(prunella.trace(net(), (images(samples)[0],))))

    course = Course(prunella.trace(net(), (images(1)[0],)))
    monkeypatch.setattr(route, "_CACHE", 32 * course.peak)
    assert [size(n) for n in (1, 20, 32, 96, 100, 37)] == [1, 20, 32, 32, 25, 37]
    monkeypatch.setattr(route, "_CACHE", 1)
    assert [size(n) for n in (1, 20, 32, 96, 100, 37)] == [1, 20, 16, 16, 20, 37]
