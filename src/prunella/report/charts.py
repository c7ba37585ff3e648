"""The charts of the report, as plain plotly figures; the page adds colours of text and grid."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from prunella.record import AttemptRecord, RoundRecord, RunRecord, SensitivityRecord
from prunella.report.wording import measure, percent, setting

# Readable on a light and on a dark page alike.
VIOLET, GREEN, ORANGE, GRAY, BLUE = "#8b5cf6", "#2fa36b", "#e0662f", "#8b8b98", "#3b82f6"
LINES = (BLUE, ORANGE, GREEN, "#d946a6", "#b8860b", "#14a3b8", "#94663f", GRAY)
# From nothing to a lot: the page shows through where nothing is lost.
HEAT = [[0.0, "rgba(224,102,47,0.04)"], [0.5, "rgba(224,102,47,0.55)"], [1.0, "rgb(176,42,32)"]]
LONGEST_NAME = 30
_GAPS = (
    "A cross: the metric was no finite number there, or the model raised: that counts as the worst."
)


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart of the page.

    Attributes:
        name: Its id on the page.
        title: What it shows, in a few words.
        caption: How to read it.
        height: In pixels of the page.
        figure: Plotly's JSON, `data` and `layout`.
    """

    name: str
    title: str
    caption: str
    height: int
    figure: dict[str, Any]


def all_charts(run: RunRecord) -> dict[str, tuple[Chart, ...]]:
    """Draw all charts that the run has data for, by the section they stand in."""
    return {
        "rounds": tuple(_rounds(run)),
        "learning": tuple(_learning(run)),
        "sensitivity": tuple(_sensitivity(run.sensitivity)),
    }


def _rounds(run: RunRecord) -> Iterator[Chart]:
    attempts = [(r, a) for r in run.rounds for a in r.attempts]
    finished = [(r, a) for r, a in attempts if a.metric is not None]
    if not finished:
        return
    yield _way_down(run, finished)
    if any(a.pruned_metric is not None for _, a in finished):
        yield _healing(run, finished)


def _way_down(run: RunRecord, attempts: Sequence[tuple[RoundRecord, AttemptRecord]]) -> Chart:
    accepted = [a for _, a in attempts if a.accepted]
    rejected = [a for _, a in attempts if not a.accepted]
    path: list[tuple[float, float | None]] = [(1.0, run.baseline.valid)]
    path += [(a.macs / run.baseline.macs, a.metric) for a in accepted]
    traces = [_points("kept", path, VIOLET, "circle", "lines+markers")]
    if rejected:
        points = [(a.macs / run.baseline.macs, a.metric) for a in rejected]
        traces.append(_points("not good enough", points, ORANGE, "x-thin-open", "markers"))
    figure = go.Figure(traces)
    if run.floor is not None:
        figure.add_hline(
            run.floor,
            line={"dash": "dash", "color": ORANGE, "width": 1.5},
            annotation={
                "text": f"your floor: {measure(run.floor)}",
                "font": {"color": ORANGE},
                "xanchor": "left",
                "x": 0,
            },
        )
    budget = _share_of(run.budget.get("macs"), run.baseline.macs)
    least = 100 * min(share for share, _ in path)
    if budget is not None:
        least = min(least, 100 * budget)
        figure.add_vline(100 * budget, line={"dash": "dot", "color": GREEN, "width": 1.5})
        figure.add_annotation(
            x=100 * budget, y=1, yref="paper", text="your<br>budget", showarrow=False,
            font={"color": GREEN}, xanchor="left", yanchor="top", xshift=3, align="left",
        )  # fmt: skip
    _axes(figure, "MACs left", f"{run.metric} after finetuning")
    # From left to right down to the budget, with room for its name.
    figure.update_xaxes(range=[100 + 0.06 * (100 - least), least - 0.2 * (100 - least)])
    figure.update_xaxes(ticksuffix="%")
    return _chart(
        "way-down",
        "The way down",
        "Every round takes away more and heals again. Measured on the validation data.",
        360,
        figure,
    )


