"""Get a model's operators from the framework: by export, or by recording one real run.

Export sees the model without running it, on the meta device too, and is tried first. It cannot
follow code that depends on values (`.item()`, `nonzero`, `if x.sum() > 0`). Then one real run is
recorded, in the same vocabulary: ATen before autograd takes it apart.
"""

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.fx import config as fx_config
from torch.fx.experimental import proxy_tensor
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils import _pytree as pytree

from prunella.errors import TraceError
from prunella.graph import Kind, Ref
from prunella.model.blame import first_line, own_line
from prunella.model.containers import emptied
from prunella.model.modes import evaluating
from prunella.model.outputs import tensors_in
from prunella.model.structure import canonical_names, has_memory, tensors
from prunella.tracing.constants import Constants
from prunella.tracing.inlining import inlined

log = logging.getLogger("prunella")

Around = Callable[[nn.Module], AbstractContextManager[Any]]
"""What is entered around the model's forward while it is captured, given the model."""

_KINDS: dict[InputKind, Kind] = {
    InputKind.PARAMETER: "parameter",
    InputKind.BUFFER: "buffer",
    InputKind.CONSTANT_TENSOR: "constant",
    InputKind.USER_INPUT: "input",
}
PREFIX = "model."  # what `_Flat` puts before every name


@dataclass(frozen=True)
class Source:
    """What a placeholder of the graph stands for; `name` is the user's: "layer1.conv1.weight"."""

    kind: Kind
    name: str


@dataclass(frozen=True, eq=False)
class Captured:
    """A model as the framework sees it.

    Attributes:
        graph: Placeholders, calls of operators, and the output: the tensors the model returns.
            Every tensor has its shape in `meta["val"]`, every call its modules in
            `meta["nn_module_stack"]`, and `meta["grad"] = False` where the model's own code turns
            gradients off (told by export only).
        sources: What the placeholders stand for, by name; of tied tensors all under one name.
        constants: The values of the placeholders that are constants.
        takes: The user's `(args, kwargs)`, with a `Ref` to its placeholder for every tensor.
        returns: What the model returned, emptied (see `containers`): `Ref("0")`, `Ref("1")`, ...
            for the tensors of the graph's output.
        recorded: The graph is one recorded run: what it does may depend on the data.
    """

    graph: fx.Graph
    sources: Mapping[str, Source]
    constants: Mapping[str, Tensor]
    takes: Any
    returns: Any
    recorded: bool


# Nobody reads the stack trace that torch writes down for every node, at a fifth of the time.
# Older versions have no such setting, and write it.
@mock.patch.object(fx_config, "do_not_emit_stack_traces", new=True, create=True)
def capture(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    around: Around | None = None,
) -> Captured:
    """Capture what `model`, in the mode it is in, computes on these arguments.

    What a forward writes into the model's modules is undone.

    Args:
        model: Any module, on any device.
        args: Positional arguments.
        kwargs: Keyword arguments.
        around: Entered around the model's forward, given the model. The graph that is being built
            is `get_proxy_mode().tracer.graph`; its nodes keep what is put into their `meta`.

    Raises:
        TraceError: The model does not run on these arguments, or cannot be captured.
    """
    flat = _Flat(model, around or _nothing)
    inputs: tuple[tuple[Any, ...], dict[str, Any]] = _apart((args, dict(kwargs)))
    try:
        with untouched(model):
            return _export(flat, *inputs)
    except Exception as error:
        if not all(map(has_memory, tensors(model).values())):
            raise explain(model, args, kwargs, error) from error
        log.info("recording a run of the model, as it cannot be exported: %s", first_line(error))
    try:
        with untouched(model):
            return _record(flat, *inputs)
    except Exception as error:
        raise explain(model, args, kwargs, error) from error


def _apart(inputs: Any) -> Any:
    """Copy a tensor that is passed twice: what goes by two names are two inputs."""
    seen: set[int] = set()

    def apart(tensor: Tensor) -> Tensor:
        known = id(tensor) in seen
        seen.add(id(tensor))
        return tensor.detach().clone() if known else tensor

    return pytree.tree_map_only(Tensor, apart, inputs)


def _nothing(model: nn.Module) -> AbstractContextManager[None]:
    del model
    return nullcontext()


@dataclass
class _Kept:
    returns: Any = None


class _Flat(nn.Module):
    """Returns the tensors of a model's output as a tuple, whatever it returns."""

    def __init__(self, model: nn.Module, around: Around) -> None:
        super().__init__()
        self.model = model
        # Export hands `forward` a stand-in for the model; `around` gets the user's own.
        self.entering = partial(around, model)
        self.kept = _Kept()  # export puts lists and dicts back to what they held before

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        with Constants(), self.entering():
            output = self.model(*args, **kwargs)
        self.kept.returns = emptied(output, map(str, count()))
        return tuple(tensors_in(output))


