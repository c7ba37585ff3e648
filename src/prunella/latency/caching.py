"""Where measurements stay: one journal for each machine, runtime and network."""

import hashlib
import json
import logging
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from prunella.costs.timed import digest_of
from prunella.errors import WorkspaceError
from prunella.journal import Journal
from prunella.plan import Groups
from prunella.runtimes import Runtime

_SCHEMA = "2"

log = logging.getLogger("prunella")

_LIBRARY = {"torch": "torch", "torch-compile": "torch", "onnxruntime": "onnxruntime"}


def measurements(groups: Groups, runtime: Runtime, seed: int, folder: Path | None) -> Journal:
    """Open the journal of a network on a runtime of this machine.

    Args:
        groups: Its groups.
        runtime: Where it runs.
        seed: Of the plans that are timed.
        folder: Where journals are; by default in `cache_folder()`.

    Raises:
        WorkspaceError: The folder cannot be written to.
    """
    key = {**key_of(groups, runtime), "seed": str(seed)}
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    where = folder or cache_folder() / "latency"
    path = where / f"{name}.jsonl"
    try:
        where.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        raise WorkspaceError(
            f"`{where}`, where measurements are kept, cannot be made: {cause}. Name another folder "
            "with the environment variable PRUNELLA_CACHE"
        ) from cause
    try:
        return Journal(path, key)
    except WorkspaceError as damage:  # two processes wrote it, say; it can be measured again
        log.warning("measurements are begun anew: %s", damage)
        try:
            path.unlink()
        except OSError as cause:
            raise WorkspaceError(
                f"`{path}`, where measurements are kept, is damaged and cannot be removed: "
                f"{cause}. Delete it, or name another folder with the environment variable "
                "PRUNELLA_CACHE"
            ) from cause
        return Journal(path, key)


def key_of(groups: Groups, runtime: Runtime) -> dict[str, str]:
    """Name what measurements depend on: the network, the runtime, the machine."""
    return {
        "schema": _SCHEMA,
        "network": digest_of(groups),
        "runtime": str(runtime),
        "version": _version(_LIBRARY.get(runtime.name, runtime.name)),
        "machine": machine(),
    }


def cache_folder() -> Path:
    """Return the folder for what can be computed again; `PRUNELLA_CACHE` names another one."""
    if given := os.environ.get("PRUNELLA_CACHE"):
        return Path(given)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "prunella"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "prunella"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "prunella"


def machine() -> str:
    """Describe the machine by what decides how fast it is."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{platform.system()} {platform.machine()}, {model}, {cores} cores"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
