"""What tells functions apart: changed code and values, not other places or other processes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prunella.tasks import code_of, load
from prunella.tasks._loading import _module
from tests import tiny_task

# Pairs of files that define `metric` and do different things.
CHANGED = {
    "the code": (
        "def metric(pairs): return sum(pairs) / 2",
        "def metric(pairs): return sum(pairs) / 3",
    ),
    "an operator": ("def metric(a, b): return a + b", "def metric(a, b): return a - b"),
    "what is called": ("def metric(a): return max(a)", "def metric(a): return min(a)"),
    "a lambda": ("metric = lambda pairs: 1", "metric = lambda pairs: 2"),
    "a text in a comprehension": (
        "def metric(a): return [x == 'one' for x in a]",
        "def metric(a): return [x == 'two' for x in a]",
    ),
    "a text in a lambda": ("metric = lambda a: a == 'one'", "metric = lambda a: a == 'two'"),
    "a default": ("def metric(a, k=1): return k", "def metric(a, k=2): return k"),
    "a keyword's default": ("def metric(a, *, k=1): return k", "def metric(a, *, k=2): return k"),
    "a function that is called": (
        "def top(a): return a[0]\ndef metric(a): return top(a)",
        "def top(a): return a[1]\ndef metric(a): return top(a)",
    ),
    "a constant": ("K = 1\ndef metric(a): return K", "K = 2\ndef metric(a): return K"),
    "constants in a dict": (
        "K = {'a': [1, 2]}\ndef metric(a): return K['a']",
        "K = {'a': [1, 3]}\ndef metric(a): return K['a']",
    ),
    "what is closed over": (
        "def make(k):\n  return lambda a: k\nmetric = make(1)",
        "def make(k):\n  return lambda a: k\nmetric = make(2)",
    ),
    "a function that is closed over": (
        "def make(f):\n  return lambda a: f(a)\nmetric = make(lambda a: 1)",
        "def make(f):\n  return lambda a: f(a)\nmetric = make(lambda a: 2)",
    ),
    "a partial's argument": (
        "from functools import partial\nmetric = partial(lambda k, a: k, 1)",
        "from functools import partial\nmetric = partial(lambda k, a: k, 2)",
    ),
    "a partial's keyword": (
        "from functools import partial\nmetric = partial(lambda a, k: k, k=1)",
        "from functools import partial\nmetric = partial(lambda a, k: k, k=2)",
    ),
    "an object's attribute": (
        "class M:\n  def __init__(s, k): s.k = k\n  def __call__(s, a): return s.k\nmetric = M(1)",
        "class M:\n  def __init__(s, k): s.k = k\n  def __call__(s, a): return s.k\nmetric = M(2)",
    ),
    "an object's method": (
        "class M:\n  def __call__(s, a): return s.top(a)\n  def top(s, a): return 1\nmetric = M()",
        "class M:\n  def __call__(s, a): return s.top(a)\n  def top(s, a): return 2\nmetric = M()",
    ),
    "a class above": (
        "class A:\n  def __call__(s, a): return 1\nclass M(A): pass\nmetric = M()",
        "class A:\n  def __call__(s, a): return 2\nclass M(A): pass\nmetric = M()",
    ),
    "a bound method's object": (
        "class M:\n  def __init__(s, k): s.k = k\n  def top(s, a): return s.k\nmetric = M(1).top",
        "class M:\n  def __init__(s, k): s.k = k\n  def top(s, a): return s.k\nmetric = M(2).top",
    ),
    "slots": (
        "class M:\n  __slots__ = 'kk'\n  def __call__(s, a): return 1\nmetric = M()\nmetric.kk = 1",
        "class M:\n  __slots__ = 'kk'\n  def __call__(s, a): return 1\nmetric = M()\nmetric.kk = 2",
    ),
    "settings in a dataclass": (
        "from dataclasses import dataclass\n@dataclass\nclass C:\n  k: float\nC0 = C(0.1)\n"
        "def metric(a): return C0.k",
        "from dataclasses import dataclass\n@dataclass\nclass C:\n  k: float\nC0 = C(0.2)\n"
        "def metric(a): return C0.k",
    ),
    "a namespace": (
        "from types import SimpleNamespace as N\nC = N(k=1)\ndef metric(a): return C.k",
        "from types import SimpleNamespace as N\nC = N(k=2)\ndef metric(a): return C.k",
    ),
    "what is decorated": (
        "import torch\n@torch.no_grad()\ndef metric(a): return 1",
        "import torch\n@torch.no_grad()\ndef metric(a): return 2",
    ),
    "what is cached": (
        "from functools import cache\n@cache\ndef top(a): return 1\ndef metric(a): return top(a)",
        "from functools import cache\n@cache\ndef top(a): return 2\ndef metric(a): return top(a)",
    ),
    "weights": (
        "import torch\nW = torch.ones(3)\ndef metric(a): return W @ a",
        "import torch\nW = torch.zeros(3)\ndef metric(a): return W @ a",
    ),
    "a module's buffers": (
        "import torch\nmetric = torch.nn.CrossEntropyLoss(torch.tensor([1., 2.]))",
        "import torch\nmetric = torch.nn.CrossEntropyLoss(torch.tensor([1., 3.]))",
    ),
    "a module's settings": (
        "import torch\nmetric = torch.nn.CrossEntropyLoss(label_smoothing=0.1)",
        "import torch\nmetric = torch.nn.CrossEntropyLoss(label_smoothing=0.2)",
    ),
    "a library's function": (
        "import torch.nn.functional as F\nmetric = F.cross_entropy",
        "import torch.nn.functional as F\nmetric = F.nll_loss",
    ),
    "an item": (
        "from operator import itemgetter\nmetric = itemgetter(0)",
        "from operator import itemgetter\nmetric = itemgetter(1)",
    ),
    "tuples": (
        "A = (1, (2, 3))\nB = (1, (2, 3))\ndef metric(a): return A, B",
        "A = (1, (2, 3))\nB = (1, (2, 4))\ndef metric(a): return A, B",
    ),
    "a pattern": (
        "import re\nP = re.compile('a')\ndef metric(a): return P.match(a)",
        "import re\nP = re.compile('b')\ndef metric(a): return P.match(a)",
    ),
    "which of two": (
        "def make(*f):\n  return lambda a: f\np = lambda: 1\nq = lambda: 2\nmetric = make(p, q, p)",
        "def make(*f):\n  return lambda a: f\np = lambda: 1\nq = lambda: 2\nmetric = make(p, q, q)",
    ),
}

# Files that do the same, and other things besides.
SAME = {
    "a comment and lines": (
        "def metric(pairs):\n  return 1",
        "# why\n\n\ndef metric(pairs):\n\n  # one\n  return 1",
    ),
    "what documents it": (
        'def metric(pairs):\n  "One."\n  return 1',
        'def metric(pairs):\n  "Returns one."\n  return 1',
    ),
    "names of variables": (
        "def metric(pairs):\n  a = 1\n  return a",
        "def metric(pairs):\n  one = 1\n  return one",
    ),
    "what it does not use": (
        "K = 1\ndef model(): return 1\ndef metric(a): return a",
        "K = 2\ndef model(): return 2\ndef metric(a): return a",
    ),
    "a logger in use": (
        "import logging\nlog = logging.getLogger('x')\ndef metric(a): log.info('%s', a)",
        "import logging\nlog = logging.getLogger('x')\nlog.info('met')\n"
        "def metric(a): log.info('%s', a)",
    ),
    "a folder for a while": (
        "import tempfile\nT = tempfile.mkdtemp()\ndef metric(a): return T",
        "import tempfile\nT = tempfile.mkdtemp()\ndef metric(a): return T",
    ),
    "drawn parameters": (
        "import torch\nmetric = torch.nn.Linear(2, 2)",
        "import torch\nmetric = torch.nn.Linear(2, 2)",
    ),
    "a mode": (
        "import torch\nmetric = torch.nn.BatchNorm1d(2)",
        "import torch\nmetric = torch.nn.BatchNorm1d(2).eval()",
    ),
    "an attribute of another's name": (
        "def data(): return 1\ndef metric(a): return a.data",
        "def data(): return 2\ndef metric(a): return a.data",
    ),
    "a class that a framework fills": (
        "from pydantic import BaseModel\nclass C(BaseModel):\n  k: int\nC0 = C(k=1)\n"
        "def metric(a): return C0.k",
    )
    * 2,
    "an object without a name": (
        "o = object()\ndef metric(a): return a is o",
        "keep = [object()]\no = object()\ndef metric(a): return a is o",
    ),
    "what cannot be read": (
        "class M:\n  __slots__ = ('k',)\n  def __len__(s): raise OSError\n"
        "  def __call__(s, a): return 1\nmetric = M()",
    )
    * 2,
}


def code(folder: Path, text: str) -> str:
    folder.mkdir(exist_ok=True)
    if not (folder / "own.py").exists():
        (folder / "own.py").write_text(text)
    module: Any = _module(folder / "own.py")
    return code_of(module.metric)


@pytest.mark.parametrize("what", CHANGED)
def test_what_is_changed_is_seen(tmp_path: Path, what: str) -> None:
    one, other = CHANGED[what]
    found = code(tmp_path / "a", one)
    assert found == code(tmp_path / "b", one)  # in another folder, at another address
    assert found != code(tmp_path / "c", other)


@pytest.mark.parametrize("what", SAME)
def test_what_does_the_same_is_the_same(tmp_path: Path, what: str) -> None:
    one, other = SAME[what]
    assert code(tmp_path / "a", one) == code(tmp_path / "b", other)


def test_a_neighbouring_file_is_the_users_own(tmp_path: Path) -> None:
    found = []
    for number in (1, 2, 1):
        folder = tmp_path / str(len(found))
        folder.mkdir()
        (folder / "measures.py").write_text(f"def top(a): return {number}\nOTHER = {len(found)}")
        (folder / "own.py").write_text("import measures\ndef metric(a): return measures.top(a)")
        module: Any = _module(folder / "own.py")
        found.append(code_of(module.metric))
        del sys.modules["measures"]
    assert found[0] == found[2] != found[1]


USES = {
    "in two functions": "import kit.measures as m\n"
    "def one(a): return m.top(a)\ndef metric(a): return m.low(a), one(a)",
    "in a folder that is no package": "import kit.measures\n"
    "def metric(a): return kit.measures.top(a)",
}


@pytest.mark.parametrize("where", USES)
def test_a_neighbouring_file_is_followed_wherever_it_is_used(tmp_path: Path, where: str) -> None:
    found = []
    for number in (1, 2, 1):
        folder = tmp_path / str(len(found))
        (folder / "kit").mkdir(parents=True)
        (folder / "kit" / "measures.py").write_text(
            f"def top(a): return {number}\ndef low(a): return 0\nOTHER = {len(found)}"
        )
        (folder / "own.py").write_text(USES[where])
        module: Any = _module(folder / "own.py")
        found.append(code_of(module.metric))
        del sys.modules["kit"], sys.modules["kit.measures"]
    assert found[0] == found[2] != found[1]


def test_code_alone_is_the_same_after_use() -> None:
    class Counting:
        def __init__(self) -> None:
            self.calls = 0
            self.seen: list[int] = []

        def __call__(self, value: int) -> int:
            self.calls, self.last = self.calls + 1, value
            self.seen.append(value)
            return value

    metric, seen = Counting(), [1]

    def counted(value: int) -> int:
        seen.append(value)
        return metric(value)

    alone, whole = code_of(counted, values=False), code_of(counted)
    for value in range(100):  # the interpreter rewrites what it often runs
        counted(value)
    assert code_of(counted, values=False) == alone
    assert code_of(counted) != whole
    assert code_of(lambda value: metric(value + 1), values=False) != alone


SCRIPT = """
import sys
from pathlib import Path
from tests.unit.test_code import CHANGED, SAME, code

folder = Path(sys.argv[1])
for index, text in enumerate(text for pair in (*CHANGED.values(), *SAME.values()) for text in pair):
    print(code(folder / str(index), text))
"""


def test_every_process_finds_the_same(tmp_path: Path) -> None:
    found = []
    for seed, name in (("1", "a"), ("2", "b"), ("3", "a")):  # the last one has compiled files
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        found.append(
            subprocess.run(
                [sys.executable, "-c", SCRIPT, str(folder)],
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "PYTHONHASHSEED": seed},
            ).stdout
        )
    assert found[0] == found[1] == found[2]
    assert len(found[0].split()) == 2 * (len(CHANGED) + len(SAME))


def test_a_task_is_the_same_at_every_start() -> None:
    one, other = (load(tiny_task.__file__) for _ in range(2))
    assert code_of(one.metric.compute, one.loss) == code_of(other.metric.compute, other.loss)
