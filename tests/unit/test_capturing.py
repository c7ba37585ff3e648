"""Capturing: by export where that works, else one recorded run, in the same words."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

import prunella
from prunella.errors import TraceError
from prunella.graph import Ref
from prunella.model.containers import filled
from prunella.tracing import constants
from prunella.tracing.capturing import Captured, capture
from prunella.tracing.inlining import operator_name


def decided(x: Tensor) -> Tensor:
    """Return `x`, after a look at its values that export cannot follow."""
    return x if x.sum().item() > -1e9 else x + 1


class Loop(nn.Module):
    """Runs as often as its input says."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("scale", torch.ones(4))

    def forward(self, x: Tensor, *, extra: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        for _ in range(int(x.abs().sum().item()) % 3 + 1):
            x = self.fc(x) * self.scale
        return {"y": x if extra is None else x + extra["bias"]}


class Straight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.alias = self.fc
        self.plain = [self.fc.weight]  # a parameter where the framework does not look

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        with torch.no_grad():
            y = self.alias(x).relu()
        return y @ self.plain[0], 3


def names(captured: Captured) -> set[tuple[str, str]]:
    return {
        (captured.sources[node.name].kind, captured.sources[node.name].name)
        for node in captured.graph.find_nodes(op="placeholder")
        if node.users
    }


def called(captured: Captured) -> list[str]:
    return [operator_name(n.target) for n in captured.graph.nodes if n.op == "call_function"]


def run(captured: Captured, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Execute what was captured, on the model's own tensors."""
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    given = []
    for node in captured.graph.find_nodes(op="placeholder"):
        source = captured.sources[node.name]
        known = {**own, **captured.constants, **inputs}
        given.append(known.get(source.name, known.get(node.name)))
    module = fx.GraphModule(nn.Module(), captured.graph)
    return tuple(module(*given))


def test_what_depends_on_values_is_recorded_and_computes_the_same() -> None:
    model, x = Loop().eval(), torch.randn(2, 4)
    bias = torch.randn(4)
    captured = capture(model, (x,), {"extra": {"bias": bias}})
    assert captured.recorded
    (first,), kwargs = captured.takes
    assert isinstance(first, Ref)
    inputs = {first.name: x, kwargs["extra"]["bias"].name: bias}
    assert names(captured) == {
        ("parameter", "fc.weight"),
        ("parameter", "fc.bias"),
        ("buffer", "scale"),
        ("input", first.name),
        ("input", kwargs["extra"]["bias"].name),
    }
    outputs = run(captured, model, inputs)
    found = filled(captured.returns, {str(i): y for i, y in enumerate(outputs)})
    assert torch.equal(found["y"], model(x, extra={"bias": bias})["y"])


def test_export_is_preferred_and_its_inner_graphs_are_opened() -> None:
    model, x = Straight().eval(), torch.randn(2, 4)
    captured = capture(model, (x,), {})
    assert not captured.recorded
    assert called(captured) == ["aten.linear.default", "aten.relu.default", "aten.matmul.default"]
    linear, relu, matmul = (
        captured.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
        + [n for n in captured.graph.nodes if n.op == "call_function"][1:]
    )
    assert (linear.meta["grad"], relu.meta["grad"]) == (False, False)
    assert "grad" not in matmul.meta
    assert ("parameter", "fc.weight") in names(captured)
    assert not any(kind == "constant" for kind, _ in names(captured))
    assert captured.returns.parts[1] == 3
    (y,) = run(captured, model, {captured.takes[0][0].name: x})
    assert torch.equal(y, model(x)[0])


class Hidden(Loop):
    """Keeps a parameter in a list, and its run depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = [self.fc.weight]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)["y"] @ self.plain[0]


def test_a_parameter_found_outside_is_known_in_a_recorded_run_too() -> None:
    captured = capture(Hidden().eval(), (torch.randn(2, 4),), {})
    assert captured.recorded
    assert not any(kind == "constant" for kind, _ in names(captured))


class Switches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.yes, self.no = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            x = x * 2
        return torch.cond(x.sum() > 0, self.yes, self.no, (x,))


def test_both_branches_are_opened() -> None:
    captured = capture(Switches().eval(), (torch.randn(2, 4),), {})
    assert not captured.recorded
    assert called(captured).count("aten.linear.default") == 2
    assert called(captured).count("aten.where.self") == 1
    assert {name for kind, name in names(captured) if kind == "parameter"} == {
        "yes.weight", "yes.bias", "no.weight", "no.bias",
    }  # fmt: skip


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.last: Tensor | None = None
        self.cache: dict[str, Tensor] = {}
        self.calls = 0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        self.last = y
        self.cache["y"] = y
        self.calls += 1
        self.seen += 1
        return y * (1 if x.sum().item() > 0 else -1)


class RemembersQuietly(Remembers):
    def forward(self, x: Tensor) -> Tensor:
        self.last = self.fc(x)
        self.cache["y"] = self.last
        return self.last


@pytest.mark.parametrize("kind", [Remembers, RemembersQuietly])
def test_the_model_and_its_inputs_are_as_before(kind: type[Remembers]) -> None:
    model, x = kind().eval(), torch.randn(2, 4)
    before = x.clone()
    state = torch.get_rng_state()
    capture(model, (x,), {})
    assert (model.last, model.cache, model.calls, model.seen.item()) == (None, {}, 0, 0.0)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model._forward_hooks


@pytest.mark.parametrize("kind", [Loop, Straight])
def test_every_call_knows_its_module_and_its_shape(kind: type[nn.Module]) -> None:
    model = nn.Sequential(kind(), nn.Identity()).eval()
    captured = capture(model, (torch.randn(2, 4),), {})
    calls = [n for n in captured.graph.nodes if n.op == "call_function"]
    linear = next(n for n in calls if operator_name(n.target) == "aten.linear.default")
    path, module_type = list(linear.meta["nn_module_stack"].values())[-1]
    assert path.startswith("model.0")
    assert module_type.rsplit(".", 1)[-1] == "Linear"
    assert all(n.meta["nn_module_stack"] for n in calls)
    assert linear.meta["val"].shape == (2, 4)


@pytest.mark.parametrize("kind", [Loop, Straight])
def test_notes_made_on_nodes_while_capturing_survive(kind: type[nn.Module]) -> None:
    entered = []

    @contextmanager
    def around(model: nn.Module):
        entered.append(model)
        yield
        for node in get_proxy_mode().tracer.graph.nodes:
            node.meta["mark"] = node.name

    model = kind().eval()
    captured = capture(model, (torch.randn(2, 4),), {}, around)
    assert entered
    assert all(found is model for found in entered)
    marks = [n.meta.get("mark") for n in captured.graph.nodes if n.op == "call_function"]
    assert marks
    assert all(marks)


class Empties(Loop):
    def forward(self, x: Tensor) -> Tensor:
        keep = (x > 100).nonzero()[:, 0]
        return self.fc(x[keep])


def test_a_shape_that_depends_on_values_is_recorded_as_it_was() -> None:
    captured = capture(Empties().eval(), (torch.randn(2, 4),), {})
    assert captured.recorded
    shapes = [tuple(n.meta["val"].shape) for n in captured.graph.find_nodes(
        op="call_function", target=torch.ops.aten.linear.default)]  # fmt: skip
    assert shapes == [(0, 4)]


class Mapped(Loop):
    def forward(self, x: Tensor) -> Tensor:
        return torch.func.vmap(lambda row: self.fc(row).relu())(decided(x))


def test_no_tensor_is_lost_from_sight_inside_vmap() -> None:
    captured = capture(Mapped().eval(), (torch.randn(2, 4),), {})
    assert captured.recorded
    assert not captured.constants
    assert "torch._functorch.predispatch._add_batch_dim" in called(captured)


def test_on_the_meta_device_there_is_nothing_to_record() -> None:
    with torch.device("meta"):
        model, x = Empties().eval(), torch.randn(2, 4)
    with pytest.raises(TraceError, match="Empties"):
        capture(model, (x,), {})


class Asks(nn.Module):
    """Asks tensors that nothing goes into for their numbers."""

    def __init__(self, ask: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.ask = ask

    def forward(self, x: Tensor) -> Tensor:
        return self.ask(self.fc(x))


def checked(x: Tensor) -> Tensor:
    deviations = torch.as_tensor([0.5, 1.0, 2.0, 1.0], dtype=x.dtype)
    if (deviations == 0).any():
        raise ValueError("divided by zero")
    return x / deviations


def counted(x: Tensor) -> Tensor:
    flags = torch.zeros(5)
    flags[1:3] += 1  # by way of a view
    return x * int(flags.sum()) * torch.tensor(2.0).item() + flags.tolist()[2]


def split(x: Tensor) -> Tensor:
    first, second = torch.arange(4).chunk(2)
    return x if bool(first.sum() < second.sum()) else -x


CONSTANT = {"checked": checked, "counted": counted, "split": split}


@pytest.mark.parametrize("name", CONSTANT)
def test_numbers_that_follow_from_nothing_are_known_while_exporting(name: str) -> None:
    model, x = Asks(CONSTANT[name]).eval(), torch.randn(2, 4)
    captured = capture(model, (x,), {})
    assert not captured.recorded
    (y,) = run(captured, model, {captured.takes[0][0].name: x})
    assert torch.allclose(y, model(x))


def drawn(x: Tensor) -> Tensor:
    return x if torch.rand(3).sum() > -1 else -x


def written(x: Tensor) -> Tensor:
    flags = torch.zeros(4)
    flags[1:].copy_(x[0, 1:])
    return x if flags.sum() > -1e9 else -x


@pytest.mark.parametrize("ask", [drawn, written])
def test_numbers_that_follow_from_something_are_recorded(ask: Callable[[Tensor], Tensor]) -> None:
    assert capture(Asks(ask).eval(), (torch.randn(2, 4),), {}).recorded


class AsksOften(nn.Module):
    """Asks a constant for its number in every one of its blocks."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x) / int(torch.arange(4).sum())
        return x


def test_what_is_asked_often_is_computed_once_and_leaves_nothing_in_the_graph() -> None:
    left: list[str] = []

    @contextmanager
    def looking(_: nn.Module) -> Iterator[None]:
        yield
        mode = get_proxy_mode()
        assert mode is not None
        left.extend(node.name for node in mode.tracer.graph.nodes if "grad" in str(node.target))

    with mock.patch.object(constants, "_run", wraps=constants._run) as run:
        found = capture(AsksOften(6).eval(), (torch.randn(2, 4),), {}, looking)
    assert not found.recorded
    assert run.call_count == 2 * 6  # each `arange`, and its sum
    assert not left, "export would cut the graph in pieces there"


class Decoder(nn.Module):
    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.inner = nn.Transformer(8, 2, 1, 1, 12, batch_first=True)
        self.register_buffer("mask", self.inner.generate_square_subsequent_mask(5))

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        made = self.inner.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        mask = {"made": made, "buffer": self.mask, "input": given}[self.where]
        return self.inner(x, x, src_mask=mask, tgt_mask=mask)


@pytest.mark.parametrize("where", ["made", "buffer", "input"])
def test_a_transformer_with_a_causal_mask_is_exported(where: str) -> None:
    model, x = Decoder(where).eval(), torch.randn(3, 5, 8)
    captured = capture(model, (x, model.mask), {})
    assert not captured.recorded
    given = dict(zip((ref.name for ref in captured.takes[0]), (x, model.mask), strict=True))
    (y,) = run(captured, model, given)
    assert torch.allclose(y, model(x, model.mask), atol=1e-5)


class MappedAlone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 8)
        self.fc = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.vmap(self.fc)(self.inner(x).relu())


def test_what_is_mapped_is_recorded_as_its_steps_cannot_be_called() -> None:
    model, x = MappedAlone().eval(), torch.randn(6, 4)
    assert capture(model, (x,), {}).recorded
    with pytest.raises(TraceError, match=r"calls `torch\.vmap`, so calibration batches cannot"):
        prunella.prune(model, x, macs=0.5, calibration=[x])


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum().item() > -1e9:
            raise ArithmeticError("it never works")
        return x


def test_a_model_that_does_not_run_is_named_with_its_line() -> None:
    with pytest.raises(TraceError, match=r"`Fails` does not run.*it never works"):
        capture(Fails(), (torch.randn(2),), {})


class Twice(nn.Module):
    def forward(self, a: Tensor, *, b: list[Tensor]) -> Tensor:
        return a - b[0]


def test_a_tensor_passed_twice_is_two_inputs() -> None:
    x = torch.randn(3)
    captured = capture(Twice(), (x,), {"b": [x]})
    names = [captured.takes[0][0].name, captured.takes[1]["b"][0].name]
    assert len(set(names)) == 2
    (y,) = run(captured, Twice(), {names[0]: x, names[1]: 2 * x})
    assert torch.equal(y, -x)


class Interacts(nn.Module):
    """Products of all pairs of features, as recommenders have them; a buffer says which."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 5 * 8), nn.Linear(10, 3)
        self.register_buffer("pairs", torch.ones(5, 5, dtype=torch.bool).tril(-1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x).view(-1, 5, 8)
        found: Tensor = self.head((y @ y.mT)[:, self.pairs].relu())
        return found


def test_of_sizes_that_only_checks_asked_for_nothing_is_left() -> None:
    model, x = Interacts().double().eval(), torch.randn(2, 6, dtype=torch.float64)
    graph = prunella.trace(model, x)
    assert not graph.recorded
    assert not [node.op for node in graph.nodes if "sym_" in node.op or "_operator" in node.op]
    result = prunella.prune(model, x, ratio=0.5, heads="inside", form="graph")  # runs node by node
    assert result.model(x).shape == (2, 3)
