"""Capture a model as a `Graph`: the only file that knows how the framework traces."""

import operator
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from prunella.errors import ConfigError, TraceError
from prunella.examples import describe
from prunella.graph import Graph, Kind, Node, Ref, Value, refs
from prunella.modes import evaluating
from prunella.outputs import tensors_in
from prunella.structure import canonical_names, digest_of

Inputs = Tensor | tuple[Any, ...]

_KINDS: dict[InputKind, Kind] = {
    InputKind.PARAMETER: "parameter",
    InputKind.BUFFER: "buffer",
    InputKind.CONSTANT_TENSOR: "constant",
    InputKind.USER_INPUT: "input",
}


def positional(example_inputs: Inputs) -> tuple[Any, ...]:
    """Return example inputs as a tuple of positional arguments."""
    if isinstance(example_inputs, Tensor):
        return (example_inputs,)
    if isinstance(example_inputs, tuple):
        return example_inputs
    raise ConfigError(
        "`example_inputs` is a tensor or a tuple of positional arguments, got "
        f"{type(example_inputs).__name__}; pass keyword arguments as `example_kwargs`, a dict"
    )


def trace(
    model: nn.Module, example_inputs: Inputs, example_kwargs: Mapping[str, Any] | None = None
) -> Graph:
    """Capture what `model` computes on the example inputs, in evaluation mode.

    The model is neither changed nor kept. Its tensors may live on any device, the meta device
    included.

    Args:
        model: Any module.
        example_inputs: A tensor, or a tuple of positional arguments.
        example_kwargs: Keyword arguments.

    Returns:
        The network as operators on named tensors.

    Raises:
        TraceError: The model does not run on these inputs, or its control flow cannot be captured.
    """
    args, kwargs = positional(example_inputs), dict(example_kwargs or {})
    with evaluating(model), torch.no_grad():
        try:
            program = torch.export.export(_Flat(model), args, kwargs, strict=False)
        except Exception as error:
            raise _explain(model, args, kwargs, error) from error
        return _read(program, model, args, kwargs)


class _Flat(nn.Module):
    """Returns the tensors of a model's output as a tuple, whatever it returns."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        return tuple(tensors_in(self.model(*args, **kwargs)))


_PREFIX = "model."  # what `_Flat` puts before every name


def _explain(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception
) -> TraceError:
    """Tell a wrong input from a model that runs but cannot be captured."""
    name = type(model).__name__
    shapes = ", ".join(_describe(a) for a in (*args, *kwargs.values()))
    try:
        model(*args, **kwargs)
    except Exception as run_error:
        return TraceError(
            f"`{name}` does not run on the example inputs ({shapes}): "
            f"{type(run_error).__name__}: {_first_line(run_error)}. "
            "Pass inputs that `model(*example_inputs, **example_kwargs)` accepts"
        )
    where = re.search(r'File "([^"]+)", line (\d+), in forward', str(error))
    at = f" at {where[1]}:{where[2]}" if where else ""
    return TraceError(
        f"`{name}` runs on the example inputs but could not be captured{at}: "
        f"{type(error).__name__}: {_first_line(error)}. Control flow that depends on tensor values "
        "(`if x.sum() > 0`, `.item()`, `.tolist()`) is the usual reason: move it out of `forward`, "
        "or prune the submodule before it"
    )


def _describe(value: Any) -> str:
    return f"{tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), "")[:300]


def _read(
    program: ExportedProgram, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Graph:
    canonical = canonical_names(model)
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    names: dict[str, str] = {}  # node name -> value name; tied parameters share one
    by_source: dict[str, str] = {}
    values: dict[str, Value] = {}
    nodes: list[Node] = []
    inputs: list[str] = []
    outputs: tuple[str, ...] = ()
    for node in program.graph.nodes:
        if node.op == "placeholder":
            spec = specs[node.name]
            kind = _KINDS.get(spec.kind, "constant")
            target = (spec.target or "").removeprefix(_PREFIX)
            source = canonical.get(target, target or node.name)
            names[node.name] = by_source.setdefault(f"{kind} {source}", node.name)
            if isinstance(node.meta.get("val"), Tensor):
                values.setdefault(
                    names[node.name], _value(names[node.name], node.meta["val"], kind, source)
                )
                if kind == "input":
                    inputs.append(node.name)
        elif node.op == "output":
            outputs = tuple(ref.name for ref in refs(_convert(node.args, names)))
        elif node.op == "call_function" and node.target is operator.getitem:
            producer = names[node.args[0].name]
            names[node.name] = _output_name(producer, node.args[1])
        elif node.op == "call_function":
            names[node.name] = node.name
            made = _outputs(node)
            for name, tensor in made.items():
                values[name] = _value(name, tensor, "activation", name)
            path, kind_of = _module(node)
            nodes.append(
                Node(
                    name=node.name,
                    op=str(node.target),
                    args=_convert(node.args, names),
                    kwargs=_convert(node.kwargs, names),
                    outputs=tuple(made),
                    module=path,
                    module_type=kind_of,
                )
            )
    return Graph(
        values=values,
        nodes=tuple(nodes),
        inputs=tuple(inputs),
        outputs=tuple(name for name in outputs if name in values),
        modules={name: type(module) for name, module in model.named_modules()},
        samples=_samples([values[name].shape for name in inputs]),
        digest=digest_of(model),
        example=describe(args, kwargs),
    )


def _value(name: str, tensor: Tensor, kind: Kind, source: str) -> Value:
    return Value(name, tuple(int(n) for n in tensor.shape), tensor.dtype, kind, source)


def _output_name(producer: str, index: int) -> str:
    return f"{producer}#{index}"


def _outputs(node: fx.Node) -> dict[str, Tensor]:
    made = node.meta.get("val")
    if isinstance(made, Tensor):
        return {node.name: made}
    if isinstance(made, tuple | list):
        return {
            _output_name(node.name, i): item
            for i, item in enumerate(made)
            if isinstance(item, Tensor)
        }
    return {}


def _module(node: fx.Node) -> tuple[str, str]:
    """Find the innermost module whose forward made this call."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return "", ""
    path, kind = stack[-1]
    kind_name = kind if isinstance(kind, str) else kind.__name__
    path = re.sub(r"@\d+", "", path)  # "conv@1": a second call
    return f"{path}.".removeprefix(_PREFIX).removesuffix("."), kind_name.rsplit(".", 1)[-1]


def _convert(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, fx.Node):
        return Ref(names[value.name])
    if isinstance(value, tuple | list):
        return tuple(_convert(item, names) for item in value)
    if isinstance(value, dict):
        return {key: _convert(item, names) for key, item in value.items()}
    return value


def _samples(shapes: list[tuple[int, ...]]) -> int:
    """Count the samples in the example inputs: the first dimension where all inputs agree on it."""
    firsts = {shape[0] for shape in shapes if shape}
    return firsts.pop() if len(firsts) == 1 else 1
