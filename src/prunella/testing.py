"""Check operator rules registered from outside: what a rule claims, against an experiment.

The network of the check makes a tensor by a linear layer, sends it through the user's expression
and reads all of the result with another linear layer:

    input -> produce -> expression -> consume
"""

import copy
from collections.abc import Callable, Sequence
from math import prod

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from prunella.allocating import allocate
from prunella.coupling import couple
from prunella.errors import NothingToPruneError, PrunellaError
from prunella.plan import Axis, Form, Groups
from prunella.scoring import score
from prunella.tracing import trace
from prunella.transforming import transform

Expression = Callable[[Tensor], Tensor]

_FORMS: tuple[Form, ...] = ("class", "graph")
_DRAWS = 8
_MADE, _READ = Axis("produce.weight", 0), Axis("consume.weight", 1)


def check_rule(
    expression: Expression,
    shape: tuple[int, ...] = (2, 8, 6, 6),
    *,
    dim: int = 1,
    ratios: Sequence[float] = (0.25, 0.5),
    freezes: bool = False,
    coarser: bool = False,
    dtype: torch.dtype = torch.float64,
) -> None:
    """Assert that the rules of the operators in an expression are right.

    The groups are compared with an experiment: which elements of the result change when one channel
    of the tensor does. Then the network is pruned, as its own class and as a rewritten graph (which
    needs `prunella.rules.resizes` for operators that take sizes), and proves itself.

    Where a rule marks statistics over channels (a softmax, a norm), every channel reaches every
    other and removing one is not zeroing it: there the proof alone decides.

    Args:
        expression: A function or module of one tensor that gives one tensor. Dimension 0 is the
            batch and stays.
        shape: The tensor's shape.
        dim: Where its channels are.
        ratios: Shares of the channels to remove.
        freezes: Whether the channels are meant to stay.
        coarser: Whether more may be cut together than the experiment shows to hang together (heads
            that go as a whole).
        dtype: Precision of the network.

    Raises:
        AssertionError: A rule is wrong or missing; the message names the channels and elements.

    Example:
        >>> import torch
        >>> from prunella.testing import check_rule
        >>> check_rule(lambda x: x * x.sigmoid())
        >>> check_rule(lambda x: x.cumsum(1))
        Traceback (most recent call last):
        ...
        AssertionError: no channel may be cut: is worked along in order (`aten.cumsum.default` ...)
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = torch.randn(shape, dtype=dtype)
        expression = _own(expression, dtype)
        reached = _experiment(expression, x, dim)
        model = _Between(expression, shape, dim, reached.shape[1:]).to(dtype).eval()
        image = torch.randn(*_channels_last(shape, dim), _INPUTS, dtype=dtype)
        for form in _FORMS:
            groups = couple(trace(model, image), form=form)
            if not _are_free(groups, freezes):
                continue
            if not groups.marked:
                _compare(groups, reached.flatten(1), reached.shape[1:], coarser)
            for ratio in ratios:
                _prune(model, groups, image, ratio)


_INPUTS = 4


class _Between(nn.Module):
    """A linear layer along the channels, the expression, and one over all that it gives."""

    def __init__(
        self, expression: Expression, shape: tuple[int, ...], dim: int, made: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.produce = nn.Linear(_INPUTS, shape[dim])
        self.expression = expression  # registered, where it is a module
        self.consume = nn.Linear(prod(made), 3)
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        made = self.expression(self.produce(x).movedim(-1, self.dim).contiguous())
        result: Tensor = self.consume(made.flatten(1).to(x.dtype))
        return result


def _own(expression: Expression, dtype: torch.dtype) -> Expression:
    """Return the expression as a part of a network that is cast and copied."""
    if isinstance(expression, nn.Module):
        return copy.deepcopy(expression).to(dtype).eval()
    return lambda x: expression(x)  # a custom operator itself cannot be copied


def _channels_last(shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
    """Return the shape without its channels."""
    dim %= len(shape)
    return shape[:dim] + shape[dim + 1 :]


@torch.no_grad()
def _experiment(expression: Expression, x: Tensor, dim: int) -> Tensor:
    """Change one channel after the other; tell which elements change: `[channels, ...]`, bool.

    Several values are tried, large and small ones: an activation may swallow some.
    """
    wanted = expression(x.clone())
    if not isinstance(wanted, Tensor) or wanted.ndim < 2 or wanted.shape[0] != x.shape[0]:
        raise AssertionError("the expression has to give one tensor that keeps dimension 0")
    if not torch.equal(wanted, expression(x.clone())):
        raise AssertionError("the expression gives something else every time: seed it, or eval()")
    reached = torch.zeros(x.shape[dim], *wanted.shape[1:], dtype=torch.bool)
    for draw in range(_DRAWS):
        base = torch.randn_like(x)
        wanted = expression(base.clone())
        for channel in range(x.shape[dim]):
            changed = base.clone()
            changed.select(dim, channel).copy_(torch.randn_like(base.select(dim, 0)) * 4**draw / 16)
            reached[channel] |= (expression(changed) != wanted).any(0)
    return reached


def _are_free(groups: Groups, freezes: bool) -> bool:
    """Say whether channels may be cut in this form, and whether that is as it was meant to be."""
    if any(_MADE in group.axes for group in groups):
        if freezes:
            raise AssertionError("the channels are meant to stay, and may be cut")
        return True
    if not freezes and not (groups.form == "class" and groups.code_binds):
        reasons = {str(r): None for g in groups.frozen if _MADE in g.axes for r in g.frozen}
        raise AssertionError(f"no channel may be cut: {'; '.join(reasons)}")
    return False


def _compare(groups: Groups, reached: Tensor, shape: tuple[int, ...], coarser: bool) -> None:
    """Compare the groups with the experiment."""
    frozen = {n for g in groups.frozen for n in range(g.start, g.start + g.channels)}
    made, read = (
        np.array([-1 if n in frozen else n for n in groups.axes[axis].tolist()])
        if axis in groups.axes
        else np.full(size, -1)
        for axis, size in zip((_MADE, _READ), reached.shape, strict=True)
    )
    found = reached.numpy()
    for channel, element in np.argwhere(found & (made[:, None] != read[None])).tolist():
        where = _element(element, shape)
        if made[channel] < 0:
            raise AssertionError(f"channel {channel} stays and reaches {where}, which may be cut")
        known = "stays" if read[element] < 0 else f"is cut with {_channels(made, read[element])}"
        raise AssertionError(f"channel {channel} reaches {where}, which {known}")
    if not coarser:
        _are_needed(made, found)


def _are_needed(made: np.ndarray, found: np.ndarray) -> None:
    """Assert that channels which are cut together reach something in common."""
    _, parts = connected_components(csr_array(found.astype(int) @ found.T.astype(int)))
    for number in sorted(set(made[made >= 0].tolist())):
        together = np.flatnonzero(made == number)
        if len(set(parts[together].tolist())) > 1:
            raise AssertionError(
                f"{_channels(made, number)} are cut together and have nothing in common; "
                "`coarser=True` allows it"
            )


def _channels(made: np.ndarray, number: int) -> str:
    listed = np.flatnonzero(made == number).tolist()
    return f"channel{'s' if len(listed) > 1 else ''} {', '.join(map(str, listed)) or '(none)'}"


def _element(index: int, shape: tuple[int, ...]) -> str:
    """Name an element of the result as it is indexed: `[:, 3, 0, 0]`."""
    return f"[:, {', '.join(map(str, np.unravel_index(index, shape)))}]"


def _prune(model: nn.Module, groups: Groups, image: Tensor, ratio: float) -> None:
    """Remove a share of the channels and let the pruned network prove itself."""
    try:
        plan = allocate(groups, score(model, groups), ratio)
    except NothingToPruneError:
        return  # fewer than go at once
    try:
        transform(model, plan, image)
    except PrunellaError as error:
        kept = plan.kept.get(_MADE.tensor, {}).get(_MADE.dim)
        raise AssertionError(
            f'pruned by {ratio} in form "{groups.form}" (channels {kept} kept): {error}'
        ) from error
