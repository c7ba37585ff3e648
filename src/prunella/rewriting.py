"""The pruned model where its code spells sizes out: the captured graph in new sizes, as a module.

The class of such a model cannot come back, since `x.view(-1, 8, 64)` in its forward asks for sizes
that are no longer there. What comes back is a `Rewritten` module: the user's tensors under the
user's names, and two pieces of generated code, one captured in evaluation mode and one in training
mode, so that dropout, stochastic depth, statistics and auxiliary outputs are those of the original
in either mode.
"""

import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils import _pytree as pytree

from prunella.blame import first_line
from prunella.carrying import carry
from prunella.containers import filled, matched, opaque_in
from prunella.coupling import couple
from prunella.emitting import Program, emit
from prunella.errors import ConfigError, PrunellaError
from prunella.examples import Arguments, make
from prunella.following import enlarged, second_capture
from prunella.graph import Graph, Ref
from prunella.plan import Groups, Plan
from prunella.resizing import mask_from, resized
from prunella.slicing import take
from prunella.structure import canonical_names, tensors
from prunella.tracing import trace

log = logging.getLogger("prunella")


class _Holder(nn.Module):
    """Holds the tensors of one module of the original."""

    def extra_repr(self) -> str:
        held = {**self._parameters, **self._buffers}.items()
        return ", ".join(f"{name}={tuple(t.shape)}" for name, t in held if t is not None)


@dataclass(frozen=True)
class Way:
    """One way through the network: how arguments become tensors, those others, those results.

    Attributes:
        takes: The arguments of the capture by name, with a `Ref` in place of each tensor.
        program: The code.
        returns: The emptied result.
        constants: Tensors that the original's code itself holds, by attribute of the module.
    """

    takes: Mapping[str, Any]
    program: Program
    returns: Any
    constants: Mapping[str, Tensor]

    def __deepcopy__(self, memo: object) -> "Way":
        return self


class Rewritten(_Holder):
    """A captured network in new sizes, with the tensors of the original under their names.

    It trains, moves between devices, and can be copied, exported and pruned again. It takes the
    arguments that the model was captured with, for batches of any size; it is not an instance of
    the original's class and has none of its other methods.

    Attributes:
        code: The Python code of its forward in evaluation mode.
        training_code: The same in training mode.
    """

    def __init__(self, original: str, signature: inspect.Signature, ways: tuple[Way, Way]) -> None:
        super().__init__()
        self._original = original
        self._ways = ways
        self.signature = signature
        for way in ways:
            for name, tensor in way.constants.items():
                setattr(self, name, tensor)

    @property
    def code(self) -> str:
        """Return the Python code that runs in evaluation mode."""
        return self._ways[0].program.source

    @property
    def training_code(self) -> str:
        """Return the Python code that runs in training mode."""
        return self._ways[1].program.source

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute what the original computes, in this module's sizes."""
        way = self._ways[self.training]
        given = _bound(self.signature, args, kwargs)
        found: dict[str, Tensor] = {}
        for name, wanted in way.takes.items():
            found.update(matched(wanted, given[name], name))
        outputs = way.program.run(self, *(found[name] for name in way.program.inputs))
        return filled(way.returns, dict(zip(way.program.outputs, outputs, strict=True)))

    def _get_name(self) -> str:
        return f"Rewritten{self._original}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Rewritten":
        """Let the constants move along: they are no buffers, which would be the user's."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in {name for way in self._ways for name in way.constants}:
            setattr(self, name, fn(getattr(self, name)))
        return self


def rewritten(
    model: nn.Module, plan: Plan, groups: Groups | None = None, inputs: Arguments | None = None
) -> Rewritten:
    """Return the captured network in the sizes that a plan gives.

    Args:
        model: The model the plan was made for; left untouched.
        plan: What to keep.
        groups: The groups of the model, with `form="graph"`; found anew by default.
        inputs: Arguments and keyword arguments; by default like those of the plan.

    Raises:
        ConfigError: The model cannot be rewritten, or the plan does not say what inputs it takes.
        TransformError: The graph has an operator that cannot be written down.
    """
    if inputs is None:
        if plan.example is None:
            raise ConfigError(
                "the plan does not say what inputs the model takes (they are of a type that cannot "
                "be described); pass the inputs"
            )
        inputs = make(plan.example, 0, _device(model))
    if groups is None:
        groups = couple(trace(model, *inputs), form="graph")
    signature = signature_of(model)
    evaluating = _way(model, plan, groups, inputs, signature, training=False)
    training = _training_way(model, plan, inputs, signature) or evaluating
    made = Rewritten(type(model).__name__, signature, (evaluating, training))
    _fill(made, model, plan, {*evaluating.program.tensors, *training.program.tensors})
    if training is not evaluating and not _runs(made, inputs):
        made = Rewritten(type(model).__name__, signature, (evaluating, evaluating))
        _fill(made, model, plan, set(evaluating.program.tensors))
    carry(made, model, plan)
    return made.train(model.training)


def signature_of(model: nn.Module) -> inspect.Signature:
    """Return the arguments that a model takes."""
    return model.signature if isinstance(model, Rewritten) else inspect.signature(model.forward)


def _device(model: nn.Module) -> torch.device:
    return next((t.device for t in tensors(model).values()), torch.device("cpu"))


def _bound(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Name the arguments of a call, those at their defaults too."""
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def _way(
    model: nn.Module,
    plan: Plan,
    groups: Groups,
    inputs: Arguments,
    signature: inspect.Signature,
    *,
    training: bool,
) -> Way:
    graph = groups.graph
    _check(model, graph)
    second = second_capture(model, graph, inputs, training=training)
    if second is None:
        log.warning(
            "`%s` takes another course when anything about its inputs changes: rewritten, it takes "
            "batches of the size it was captured with",
            type(model).__name__,
        )
    takes = _bound(signature, *graph.takes)
    prefix = "_training_constant_" if training else "_constant_"
    constants = {name: f"{prefix}{i}" for i, name in enumerate(graph.constants)}
    called = {arg.name: name for name, arg in takes.items() if isinstance(arg, Ref)}
    program = emit(
        resized(groups, mask_from(groups, plan)),
        second,
        inputs={name: called.get(name, name) for name in graph.inputs},
        constants=constants,
        device=_device(model),
    )
    held = {constants[name]: tensor for name, tensor in graph.constants.items()}
    return Way(takes, program, graph.returns, held)


