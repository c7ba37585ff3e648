"""The threads of a process group end with it: one that outlives it may abort the interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

GROUP = """
import sys
import time
from pathlib import Path
import torch.distributed as dist
{first}

def threads():
    found = []
    for folder in Path("/proc/self/task").iterdir():
        try:
            found.append((folder / "comm").read_text().strip())
        except OSError:  # it ended
            pass
    return [name for name in found if "gloo" in name]

def wait_for(there):  # a new one has no name yet, one that was joined is listed for a moment more
    end = time.monotonic() + 30
    while bool(threads()) != there:
        assert time.monotonic() < end, threads()

store = f"file://{{sys.argv[1]}}/store"
dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
wait_for(True)
import torch._dynamo  # as an optimizer's first step does
{then}
assert not dist.is_initialized()
wait_for(False)
"""
LINUX = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="the names of threads are read as Linux has them"
)


def ends(folder: Path, first: str, then: str) -> None:
    script = GROUP.format(first=first, then=then)
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        env={**os.environ, "WORLD_SIZE": "2"},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@LINUX
@pytest.mark.parametrize("module", ["finetuning", "sensitivity", "pipeline"])
def test_the_threads_end_with_the_group(tmp_path: Path, module: str) -> None:
    ends(tmp_path, f"import prunella.{module}", "dist.destroy_process_group()")


@LINUX
@pytest.mark.parametrize("words", ["--version", "run"])
def test_the_command_line_leaves_its_group(tmp_path: Path, words: str) -> None:
    ends(
        tmp_path,
        "import prunella.process_group",
        f"""
from prunella.cli import main
sys.argv[1:] = [{words!r}]
try:
    main()
except SystemExit as ended:
    assert ended.code == {0 if words == "--version" else 2}
""",
    )
