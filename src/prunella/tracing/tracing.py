"""Read what was captured of a model as a `Graph`."""

import logging
import operator
import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from prunella.errors import ConfigError, TraceError
from prunella.graph import Calc, Dim, Graph, Kind, Node, Ref, Size, Value, refs
from prunella.model.blame import first_line
from prunella.model.containers import renamed
from prunella.model.examples import Arguments, describe
from prunella.model.modes import evaluating
from prunella.model.structure import canonical_names, digest_of
from prunella.tracing.capturing import PREFIX, Captured, Source, capture
from prunella.tracing.inlining import operator_name
from prunella.tracing.provenance import line_of, name_while_capturing, noted, observing
from prunella.tracing.unseen import standing_in, understudies

log = logging.getLogger("prunella")

Inputs = Tensor | tuple[Any, ...]


def positional(example_inputs: Inputs) -> tuple[Any, ...]:
    """Return example inputs as a tuple of positional arguments."""
    if isinstance(example_inputs, Tensor):
        return (example_inputs,)
    if isinstance(example_inputs, tuple):
        return example_inputs
    raise ConfigError(
        "`example_inputs` is a tensor or a tuple of positional arguments, got "
        f"{type(example_inputs).__name__}: {_instead_of(example_inputs)}"
    )


def _instead_of(given: object) -> str:
    if isinstance(given, Mapping):
        return "pass keyword arguments as `example_kwargs`, a dict"
    if isinstance(given, list):
        return "write `(x,)` for one input `x`, and leave out what the model does not take"
    if isinstance(given, np.ndarray):
        return "write `torch.from_numpy(x)`"
    if isinstance(given, Iterable) and not isinstance(given, str):
        return "give what the model takes of one batch, as in `next(iter(loader))[0]`"
    return "give what the model is called with, as in `torch.randn(1, 3, 224, 224)`"


def called_with(
    example_inputs: Inputs, example_kwargs: Mapping[str, Any] | None = None
) -> Arguments:
    """Return example inputs as the arguments of one call.

    Raises:
        ConfigError: They are of another kind.
    """
    if not isinstance(example_kwargs, Mapping | None):
        raise ConfigError(
            "`example_kwargs` is a dict of arguments by their names, got "
            f"{type(example_kwargs).__name__}: write `{{'x': x}}`"
        )
    return positional(example_inputs), dict(example_kwargs or {})


def trace(
    model: nn.Module,
    example_inputs: Inputs,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    training: bool = False,
) -> Graph:
    """Capture what `model` computes on the example inputs, in evaluation mode.

    The model is neither changed nor kept. Its tensors may live on any device, the meta device
    included.

    Args:
        model: Any module.
        example_inputs: A tensor, or a tuple of positional arguments.
        example_kwargs: Keyword arguments.
        training: Capture training mode instead.

    Returns:
        The network as operators on named tensors.

    Raises:
        TraceError: The model does not run on these inputs, or its control flow cannot be captured.
    """
    args, kwargs = called_with(example_inputs, example_kwargs)
    reader = _Reader(canonical_names(model))
    with evaluating(model), torch.no_grad():
        model.train(training)
        captured = capture(model, args, kwargs, reader.observing)
        reader.read(captured, training=False)
        takes, returns = reader.takes(captured), reader.returns(captured)
        if captured.recorded:
            _read_unseen(reader, model, args, kwargs)
        if not training and reader.unused(model):
            _read_training(reader, model, args, kwargs)
    return Graph(
        values=reader.values,
        nodes=tuple(reader.nodes),
        inputs=tuple(reader.inputs),
        outputs=tuple(reader.outputs),
        modules={name: type(module) for name, module in model.named_modules()},
        samples=_samples([a.shape for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]),
        digest=digest_of(model),
        example=describe(args, kwargs),
        unused=reader.unused(model),
        constants=reader.constants,
        equal=tuple(reader.equal),
        takes=takes,
        returns=returns,
        recorded=captured.recorded,
    )


