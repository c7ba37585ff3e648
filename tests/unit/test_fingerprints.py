"""Fingerprints of data: the same for equal contents, wherever they are, and another for others."""

import dataclasses
import hashlib
import subprocess
import sys
import threading
from collections import OrderedDict, UserDict, deque, namedtuple
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prunella import tasks
from tests.unit.small_task import small_task

PAIR = namedtuple("PAIR", "one two")


class Plain:
    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


class Slotted:
    __slots__ = ("values",)

    def __init__(self, values: Any) -> None:
        self.values = values


class Keeping(list[Any]):
    """A list that knows something besides."""

    note = ""

    def noting(self, note: str) -> "Keeping":
        self.note = note
        return self


@dataclasses.dataclass
class Sample:
    image: Any
    label: int = 0


class Colour(Enum):
    RED = 1
    BLUE = 2


class Refusing:
    def __reduce_ex__(self, protocol: Any) -> Any:
        raise ValueError("I stay whole")


def fingerprint(batch: Any) -> str:
    return tasks.fingerprint(dataclasses.replace(small_task(), data=lambda split: [batch]), "train")


def numbers(last: float = 0.0) -> np.ndarray:
    """Make an array that is long enough for `repr` to leave out its middle."""
    made = np.zeros(5000)
    made[2500] = last
    return made


def picture(blue: int) -> Any:
    image = pytest.importorskip("PIL.Image")
    made = image.new("RGB", (8, 8))
    made.putpixel((3, 3), (0, 0, blue))
    return made


def ring(value: int) -> list[Any]:
    made: list[Any] = [value]
    made.append(made)
    return made


CASES = {
    "array": (numbers, lambda: numbers(1.0)),
    "array's type": (lambda: np.zeros(3, np.int32), lambda: np.zeros(3, np.float32)),
    "array of objects": (
        lambda: np.array([Plain(a=1), None], object),
        lambda: np.array([Plain(a=2), None], object),
    ),
    "scalar": (lambda: np.float32(1), lambda: np.float32(2)),
    "tensor": (lambda: torch.arange(5000), lambda: torch.arange(5000).flip(0)),
    "conjugate": (lambda: torch.tensor([1j]).conj(), lambda: torch.tensor([1j])),
    "sparse": (lambda: torch.eye(3).to_sparse(), lambda: (2 * torch.eye(3)).to_sparse()),
    "dataclass": (lambda: Sample(numbers()), lambda: Sample(numbers(1.0))),
    "object": (lambda: Plain(x=torch.ones(2)), lambda: Plain(x=torch.zeros(2))),
    "name of a part": (lambda: Plain(x=1), lambda: Plain(y=1)),
    "slots": (lambda: Slotted(numbers()), lambda: Slotted(numbers(1.0))),
    "picture": (lambda: picture(1), lambda: picture(2)),
    "user's mapping": (lambda: UserDict(x=numbers()), lambda: UserDict(x=numbers(1.0))),
    "list with more": (lambda: Keeping([1]).noting("a"), lambda: Keeping([1]).noting("b")),
    "named tuple": (lambda: PAIR(1, 2), lambda: PAIR(2, 1)),
    "deque": (lambda: deque([1, 2]), lambda: deque([2, 1])),
    "set": (lambda: set("abcdefgh"), lambda: set("abcdefg")),
    "enumeration": (lambda: Colour.RED, lambda: Colour.BLUE),
    "path": (lambda: Path("a"), lambda: Path("b")),
    "bytes": (lambda: b"ab", lambda: b"ac"),
    "number's type": (lambda: 1, lambda: 1.0),
    "nesting": (lambda: [[1], [2]], lambda: [[1, 2]]),
    "depth": (lambda: [[1], 2], lambda: [1, [2]]),
    "borders of texts": (lambda: ["ab", "c"], lambda: ["a", "bc"]),
    "borders of keys": (lambda: {"a": "bc"}, lambda: {"ab": "c"}),
    "order of keys": (lambda: OrderedDict(a=1, b=2), lambda: OrderedDict(b=2, a=1)),
    "a ring": (lambda: ring(1), lambda: ring(2)),
}


@pytest.mark.parametrize("name", CASES)
def test_equal_contents_are_equal_and_others_are_not(name: str) -> None:
    make, make_other = CASES[name]
    one, same, other = make(), make(), make_other()
    assert fingerprint(one) == fingerprint(same)
    assert fingerprint(one) != fingerprint(other)


@pytest.mark.parametrize(
    "make",
    [
        object,
        Refusing,
        threading.Lock,
        lambda: (number for number in [1]),
        lambda: lambda: 0,
        lambda: torch.zeros(2, device="meta"),
    ],
)
def test_what_cannot_be_looked_into_is_told_by_its_type(make: Any) -> None:
    one, other = make(), make()  # both alive, so at two places
    assert fingerprint([one, 1]) == fingerprint([other, 1])
    assert fingerprint([one, 1]) != fingerprint([other, 2])


def quantized(value: float) -> torch.Tensor:
    return torch.quantize_per_tensor(torch.full((2,), value), 0.1, 0, torch.qint8)


def nested(value: float) -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(2), torch.full((3,), value)])


@pytest.mark.parametrize("make", [quantized, nested])
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch says what it means to take back
def test_rare_kinds_of_tensors(make: Any) -> None:
    assert fingerprint(make(1.0)) == fingerprint(make(1.0))
    assert fingerprint(make(1.0)) != fingerprint(make(2.0))


def test_hashing_a_batch_reads_no_generator() -> None:
    given = (number for number in [1, 2])
    fingerprint([given])
    assert list(given) == [1, 2]


def graph(value: int) -> list[Any]:
    """Make nodes that all know one another: too many ways to go them all."""
    nodes = [Plain(value=0) for _ in range(30)]
    for node in nodes:
        node.near = [other for other in nodes if other is not node]
    nodes[-1].value = value
    return nodes


def test_objects_that_know_one_another() -> None:
    assert fingerprint(graph(1)) == fingerprint(graph(1))
    assert fingerprint(graph(1)) != fingerprint(graph(2))


def test_members_of_a_set_come_in_any_order() -> None:
    nodes = graph(1)
    assert fingerprint(set(nodes)) == fingerprint(set(graph(1)))
    assert fingerprint(set(nodes[:-1]) | {0}) != fingerprint(set(nodes))


def test_deep_nesting_is_no_error() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    assert fingerprint(deep) == fingerprint(deep)


SCRIPT = """
import hashlib
from prunella.tasks._hashing import absorb
from tests.unit.test_fingerprints import CASES

hasher = hashlib.sha256()
for name, (make, _) in CASES.items():
    absorb(hasher.update, make())
print(hasher.hexdigest())
"""


def test_every_process_finds_the_same() -> None:
    from prunella.tasks._hashing import absorb

    pytest.importorskip("PIL")
    hasher = hashlib.sha256()
    for make, _ in CASES.values():
        absorb(hasher.update, make())
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == hasher.hexdigest()
