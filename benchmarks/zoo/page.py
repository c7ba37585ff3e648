"""The page about coverage: a summary, the protocol, and a table for each collection."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.zoo.catalogue import Collection
from benchmarks.zoo.row import STAGES, Row

MUCH = 0.6
"""A network that keeps more of its MACs than this at ratio 0.5 has its reasons in the table."""

PROTOCOL = """\
Every network is built by its library with random weights, pruned by one call,
`prunella.prune(model, inputs, ratio=0.5)`, and asked for nothing else: no ignored layers, no
number of heads. Convolutions and linear layers have variance-preserving weights; what a library
starts as a constant (norms, biases, layer scales, last layers) is drawn; batch-norm statistics are
measured on random images and moved at random: no fault hides behind zeros and ones. Inputs are the
smallest that keep the structure (windows, shifts, pyramid levels). Detectors let every box pass,
since no score of a random network is high. Each network has a process of its own, on one thread.

- *form*: `class` is the user's own class, `graph` the captured graph rewritten.
- *error*: the certificate's: the largest difference between the pruned and the masked model's
  outputs, relative to the largest output, in float64 unless said.
- *signal*: how far two random inputs differ at the pruned model's output, on the same scale; near 0
  the error would prove nothing.
- *MACs*, *params*: shares that are left; the prediction from the plan and the count on the pruned
  model agree, unless *checks* says no.
- *units*: channels that may be cut (a whole attention head is one); *groups* of them; *frozen*
  groups that may not be cut.
- *seconds* of one core: {stages}.
- *GB*: peak memory of the process, its libraries included.
- *checks*: `C` costs as predicted; `L` saved, loaded into a fresh instance, the same outputs; `E`
  exports with `torch.export`; `T` takes a training step with a finite loss, in which every
  parameter gets a gradient that gets one in the dense model. A small letter: not so, and *notes*
  says why. `-`: the dense model does not either.
- *notes*: what went wrong; and where more than 60% of the MACs are left, what holds them: the
  reason, and the share of the MACs of operators of which it freezes a side.
"""


@dataclass(frozen=True)
class Part:
    """A collection, the versions it was run with, and its rows."""

    collection: Collection
    versions: str
    rows: list[Row]


def page(parts: Sequence[Part]) -> str:
    """Write the page in Markdown."""
    names = " ".join(part.collection.name for part in parts)
    lines = [
        "# Coverage",
        "",
        f"Written by `python -m benchmarks.zoo {'all' if len(parts) > 1 else names}`.",
        "",
        *_summary(parts),
        "",
        "## How it was measured",
        "",
        PROTOCOL.format(stages=" · ".join(STAGES)),
    ]
    for part in parts:
        lines += _section(part)
    return "\n".join(lines).rstrip() + "\n"


def _summary(parts: Sequence[Part]) -> list[str]:
    lines = [
        "| collection | pruned and proven | unchanged | certificate failed | failed "
        "| class / graph | largest error | median MACs left | over 60% | every check stood "
        "| median seconds without proof | longest |",
        "| --- " * 12 + "|",
    ]
    for part in parts:
        rows = [row for row in part.rows if row.status == "ok"]
        count = Counter(row.status for row in part.rows)
        forms = Counter(row.form for row in rows)
        spent = [_unproven(row) for row in rows]
        cells = [
            part.collection.title,
            f"**{len(rows)} of {len(part.rows)}**",
            count["nothing removed"],
            count["certificate failed"],
            count["failed"],
            f"{forms['class']} / {forms['graph']}",
            f"{max((row.error or 0 for row in rows), default=0):.1e}",
            f"{median([row.macs_left for row in rows] or [1]):.1%}",
            sum(row.macs_left > MUCH for row in rows),
            sum(row.whole for row in rows),
            f"{median(spent or [0]):.1f}",
            f"{max(spent, default=0):.1f}",
        ]
        lines.append(_cells(cells))
    return lines


def _unproven(row: Row) -> float:
    return row.seconds.get("all", 0.0) - row.seconds.get("certify", 0.0)


def _section(part: Part) -> list[str]:
    limits = Counter(row.limits for row in part.rows)
    usual, *others = [limit for limit, _ in limits.most_common()]
    more = "".join(f"; {s} s and {gb} GB for {limits[s, gb]} of them" for s, gb in others)
    return [
        f"## {part.collection.title}",
        "",
        f"{part.versions}. Limits: {usual[0]} s and {usual[1]} GB a network{more}.",
        "",
        "| network | form | error | signal | MACs | params | units | groups | frozen | seconds "
        "| GB | checks | notes |",
        "| --- " * 13 + "|",
        *(_row(row) for row in part.rows),
        "",
    ]


def _row(row: Row) -> str:
    if row.status != "ok":
        said = f"**{row.status}**" + (f" in {row.stage}" if row.stage else "")
        return _cells([row.name, said, *[""] * 10, row.why])
    return _cells(
        [
            row.name,
            row.form,
            f"{row.error:.0e}" + ("" if row.dtype == "float64" else f" {row.dtype}"),
            "" if row.signal is None else f"{row.signal:.2g}",
            f"{row.macs_left:.0%}",
            f"{row.params_left:.0%}",
            row.units,
            row.groups,
            row.frozen,
            " · ".join(f"{row.seconds.get(stage, 0.0):.1f}" for stage in STAGES),
            f"{row.memory_gb:.1f}",
            _checks(row),
            _notes(row),
        ]
    )


def _checks(row: Row) -> str:
    letters = ""
    for check in ("costs", "loads", "exports", "trains"):
        said = row.checks.get(check, "not run")
        letter = check[0].upper() if said == "yes" else check[0]
        letters += "-" if said == "dense does not either" else letter
    return letters


def _notes(row: Row) -> str:
    notes = [
        f"{check}: {said}"
        for check, said in row.checks.items()
        if said not in ("yes", "dense does not either")
    ]
    if row.uneven is not None:
        notes.append(f"uneven ratios: error {row.uneven:.0e}")
    if row.macs_left > MUCH:
        notes += [
            f"{reason}: {share:.0%}" for reason, _, _, share in row.reasons[:4] if share >= 0.01
        ]
    return "; ".join(notes)


def _cells(cells: Sequence[object]) -> str:
    texts = (str(cell).replace("|", "\\|").replace("\n", " ")[:400] for cell in cells)
    return "| " + " | ".join(texts) + " |"
