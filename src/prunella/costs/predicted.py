"""Read the costs of a plan off the graph, without building the model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from prunella.costs.widths import PLAIN, Step
from prunella.graph import Value
from prunella.plan import Costs, Groups, MacTerm


@dataclass(frozen=True, eq=False)
class Term:
    """A factor times how many of the channels (numbers) of each dimension are kept.

    `steps` says of each dimension how its length counts; without, as it is.
    """

    factor: int
    dims: tuple[np.ndarray, ...]
    steps: tuple[Step, ...] = ()

    def stepped(self) -> Iterator[tuple[np.ndarray, Step]]:
        """List the dimensions, each with how it counts."""
        return zip(self.dims, self.steps or (PLAIN,) * len(self.dims), strict=True)


def predict(groups: Groups, mask: np.ndarray) -> Costs:
    """Predict what is left of the costs.

    Costs are polynomials in the sizes of the groups, so the result is exact. Activations are left
    out: see `costs.memory`.

    Args:
        groups: The groups of a network.
        mask: For every channel number, whether it is kept: bool, `[groups.channels]`.
    """
    macs = evaluate(mac_terms(groups), mask)
    return Costs(
        macs // groups.graph.samples,
        evaluate(param_terms(groups), mask),
        evaluate(byte_terms(groups), mask),
    )


def evaluate(terms: Sequence[Term], mask: np.ndarray) -> int:
    """Sum the terms for one mask; number -1 in a term is what is never cut."""
    mask = np.append(mask, True)
    return sum(
        prod((t.factor, *(int(step(mask[dim].sum())) for dim, step in t.stepped()))) for t in terms
    )


def mac_terms(groups: Groups) -> list[Term]:
    """List the multiply-accumulates of every operator, of all samples of the example."""
    starts = np.array([group.start for group in groups], dtype=np.int64)
    return [Term(term.factor, term.dims, _steps(term, starts)) for term in groups.terms]


_SUM = Step(least=2)


def _steps(term: MacTerm, starts: np.ndarray) -> tuple[Step, ...]:
    """Let a sum over a single channel count as none; one over several groups never gets there."""
    if not term.sums:
        return ()
    *_, summed = term.dims
    owners = np.unique(np.searchsorted(starts, summed, side="right"))
    return (PLAIN,) * (len(term.dims) - 1) + (_SUM if len(owners) == 1 else PLAIN,)


def param_terms(groups: Groups) -> list[Term]:
    """List the elements of every parameter; a tied one once."""
    return [term for value, term in _elements(groups) if value.kind == "parameter"]


def byte_terms(groups: Groups) -> list[Term]:
    """List the bytes of every parameter and buffer, each in the type it is stored in."""
    return [
        Term(term.factor * value.dtype.itemsize, term.dims) for value, term in _elements(groups)
    ]


def _elements(groups: Groups) -> list[tuple[Value, Term]]:
    """List the elements of every parameter and buffer; a tied one once."""
    numbers: dict[str, dict[int, np.ndarray]] = {}
    for axis, number in groups.axes.items():
        row = number[0] if number.ndim == 2 else number  # every conv group keeps equally many
        numbers.setdefault(axis.tensor, {})[axis.dim] = row
    found = []
    for value in groups.graph.values.values():
        if value.kind in ("parameter", "buffer"):
            dims = numbers.get(value.source, {})
            rest = (size for dim, size in enumerate(value.shape) if dim not in dims)
            found.append((value, Term(prod(rest), tuple(dims.values()))))
    return found