# -- export


def _export(flat: _Flat, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Captured:
    try:
        # With gradients on, so that it can be told what the model's own code does without them.
        with torch.enable_grad():
            program = _exported(flat, args, kwargs)
    except RuntimeError as error:
        if "grad" not in str(error):
            raise
        with torch.no_grad():  # it writes into a parameter, say
            program = _exported(flat, args, kwargs)
    for node in program.graph.nodes:
        if any(free_unbacked_symbols(tensor) for tensor in tensors_in(node.meta.get("val"))):
            raise TraceError("the shape of a tensor depends on values")
    graph, _ = inlined(program.graph_module)
    if any("_functorch" in getattr(n.target, "__module__", "") for n in graph.nodes):
        raise TraceError("what `torch.vmap` maps are no operators that can be called one by one")
    names = canonical_names(flat.model)
    aliases = _aliases(flat.model)
    sources: dict[str, Source] = {}
    constants: dict[str, Tensor] = {}
    given: list[Any] = []
    for spec in program.graph_signature.input_specs:
        kind, name = _KINDS.get(spec.kind, "constant"), spec.arg.name
        target = (spec.target or name).removeprefix(PREFIX)
        value = program.constants.get(spec.target or "")
        if kind == "input":
            is_plain = isinstance(spec.arg, ConstantArgument)
            given.append(spec.arg.value if is_plain else Ref(name))
        sources[name] = Source(kind, names.get(target, target))
        if kind == "constant" and isinstance(value, Tensor):
            sources[name] = aliases.get(_memory(value), sources[name])
            constants[name] = value
    spec_in = program.call_spec.in_spec
    assert spec_in is not None, "an exported program says how it takes its inputs"
    takes = pytree.tree_unflatten(given, spec_in)
    return Captured(graph, sources, constants, takes, flat.kept.returns, recorded=False)


def _exported(flat: _Flat, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExportedProgram:
    # Torch exports tensors made in inference mode only there.
    given = (*tensors(flat.model).values(), *tensors_in((args, kwargs)))
    inference = torch.is_inference_mode_enabled() or any(t.is_inference() for t in given)
    # Where it fails torch prints the whole graph so far; and it warns of tensors that are put into
    # attributes, which `untouched` takes out again.
    with (
        torch.inference_mode(inference),
        redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
        masks_unasked(),
    ):
        warnings.filterwarnings("ignore", "The tensor attribute")
        return torch.export.export(flat, args, kwargs, strict=False)


def masks_unasked() -> AbstractContextManager[Any]:
    """Keep torch's Transformer from asking a mask for its numbers: is it a causal one?

    That is a hint to kernels; the mask itself says the same.
    """
    return mock.patch.object(
        nn.modules.transformer,
        "_detect_is_causal_mask",
        new=lambda mask, is_causal=None, size=None: is_causal is True,
        create=True,
    )


# -- recording


def _record(flat: _Flat, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Captured:
    named, buffers = tensors(flat.model), dict(flat.model.named_buffers())
    leaves, structure = pytree.tree_flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def run(own: list[Tensor], given: list[Tensor]) -> tuple[Tensor, ...]:
        state = {PREFIX + name: tensor for name, tensor in zip(named, own, strict=True)}
        args, kwargs = _filled(leaves, places, given, structure)
        with _stacking(flat):
            made: tuple[Tensor, ...] = torch.func.functional_call(flat, state, args, kwargs)
        return made

    # The run may write into buffers and inputs, so it gets copies of them.
    own = [t.detach().clone() if name in buffers else t for name, t in named.items()]
    given = [leaves[i].detach().clone() for i in places]
    with (
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
        # Makes `torch.func.vmap` an operator in the graph. What is inside would be lost without.
        mock.patch.object(torch.compiler, "_is_exporting_flag", new=True),
        # One mode for the shapes of all tensors; else each is given one of its own, which is slow.
        tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))),
    ):
        program = proxy_tensor.make_fx(
            run, tracing_mode="real", pre_dispatch=True, _error_on_data_dependent_ops=False
        )(own, given)
    graph, constants = inlined(program)
    placeholders = [n for n in graph.find_nodes(op="placeholder") if n.name not in constants]
    mine, inputs = placeholders[: len(named)], placeholders[len(named) :]
    sources = {
        node.name: Source("buffer" if name in buffers else "parameter", name)
        for node, name in zip(mine, named, strict=True)
    } | {node.name: Source("input", node.name) for node in inputs}
    aliases = _aliases(flat.model)
    for name, value in constants.items():
        sources[name] = aliases.get(_memory(value), Source("constant", name))
    takes = _filled(leaves, places, [Ref(node.name) for node in inputs], structure)
    return Captured(graph, sources, constants, takes, flat.kept.returns, recorded=True)


