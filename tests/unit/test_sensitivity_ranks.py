"""Groups shared among the processes of a launcher: the same numbers in all, each measured once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import prunella
from prunella.errors import ConfigError
from prunella.sensitivity import Sensitivity, analyze
from tests.models import ZOO

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, sys
from datetime import timedelta
from pathlib import Path
import torch, torch.distributed as dist
from prunella.errors import PrunellaError
from prunella.sensitivity import analyze
from tests.unit.test_sensitivity_ranks import chance, setup

folder, rank, how = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2,
                        timeout=timedelta(seconds=60))
calls = 0

def judge(model):
    global calls
    calls += 1
    if how == "fails" and rank == 1 and calls == 3:
        raise ValueError("no such label")
    if how == "full" and rank == 0 and calls == 3:
        (folder / "journal").unlink()
        (folder / "journal").mkdir()
    return chance(model)

record = folder / "journal" if rank == 0 else folder / "never" / "journal"
try:
    found = analyze(*setup(), judge, metric="chance", higher_is_better=True,
                    ratios=(0.25, 0.5, 0.75), together=True, record=record)
    told = {"found": found.to_json(), "calls": calls}
except PrunellaError as error:
    told = {"error": str(error), "calls": calls}
(folder / f"{how}{rank}.json").write_text(json.dumps(told))
dist.destroy_process_group()
"""


def setup() -> tuple:
    case = ZOO["residual"]
    model = case.model()
    groups = prunella.couple(prunella.trace(model, case.inputs()))
    return model, groups, prunella.score(model, groups, "magnitude")


def chance(model: object) -> float:
    import torch

    with torch.no_grad():
        return float(model(*ZOO["residual"].inputs(seed=3)).softmax(1)[:, 1].mean())  # type: ignore[operator]


def both(folder: Path, how: str) -> list[dict]:
    """Run two processes; return what each of them tells."""
    (folder / "store").unlink(missing_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(folder), str(rank), how],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    errors = [process.communicate(timeout=140)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], errors
    return [json.loads((folder / f"{how}{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
def test_two_processes_share_the_groups(tmp_path: Path) -> None:
    plain = analyze(
        *setup(), chance, metric="chance", higher_is_better=True, ratios=(0.25, 0.5, 0.75), memory=0
    )
    cells = len(plain.curves) * 3
    told = both(tmp_path, "well")
    for one in told:
        found = Sensitivity.from_json(one["found"])
        assert found.curves == plain.curves
        assert one["calls"] < 1 + cells  # the dense model, and not all of the rest
    assert sum(one["calls"] for one in told) == 2 + cells
    again = both(tmp_path, "again")
    assert [one["calls"] for one in again] == [0, 0]
    assert [one["found"] for one in again] == [one["found"] for one in told]
    assert not (tmp_path / "never").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "errors"),
    [
        ("fails", ["process 1 failed: ValueError: no such label"] * 2),
        ("full", ["cannot be written", "process 0 of 2 stopped"]),
    ],
)
def test_where_one_fails_the_others_do_not_wait(
    tmp_path: Path, how: str, errors: list[str]
) -> None:
    told = both(tmp_path, how)
    for one, error in zip(told, errors, strict=True):
        assert error in one["error"]


def test_alone_there_is_nobody_to_share_with() -> None:
    with pytest.raises(ConfigError, match="there is no process group"):
        analyze(*setup(), chance, metric="chance", higher_is_better=True, together=True)