def _check(model: nn.Module, graph: Graph) -> None:
    name = type(model).__name__
    if graph.recorded:
        raise ConfigError(
            f"`{name}` cannot be rewritten: its course depends on the data, so that its graph is "
            "the record of a single run. Exclude the modules whose sizes are written into its code"
        )
    if graph.takes is None or graph.returns is None:
        raise ConfigError(f"`{name}` cannot be rewritten: what it takes or returns cannot be told")
    lost = sorted({kind.__name__ for kind in opaque_in(graph.returns)})
    if lost:
        log.warning("rewritten, `%s` returns None in place of %s", name, ", ".join(lost))


def _training_way(
    model: nn.Module, plan: Plan, inputs: Arguments, signature: inspect.Signature
) -> Way | None:
    """Capture and rewrite the model in training mode; None where that does not work."""
    more = enlarged(inputs)  # batch norms do not take a single sample
    problem: Exception | None = None
    for given in (more, inputs) if more else (inputs,):
        try:
            groups = couple(trace(model, *given, training=True), form="graph")
            return _way(model, plan, groups, given, signature, training=True)
        except PrunellaError as error:
            problem = error
    _warn(model, problem)
    return None


def _warn(model: nn.Module, problem: Exception | None) -> None:
    log.warning(
        "rewritten, `%s` computes in training mode what it does in evaluation mode (no dropout, no "
        "new statistics), since its training mode could not be rewritten: %s",
        type(model).__name__,
        first_line(problem) if problem else "",
    )


def _runs(made: Rewritten, inputs: Arguments) -> bool:
    """Say whether the code of training mode fits the tensors, without computing anything."""
    given = enlarged(inputs) or inputs
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
            args, kwargs = pytree.tree_map_only(Tensor, mode.from_tensor, given)
            fake: dict[str, Tensor] = {
                name: mode.from_tensor(tensor) for name, tensor in tensors(made).items()
            }
            functional_call(made.train(), fake, args, kwargs)
    except Exception as error:  # noqa: BLE001 - whatever an operator raises
        _warn(made, error)
        return False
    return True


def _fill(made: Rewritten, model: nn.Module, plan: Plan, used: set[str]) -> None:
    """Give a rewritten model the tensors of the original that it uses, cut, under all names."""
    found = tensors(model)
    cut: dict[str, Tensor] = {}
    for alias, name in canonical_names(model).items():
        if name not in used:
            continue
        if name not in cut:
            smaller = take(found[name].detach(), plan.kept.get(name, {}))
            learns = isinstance(found[name], nn.Parameter)
            cut[name] = nn.Parameter(smaller, found[name].requires_grad) if learns else smaller
        tensor = cut[name]
        path, _, leaf = alias.rpartition(".")
        holder = _holder(made, path)
        if isinstance(tensor, nn.Parameter):
            holder.register_parameter(leaf, tensor)
        else:
            fleeting = model.get_submodule(path)._non_persistent_buffers_set
            holder.register_buffer(leaf, tensor, persistent=leaf not in fleeting)


def _holder(made: nn.Module, path: str) -> nn.Module:
    for name in filter(None, path.split(".")):
        if name not in made._modules:
            made.add_module(name, _Holder())
        made = made.get_submodule(name)
    return made