def _filled(leaves: list[Any], places: list[int], values: list[Any], structure: Any) -> Any:
    """Put values into some places of flattened arguments, and build these up again."""
    filled = dict(zip(places, values, strict=True))
    return pytree.tree_unflatten([filled.get(i, a) for i, a in enumerate(leaves)], structure)


@contextmanager
def _stacking(flat: _Flat) -> Iterator[None]:
    """Note on every node of the graph that is being recorded which modules' forward it is in."""
    capturing = proxy_tensor.get_proxy_mode()
    assert capturing is not None, "called by what is recorded"
    graph = capturing.tracer.graph
    names = {module: name for name, module in flat.named_modules()}
    stack: list[tuple[str, str]] = []

    def note() -> None:
        here = dict(enumerate(stack))
        for node in reversed(graph.nodes):
            if "nn_module_stack" in node.meta:
                break
            node.meta["nn_module_stack"] = here

    def enter(module: nn.Module, _: Any) -> None:
        if module in names:
            note()
            stack.append((names[module], f"{type(module).__module__}.{type(module).__qualname__}"))

    def leave(module: nn.Module, _: Any, __: Any) -> None:
        if module in names:
            note()
            stack.pop()

    hooks = [
        register_module_forward_pre_hook(enter),
        register_module_forward_hook(leave, always_call=True),
    ]
    try:
        yield
        note()
    finally:
        for hook in hooks:
            hook.remove()


# -- both


_Memory = tuple[int, torch.Size, tuple[int, ...], torch.dtype]


def _memory(tensor: Tensor) -> _Memory:
    """Tell where a tensor's numbers are: a detached alias of a parameter is that parameter."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _aliases(model: nn.Module) -> dict[_Memory, Source]:
    """Map where parameters and buffers are kept to what they are; not what has no memory."""
    parameters = dict(model.named_parameters())
    return {
        _memory(tensor): Source("parameter" if name in parameters else "buffer", name)
        for name, tensor in tensors(model).items()
        if has_memory(tensor) and tensor.numel()
    }


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Undo what a forward writes into the attributes of modules, and into dicts and lists there."""
    saved = []
    for module in model.modules():
        kept = dict(module.__dict__)
        held = {k: v.copy() for k, v in kept.items() if isinstance(v, dict | list | set)}
        saved.append((module, kept, held))
    try:
        yield
    finally:
        for module, kept, held in saved:
            for name, content in held.items():
                holder = kept[name]
                holder.clear()
                (holder.extend if isinstance(holder, list) else holder.update)(content)
            module.__dict__.clear()
            module.__dict__.update(kept)


# -- where it fails


def explain(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], error: Exception
) -> TraceError:
    """Tell a wrong input from a model that runs but cannot be captured."""
    if wrong := wrong_input(model, args, kwargs):
        return wrong
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            return TraceError(
                f"`{name or type(model).__name__}` is a TorchScript module, whose code could not "
                f"be captured ({type(error).__name__}: {first_line(error)}). Put the module it was "
                "made of in its place, and script what comes out of pruning"
            )
    return TraceError(
        f"`{type(model).__name__}` runs on the example inputs but could not be captured"
        f"{own_line(error)}: {type(error).__name__}: {first_line(error)}. Control flow that "
        "depends on tensor values (`if x.sum() > 0`, `.item()`, `.tolist()`) can be recorded only "
        "where the model has weights: give it some if it is on the meta device; else move what "
        "fails out of `forward`, or prune the submodule before it"
    )


def wrong_input(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> TraceError | None:
    """Run the model itself; return the error to raise where it does not take these inputs."""
    given = [*tensors(model).values(), *tensors_in((args, dict(kwargs)))]
    if not all(tensor.is_meta for tensor in given) and not all(map(has_memory, given)):
        return None  # a crash would be the answer
    try:
        with evaluating(model), untouched(model), torch.no_grad():
            model(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - whatever the model's own code raises
        shapes = ", ".join(_describe(a) for a in (*args, *kwargs.values()))
        return TraceError(
            f"`{type(model).__name__}` does not run on the example inputs ({shapes})"
            f"{own_line(error)}: {type(error).__name__}: {first_line(error)}. Pass inputs that "
            "`model(*example_inputs, **example_kwargs)` accepts"
        )
    return None


def _describe(value: Any) -> str:
    return (
        f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
    )