def _read_unseen(
    reader: "_Reader", model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Read what a recorded run did not reach, where it can stand in for what was reached."""
    for pairs in understudies(model, reader.unused(model)):
        with standing_in(pairs):
            reader.read(capture(model, args, kwargs, reader.observing), training=True)


def _read_training(
    reader: "_Reader", model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Read the model in training mode too, for the sake of what runs only then (auxiliary heads).

    Batch norms stay in evaluation mode: they compute the same labels, and take a single sample.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    try:
        captured = capture(model, args, kwargs, reader.observing)
    except TraceError as error:
        log.warning(
            "%s are not used in evaluation mode, and the training mode could not be captured (%s): "
            "finetuning the pruned model may fail there",
            ", ".join(sorted({name.rpartition(".")[0] for name in reader.unused(model)})[:5]),
            first_line(error),
        )
    else:
        reader.read(captured, training=True)
    finally:
        model.eval()


class _Reader:
    """Turns captured programs of one model into values and nodes."""

    def __init__(self, canonical: Mapping[str, str]) -> None:
        self.values: dict[str, Value] = {}
        self.nodes: list[Node] = []
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        self.constants: dict[str, Tensor] = {}
        self.equal: list[tuple[Size, Size]] = []
        self._pairs: list[tuple[Size, Size]] = []  # as named while capturing
        self._canonical = canonical
        self._by_source: dict[str, str] = {}  # tied parameters share one value
        self._names: dict[str, str] = {}
        self._returned: list[str] = []
        self._reads = 0

    def observing(self, model: nn.Module) -> AbstractContextManager[None]:
        """Note the origins of numbers, and which the code compared, during the next capture."""
        self._pairs = []
        return observing(model, self._pairs)

    def read(self, captured: Captured, *, training: bool) -> None:
        """Add what was captured."""
        prefix = "training " * self._reads  # a name of its own in every capture
        self._reads += 1
        names: dict[str, str] = {}  # node name -> value name
        before: dict[str, str] = {}  # name while capturing -> value name
        for node in captured.graph.nodes:
            if node.op == "placeholder":
                names[node.name] = self._enter(node, captured.sources[node.name], prefix)
                if node.name in captured.constants:
                    value = captured.constants[node.name].detach()
                    self.constants.setdefault(names[node.name], value)
            elif node.op == "output":
                found = [ref.name for ref in refs(_convert(node.args, names))]
                if not training:
                    self._names, self._returned = names, found
                self.outputs += [name for name in found if name in self.values]
            elif node.target is operator.getitem:
                names[node.name] = _output_name(names[node.args[0].name], node.args[1])
            else:
                names[node.name] = prefix + node.name
                self._call(node, names, before, training=training)
            if node.name in names:
                before[name_while_capturing(node)] = names[node.name]
        for pair in dict.fromkeys(self._pairs):
            left, right = (_renamed(size, before) for size in pair)
            if left is not None and right is not None:
                self.equal.append((left, right))

    def takes(self, captured: Captured) -> Any:
        """Put the names of the inputs in the tensors' places among the user's arguments."""

        def named(leaf: Any) -> Any:
            return Ref(self._names[leaf.name]) if isinstance(leaf, Ref) else leaf

        return pytree.tree_map(named, captured.takes)

    def returns(self, captured: Captured) -> Any:
        """Put the names of the outputs in the tensors' places in what the model returned."""
        return renamed(captured.returns, {str(i): name for i, name in enumerate(self._returned)})

    def unused(self, model: nn.Module) -> tuple[str, ...]:
        """List the parameters that no node uses."""
        used = {
            self.values[ref.name].source
            for node in self.nodes
            for ref in refs((node.args, node.kwargs))
            if ref.name in self.values
        }
        return tuple(name for name, _ in model.named_parameters() if name not in used)

    def _enter(self, node: fx.Node, source: Source, prefix: str) -> str:
        user_name = self._canonical.get(source.name, source.name)
        if source.kind == "constant":  # another capture numbers its constants anew
            user_name = prefix + user_name
        name = self._by_source.setdefault(f"{source.kind} {user_name}", prefix + node.name)
        tensor = node.meta.get("val")
        if isinstance(tensor, Tensor) and name not in self.values:
            self.values[name] = _value(name, tensor, source.kind, user_name)
            if source.kind == "input" and not prefix:
                self.inputs.append(name)
        return name

    def _call(
        self,
        node: fx.Node,
        names: Mapping[str, str],
        before: Mapping[str, str],
        *,
        training: bool,
    ) -> None:
        made = _outputs(node, names[node.name])
        for name, tensor in made.items():
            self.values[name] = _value(name, tensor, "activation", name)
        module, module_type = _module(node)
        sizes = {path: _renamed(size, before) for path, size in noted(node).items()}
        self.nodes.append(
            Node(
                name=names[node.name],
                op=operator_name(node.target),
                args=_convert(node.args, names),
                kwargs=_convert(node.kwargs, names),
                outputs=tuple(made),
                module=module,
                module_type=module_type,
                training=training,
                sizes={path: size for path, size in sizes.items() if size is not None},
                line=line_of(node),
                grad=node.meta.get("grad", True),
            )
        )


def _renamed(size: Size, captured: Mapping[str, str]) -> Size | None:
    """Give the tensors in an origin the names of their values; None where one is unknown."""
    if isinstance(size, Dim):
        value = captured.get(size.value)
        return None if value is None else Dim(value, size.dim)
    if isinstance(size, Calc):
        left, right = _renamed(size.left, captured), _renamed(size.right, captured)
        return None if left is None or right is None else Calc(size.op, left, right)
    return size


def _value(name: str, tensor: Tensor, kind: Kind, source: str) -> Value:
    return Value(name, tuple(int(n) for n in tensor.shape), tensor.dtype, kind, source)


_SCALARS = {torch.SymInt: torch.int64, torch.SymFloat: torch.float64, torch.SymBool: torch.bool}


def _output_name(producer: str, index: int) -> str:
    return f"{producer}#{index}"


def _outputs(node: fx.Node, called: str) -> dict[str, Tensor]:
    made = node.meta.get("val")
    if isinstance(made, Tensor):
        return {called: made}
    if type(made) in _SCALARS:  # read from a tensor: as good as a tensor of one element
        return {called: torch.empty((), dtype=_SCALARS[type(made)], device="meta")}
    if isinstance(made, tuple | list):
        return {
            _output_name(called, i): item for i, item in enumerate(made) if isinstance(item, Tensor)
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
    return f"{path}.".removeprefix(PREFIX).removesuffix("."), kind_name.rsplit(".", 1)[-1]


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