def _healing(run: RunRecord, attempts: Sequence[tuple[RoundRecord, AttemptRecord]]) -> Chart:
    labels = [_attempt_label(r, a) for r, a in attempts]
    before = [a.pruned_metric for _, a in attempts]
    after = [a.metric for _, a in attempts]
    stems_x = [x for label in labels for x in (label, label, None)]
    stems_y = [y for pair in zip(before, after, strict=True) for y in (*pair, None)]
    stems = go.Scatter(
        x=stems_x, y=stems_y, mode="lines", showlegend=False, hoverinfo="skip",
        line={"color": "rgba(139,92,246,0.35)", "width": 5},
    )  # fmt: skip
    hover = "%{x}: %{y:.4g}<extra>%{fullData.name}</extra>"
    figure = go.Figure(
        [
            stems,
            go.Scatter(
                x=labels, y=before, mode="markers", name="just pruned", hovertemplate=hover,
                marker={"color": ORANGE, "size": 9, "symbol": "circle-open", "line": {"width": 2}},
            ),
            go.Scatter(
                x=labels, y=after, mode="markers", name="finetuned", hovertemplate=hover,
                marker={"color": VIOLET, "size": 10},
            ),
        ]
    )  # fmt: skip
    if run.baseline.valid is not None:
        figure.add_hline(run.baseline.valid, line={"dash": "dot", "color": GRAY, "width": 1.5})
    _axes(figure, None, run.metric)
    figure.update_xaxes(type="category")
    return _chart(
        "healing",
        "How it healed",
        "Right after pruning, and after finetuning; the dotted line is the dense model.",
        360,
        figure,
    )


def _learning(run: RunRecord) -> Iterator[Chart]:
    for round_ in run.rounds:
        for attempt in round_.attempts:
            by_metric = any(e.metric is not None for x in attempt.experiments for e in x.epochs)
            traces = list(_learning_traces(attempt, by_metric))
            if not traces:
                continue
            figure = go.Figure(traces)
            _axes(figure, "epoch", run.metric if by_metric else "training loss")
            figure.update_xaxes(dtick=1 if _longest(attempt) <= 12 else None, tickformat="d")
            yield _chart(
                f"learning-{round_.number}-{attempt.number}",
                _attempt_label(round_, attempt),
                "",
                260,
                figure,
            )


def _learning_traces(attempt: AttemptRecord, by_metric: bool) -> Iterator[go.Scatter]:
    for experiment in attempt.experiments:
        epochs = [e for e in experiment.epochs if (e.metric if by_metric else e.loss) is not None]
        if not epochs:
            continue
        color = VIOLET if experiment.best else LINES[experiment.number % len(LINES)]
        settings = "<br>".join(f"{k}: {setting(v)}" for k, v in experiment.settings.items())
        yield go.Scatter(
            x=[e.epoch for e in epochs],
            y=[e.metric if by_metric else e.loss for e in epochs],
            customdata=[measure(e.loss) for e in epochs],
            name=f"experiment {experiment.number}" + (", the best" if experiment.best else ""),
            mode="lines+markers",
            line={
                "color": color,
                "width": 3 if experiment.best else 1.5,
                "dash": "dot" if experiment.state != "complete" else "solid",
            },
            marker={"size": 6 if experiment.best else 5},
            hovertemplate=f"epoch %{{x}}: %{{y:.4g}}, loss %{{customdata}}<br>{settings}",
        )


