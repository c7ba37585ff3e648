"""The work folder: whole results or none, checked, locked, with reasons."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prunella.errors import WorkspaceError
from prunella.files import guard
from prunella.workspace import Workspace, write_atomic

INPUTS = {"weights": "abc", "settings": {"criterion": "magnitude", "ratio": 0.5}}


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "run")


def test_a_record_comes_back_as_written(space: Workspace) -> None:
    space.write("rounds/01/1/prune", INPUTS, {"macs": 5, "kept": (1, 2)})
    found = space.find("rounds/01/1/prune", INPUTS)
    assert found.entry is not None
    assert found.entry.payload == {"macs": 5, "kept": [1, 2]}
    assert "nothing it depends on changed" in found.reason


def test_what_changed_is_the_reason(space: Workspace) -> None:
    space.write("prune", INPUTS, {})
    found = space.find(
        "prune", {"weights": "f" * 64, "settings": {"criterion": "magnitude", "ratio": 0.4}}
    )
    assert found.entry is None
    assert "settings.ratio (0.5 -> 0.4)" in found.reason
    assert "the weights" in found.reason
    assert "criterion" not in found.reason


def test_absent_is_none(space: Workspace) -> None:
    assert space.read("nothing") is None
    assert space.find("nothing", INPUTS).reason == ""


@pytest.mark.parametrize("cut", [0, 1, 40, -3])
def test_truncated_record_names_file_and_command(space: Workspace, cut: int) -> None:
    space.write("sensitivity", INPUTS, {"curves": [1, 2, 3]})
    path = space.folder / "sensitivity.json"
    path.write_text(path.read_text()[:cut])
    with pytest.raises(
        WorkspaceError, match=r"sensitivity\.json` is damaged: .*run `prunella analyze`"
    ):
        space.read("sensitivity")


def test_tampered_record(space: Workspace) -> None:
    space.write("baseline", INPUTS, {"valid": 0.91})
    path = space.folder / "baseline.json"
    path.write_text(path.read_text().replace("0.91", "0.99"))
    with pytest.raises(WorkspaceError, match="does not match its sha256"):
        space.read("baseline")


def test_other_schema(space: Workspace) -> None:
    space.write("baseline", INPUTS, {})
    path = space.folder / "baseline.json"
    data = json.loads(path.read_text())
    data["schema"] = 99
    path.write_text(json.dumps(data))
    with pytest.raises(WorkspaceError, match="its schema is 99, not 1"):
        space.read("baseline")


def test_files_of_a_record_are_vouched_for(space: Workspace) -> None:
    def fill(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"weights")

    space.replace_folder("rounds/01/1/pruned", fill)
    space.write("rounds/01/1/prune", INPUTS, {}, files=("rounds/01/1/pruned",))
    assert space.read("rounds/01/1/prune") is not None
    weights = space.folder / "rounds/01/1/pruned/model.safetensors"
    weights.write_bytes(b"weightz")
    with pytest.raises(
        WorkspaceError, match=r"model\.safetensors` is damaged.*run `prunella prune`"
    ):
        space.read("rounds/01/1/prune")
    weights.unlink()
    with pytest.raises(WorkspaceError, match="it is missing"):
        space.read("rounds/01/1/prune")


def test_a_full_disk_is_a_clear_error_and_keeps_the_old_content(
    space: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    space.write("baseline", INPUTS, {"valid": 1})

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(WorkspaceError, match=r"No space left on device.*is kept: free some"):
            space.write("baseline", INPUTS, {"valid": 2})
    entry = space.read("baseline")
    assert entry is not None
    assert entry.payload == {"valid": 1}
    assert sorted(path.name for path in space.folder.iterdir()) == ["baseline.json"]


def test_a_full_disk_met_while_filling_a_folder_keeps_the_old_folder(space: Workspace) -> None:
    space.replace_folder("final", lambda folder: (folder / "plan.json").write_text("old"))

    def full(folder: Path) -> None:
        (folder / "plan.json").write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(WorkspaceError, match="No space left"):
        space.replace_folder("final", full)
    assert (space.folder / "final/plan.json").read_text() == "old"


def test_a_really_full_disk() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with (
        pytest.raises(WorkspaceError, match="No space left"),
        guard(full),
        full.open("wb", 0) as file,
    ):
        file.write(b"x")


def test_other_faults_are_not_disguised(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), guard(tmp_path):
        tmp_path.read_text()


def test_write_atomic_leaves_nothing_else(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"1")
    write_atomic(tmp_path / "a", b"2")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"2"


HOLD = """
import sys, time
from pathlib import Path
from prunella.workspace import Workspace
space = Workspace(Path(sys.argv[1]))
with space.locked():
    (space.folder / ".unfinished-x").write_text("half")
    (space.folder / "ready").write_text("")
    time.sleep(60)
"""


def test_two_runs_in_one_folder_and_the_lock_of_a_killed_one(space: Workspace) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(space.folder)])
    try:
        deadline = time.monotonic() + 30
        while not (space.folder / "ready").exists():
            assert time.monotonic() < deadline, "the other process never took the lock"
            time.sleep(0.02)
        with (
            pytest.raises(WorkspaceError, match=f"another run .* \\(process {process.pid}\\)"),
            space.locked(),
        ):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        with space.locked():
            assert not (space.folder / ".unfinished-x").exists()
    finally:
        process.kill()
        process.wait()


def test_clear_removes_records_and_folder(space: Workspace) -> None:
    space.write("rounds/02/1/prune", INPUTS, {})
    space.clear("rounds/02")
    space.clear("rounds/02")
    assert not (space.folder / "rounds/02").exists()


def test_a_folder_that_is_gone_while_it_is_written_to(tmp_path: Path) -> None:
    space = Workspace(tmp_path / "run")
    space.write("a", {}, {})
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(WorkspaceError, match=r"cannot write .*: No such file.*allow writing"):
        write_atomic(tmp_path / "run" / "b.json", b"")
