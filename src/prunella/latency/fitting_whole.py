"""A latency model of a runtime that lets nobody look inside: from whole networks' times alone.

There are fewer networks than operators, so operators of one kind share what a multiply-accumulate
of them takes, at each step that widths may have; so do the bytes that they read and write.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from prunella.costs.memory import peak
from prunella.costs.predicted import Term, param_terms
from prunella.costs.timed import Part, Region
from prunella.costs.widths import PLAIN, Step, Width
from prunella.coupling.resizing import flow_of
from prunella.latency.fitting import STEPS, columns_of, solve
from prunella.latency.measured import Sample
from prunella.plan import Groups


def fit_whole(
    groups: Groups, widths: Sequence[Width], samples: Sequence[Sample]
) -> tuple[Region, ...]:
    """Fit the times of whole networks.

    Args:
        groups: The groups of the network.
        widths: Its widths.
        samples: What was measured.
    """
    lengths = np.array([sample.lengths for sample in samples])
    times = np.array([sample.whole for sample in samples])
    features = [("calls", [Part(1.0, (), ())]), *_features(groups, widths)]
    columns = np.stack(
        [
            columns_of([(part.widths, part.steps) for part in parts], lengths)
            @ np.array([part.ms for part in parts])
            for _, parts in features
        ],
        axis=1,
    )
    shares = solve(columns, times)
    return tuple(
        Region(name, "", tuple(Part(part.ms * share, part.widths, part.steps) for part in parts))
        for (name, parts), share in zip(features, shares.tolist(), strict=True)
        if share > 0
    )


def _features(groups: Groups, widths: Sequence[Width]) -> list[tuple[str, list[Part]]]:
    """List what time may be proportional to, as sums of products of stepped widths."""
    index = {width.channels.tobytes(): i for i, width in enumerate(widths)}
    op = {node.name: node.op for node in groups.graph.nodes}
    kinds: dict[str, list[Term]] = defaultdict(list)
    for term in groups.terms:
        kinds[f"{op[term.node]}, {len(term.dims)} widths"].append(Term(term.factor, term.dims))
    kinds["activations"] = list(peak(flow_of(groups)).terms)
    kinds["weights"] = param_terms(groups)
    made = []
    for kind, terms in kinds.items():
        for step in STEPS:
            parts = [_part(term, step, widths, index) for term in terms]
            if step == PLAIN or any(s == step for part in parts for s in part.steps):
                made.append((f"{kind}, {step}", parts))
    return made


def _part(term: Term, step: Step, widths: Sequence[Width], index: dict[bytes, int]) -> Part:
    """Write a cost as a product of widths; a dimension that is none of them stays whole."""
    factor, found = term.factor, []
    for dim in term.dims:
        channels, times = np.unique(dim, return_counts=True)
        if (times == times[0]).all():
            factor *= int(times[0])
        else:
            channels = np.repeat(channels, times)
        if (w := index.get(channels.astype(np.int64).tobytes())) is None:
            factor *= len(channels)
        else:
            found.append(w)
    steps = tuple(step if widths[w].alone else PLAIN for w in found)
    return Part(float(factor), tuple(found), steps)
