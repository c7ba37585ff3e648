"""Settings of runs of the tiny task that take seconds."""

from pathlib import Path
from typing import Any

from prunella.config import Config, load

TASK = Path(__file__).parent / "tiny_task.py"
QUICK: dict[str, Any] = {
    "task.spec": str(TASK),
    "budget.macs": 0.5,
    "analyze.ratios": (0.5,),
    "finetune.epochs": 1,
    "finetune.trials": 1,
    "run.latency_seconds": 0.05,
    "run.device": "cpu",
}


def quick(folder: Path, **more: Any) -> Config:
    """Set a work folder and whatever else, with `__` for the dot of a setting's name."""
    extra = {key.replace("__", "."): value for key, value in more.items()}
    return load(None, {**QUICK, "run.folder": str(folder), **extra})
