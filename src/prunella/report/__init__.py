"""The report of a run: one HTML file that carries all it needs and asks the network for nothing."""

from dataclasses import asdict
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from plotly.offline import get_plotlyjs

from prunella.record import RunRecord
from prunella.report import charts, wording
from prunella.workspace import write_atomic

FILE = "report.html"

_HERE = Path(__file__).parent


def write(folder: Path, run: RunRecord) -> Path:
    """Write the report of `run` into `folder`.

    Args:
        folder: Made if it is missing; a report already there is replaced in one step.
        run: What the run did.

    Returns:
        The path of the HTML file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    write_atomic(path, render(run).encode())
    return path


def render(run: RunRecord) -> str:
    """Make the page of `run` as one string of HTML."""
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= wording.FILTERS
    page = environment.get_template("page.html.jinja")
    drawn = charts.all_charts(run)
    return page.render(
        run=run,
        rows=wording.headline_rows(run),
        title=wording.title(run),
        verdict=wording.verdict(run),
        reasons=wording.by_reason(run.frozen),
        snippet=wording.snippet(run),
        charts=drawn,
        drawn=[asdict(chart) for section in drawn.values() for chart in section],
        style=(_HERE / "page.css").read_text(encoding="utf-8"),
        script=(_HERE / "page.js").read_text(encoding="utf-8"),
        plotly=get_plotlyjs(),
    )
