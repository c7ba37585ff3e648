"""The pruned model where its code spells sizes out: the captured graph in new sizes, as a module.

The class of such a model cannot come back, since `x.view(-1, 8, 64)` in its forward asks for sizes
that are no longer there. What comes back is a `Rewritten` module: the user's tensors under the
user's names, and two pieces of generated code, one captured in evaluation mode and one in training
mode, so that dropout, stochastic depth, statistics and auxiliary outputs are those of the original
in either mode.

What Python decides at run time is decided once and for all while capturing: a layer dropped by
`random.random()`, a branch on the precision of an input, the mode of a single submodule.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch.func import functional_call
from torch.utils import _pytree as pytree

from prunella.coupling import couple
from prunella.coupling.resizing import mask_from, resized
from prunella.errors import ConfigError, PrunellaError
from prunella.graph import Graph, Ref
from prunella.masking.slicing import take
from prunella.masking.spectral import estimates_cut, settle
from prunella.model.blame import first_line
from prunella.model.carrying import carry
from prunella.model.containers import opaque_in
from prunella.model.examples import Arguments, make
from prunella.model.structure import canonical_names, device_of, tensors
from prunella.plan import Groups, Plan
from prunella.rewriting.emitting import emit
from prunella.rewriting.following import Second, enlarged, second_captures
from prunella.rewriting.generated import Rewritten, Way, bound, signature_of
from prunella.tracing import trace

log = logging.getLogger("prunella")


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
        inputs = make(plan.example, 0, device_of(model))
    if groups is None:
        groups = couple(trace(model, *inputs), form="graph", heads=plan.heads)
    evaluating = _way(model, plan, groups, inputs, training=False)
    training = _training_way(model, plan, inputs) or evaluating
    made = _assembled(model, plan, (evaluating, training))
    if training is not evaluating and not _trains(made, inputs):
        made = _assembled(model, plan, (evaluating, evaluating))
    carry(made, model, plan)
    return made.train(model.training)


# -- code


def _way(model: nn.Module, plan: Plan, groups: Groups, inputs: Arguments, *, training: bool) -> Way:
    graph = groups.graph
    _check(model, graph)
    lost = sorted({kind.__name__ for kind in opaque_in(graph.returns)})
    if lost and not training:
        log.warning("rewritten, `%s` returns None for its %s", type(model).__name__, lost)
    takes = bound(signature_of(model), *graph.takes)
    called = {arg.name: name for name, arg in takes.items() if isinstance(arg, Ref)}
    names = {name: called.get(name, name) for name in graph.inputs}
    prefix = "_training_constant_" if training else "_constant_"
    constants = {name: f"{prefix}{i}" for i, name in enumerate(graph.constants)}
    sizes = resized(groups, mask_from(groups, plan))
    for second in chain(second_captures(model, graph, inputs, training=training), [None]):
        program = emit(sizes, second, inputs=names, constants=constants, device=device_of(model))
        if not program.stuck:
            break
        log.debug("cannot tell what follows the inputs: %s", program.stuck)
    held = {constants[name]: tensor for name, tensor in graph.constants.items()}
    return Way(takes, _sizes(graph, second), program, graph.returns, held)


def _sizes(graph: Graph, second: Second | None) -> dict[str, tuple[int | None, ...]]:
    """Return the shapes of the inputs, None for the sizes that a second capture shows are free."""
    shapes = {name: graph.values[name].shape for name in graph.inputs}
    others = {name: second.shapes[name] for name in graph.inputs} if second else shapes
    return {
        name: tuple(a if a == b else None for a, b in zip(shape, others[name], strict=True))
        for name, shape in shapes.items()
    }


def _check(model: nn.Module, graph: Graph) -> None:
    if graph.recorded:
        raise ConfigError(
            f"`{type(model).__name__}` cannot be rewritten: its course depends on the data, so "
            "that its graph is the record of a single run. Exclude the modules whose sizes are "
            "written into its code"
        )


# -- training mode


def _training_way(model: nn.Module, plan: Plan, inputs: Arguments) -> Way | None:
    """Capture and rewrite the model in training mode; None where that does not work."""
    more = enlarged(inputs)  # batch norms do not take a single sample
    problem: Exception | None = None
    for given in (more, inputs) if more else (inputs,):
        try:
            graph = trace(model, *given, training=True)
            groups = couple(graph, form="graph", heads=plan.heads)
            return _way(model, plan, groups, given, training=True)
        except PrunellaError as error:
            problem = problem or error
    _warn(model, problem)
    return None


def _warn(model: nn.Module, problem: Exception | None) -> None:
    log.warning(
        "rewritten, `%s` computes in training mode what it does in evaluation mode (no dropout, no "
        "new statistics), since its training mode could not be rewritten: %s",
        type(model).__name__,
        first_line(problem) if problem else "",
    )


def _trains(made: Rewritten, inputs: Arguments) -> bool:
    """Say whether the code of training mode fits the tensors, without computing anything."""
    given = enlarged(inputs) or inputs
    try:
        with _quiet(), fake_tensor.FakeTensorMode(allow_non_fake_inputs=True) as mode:
            args, kwargs = pytree.tree_map_only(Tensor, mode.from_tensor, given)
            fake: dict[str, Tensor] = {
                name: mode.from_tensor(tensor) for name, tensor in tensors(made).items()
            }
            functional_call(made.train(), fake, args, kwargs)
    except Exception as error:  # noqa: BLE001 - whatever an operator raises
        _warn(made, error)
        return False
    return True


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the framework from logging a failure that is expected and told otherwise."""
    level = fake_tensor.log.level
    fake_tensor.log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        fake_tensor.log.setLevel(level)


# -- tensors


def _assembled(model: nn.Module, plan: Plan, ways: tuple[Way, Way]) -> Rewritten:
    """Give the code the tensors of the original that it uses, cut, under all their names."""
    made = Rewritten(type(model).__name__, signature_of(model), ways)
    used = {name for way in ways for name in way.program.tensors}
    found = tensors(model)
    cut: dict[str, Tensor] = {}
    for alias, name in canonical_names(model).items():
        if name not in used:
            continue
        if name not in cut:
            smaller = take(found[name].detach(), plan.kept.get(name, {}))
            learns = isinstance(found[name], nn.Parameter)
            cut[name] = nn.Parameter(smaller, found[name].requires_grad) if learns else smaller
        path, _, leaf = alias.rpartition(".")
        fleeting = model.get_submodule(path)._non_persistent_buffers_set
        made.hold(alias, cut[name], persistent=leaf not in fleeting)
    settle(cut, [each for each in estimates_cut(model, plan.kept) if each.weight in cut])
    return made