def _sensitivity(measured: SensitivityRecord | None) -> Iterator[Chart]:
    if measured is None or not measured.curves:
        return
    names = list(measured.curves)
    ticks = [percent(ratio) for ratio in measured.ratios]
    sign = 1 if measured.higher_is_better else -1
    known = [
        [None if value is None else sign * (measured.baseline - value) for value in curve]
        for curve in measured.curves.values()
    ]
    worst = max((value for row in known for value in row if value is not None), default=0.0)
    worst = worst if worst > 0 else 1
    lost = [[worst if value is None else value for value in row] for row in known]
    gaps = [
        (tick, row) for row, each in enumerate(known)
        for tick, value in zip(ticks, each, strict=True) if value is None
    ]  # fmt: skip
    hover = [
        [
            f"{name}: {percent(ratio)} of {measured.channels.get(name, 0)} channels removed"
            f"<br>{measured.metric} {_found(value)}, dense {measure(measured.baseline)}"
            for ratio, value in zip(measured.ratios, measured.curves[name], strict=True)
        ]
        for name in names
    ]
    heat = go.Heatmap(
        x=ticks, y=list(range(len(names))), z=lost, text=hover, hoverinfo="text",
        colorscale=HEAT, zmin=0, zmax=worst, xgap=2, ygap=2,
        colorbar={
            "title": {"text": "lost", "side": "top", "font": {"size": 12}},
            "thickness": 10, "outlinewidth": 0,
            "lenmode": "pixels", "len": min(260, 24 * len(names) + 60), "y": 1, "yanchor": "top",
        },
    )  # fmt: skip
    figure = go.Figure(heat)
    if gaps:
        figure.add_scatter(
            x=[tick for tick, _ in gaps], y=[row for _, row in gaps], mode="markers",
            marker={"symbol": "x-thin-open", "color": "white", "size": 8, "line": {"width": 1.5}},
            hoverinfo="skip", showlegend=False,
        )  # fmt: skip
    _axes(figure, "channels removed from that group alone", None)
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(
        tickvals=list(range(len(names))), ticktext=[_short(n) for n in names],
        autorange="reversed", showgrid=False, zeroline=False, tickfont={"size": 11},
    )  # fmt: skip
    yield _chart(
        "heat",
        f"{measured.metric} lost, group by group",
        "Each row is one group with all others left whole. Pale groups can spare channels; "
        "dark ones cannot." + (f" {_GAPS}" if gaps else ""),
        120 + (24 if len(names) <= 60 else 16) * len(names),
        figure,
    )
    yield _curves(measured, names)


def _found(value: float | None) -> str:
    return "was no finite number" if value is None else measure(value)


def _curves(measured: SensitivityRecord, names: Sequence[str]) -> Chart:
    figure = go.Figure(
        [
            go.Scatter(
                x=[0.0, *(100 * ratio for ratio in measured.ratios)],
                y=[measured.baseline, *measured.curves[name]],
                name=_short(name),
                mode="lines+markers",
                line={"color": LINES[index % len(LINES)], "width": 1.5},
                marker={"size": 4},
                hovertemplate=f"{name}<br>%{{x:.3g}}% removed: %{{y:.4g}}<extra></extra>",
                showlegend=False,
            )
            for index, name in enumerate(names)
        ]
    )
    _axes(figure, "channels removed from that group alone", measured.metric)
    figure.update_xaxes(ticksuffix="%", rangemode="tozero")
    figure.update_layout(hovermode="closest")
    caption = "The same figures as curves; point at one to see which group it is."
    return _chart("curves", "Sensitivity curves", caption, 340, figure)


def _points(
    name: str,
    points: Sequence[tuple[float, float | None]],
    color: str,
    symbol: str,
    mode: str,
) -> go.Scatter:
    return go.Scatter(
        x=[100 * share for share, _ in points],
        y=[metric for _, metric in points],
        name=name,
        mode=mode,
        line={"color": color, "width": 2.5},
        marker={
            "color": color,
            "size": 10,
            "symbol": symbol,
            "line": {"width": 2.5, "color": color},
        },
        hovertemplate="%{x:.1f}% of the MACs left: %{y:.4g}<extra>%{fullData.name}</extra>",
    )


def _axes(figure: go.Figure, x: str | None, y: str | None) -> None:
    common = {"automargin": True, "zeroline": False}
    figure.update_xaxes(title={"text": x, "standoff": 10, "font": {"size": 12.5}}, **common)
    figure.update_yaxes(title={"text": y, "standoff": 10, "font": {"size": 12.5}}, **common)
    figure.update_layout(
        template="none",
        margin={"l": 10, "r": 10, "t": 30, "b": 10},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )


def _chart(name: str, title: str, caption: str, height: int, figure: go.Figure) -> Chart:
    return Chart(name, title, caption, height, figure.to_plotly_json())


def _attempt_label(round_: RoundRecord, attempt: AttemptRecord) -> str:
    name = f"Round {round_.number}"
    return name if len(round_.attempts) == 1 else f"{name}, try {attempt.number}"


def _longest(attempt: AttemptRecord) -> int:
    return max((len(experiment.epochs) for experiment in attempt.experiments), default=0)


def _share_of(bound: float | None, dense: int) -> float | None:
    """Read a budget as a share of the dense model: it is one up to 1, a count above."""
    if bound is None:
        return None
    return bound if bound <= 1 else bound / dense


def _short(name: str) -> str:
    """Cut a long name near its beginning: its end tells it from its neighbours."""
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[:8]}\N{HORIZONTAL ELLIPSIS}{name[9 - LONGEST_NAME :]}"
