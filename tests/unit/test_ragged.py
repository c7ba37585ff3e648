"""Rows of different lengths as arrays; the order of channels along an axis."""

import numpy as np
import pytest

from prunella.coupling.arranging import _gather
from prunella.errors import CouplingError
from prunella.labels.ragged import ranges, sorted_by
from prunella.plan import Axis

AXIS = Axis("conv.weight", 0)


def test_ranges_are_joined() -> None:
    assert ranges(np.array([5, 0, 7]), np.array([2, 3, 0])).tolist() == [5, 6, 0, 1, 2]


def test_values_are_sorted_by_owner_in_their_order() -> None:
    rows = sorted_by(np.array([2, 0, 2, 0, 0]), np.array([1, 2, 3, 4, 5]), 4)
    assert [rows.row(i).tolist() for i in range(4)] == [[2, 4, 5], [], [1, 3], []]


def test_rows_alike_are_found_wherever_they_are() -> None:
    rng = np.random.default_rng(0)
    owner = np.sort(rng.integers(60, size=90))
    rows = sorted_by(owner, rng.integers(2, size=90), 60)
    keys = rng.integers(2, size=60)
    expected: dict[tuple[int, bytes], list[int]] = {}
    for i in range(60):
        expected.setdefault((int(keys[i]), rows.row(i).tobytes()), []).append(i)
    assert [found.tolist() for found in rows.alike(keys)] == list(expected.values())
    assert sorted_by(owner[:0], owner[:0], 0).alike(keys[:0]) == []


def test_what_is_frozen_keeps_its_order_beside_what_moves() -> None:
    number = np.array([9, 8, 9, 8, 0, 1, 2])  # 8 and 9 are frozen, on several positions each
    mask = np.array([1, 0, 1, 0, 0, 0, 0, 0, 1, 1], dtype=bool)
    gathered = _gather(AXIS, number, mask, np.array([-1, 2, -1, -1, 0, -1]))
    assert gathered.tolist() == [0, 6, 1, 2, 4, 3]


def test_channels_that_are_not_there_cannot_be_gathered() -> None:
    with pytest.raises(CouplingError, match=r"conv.weight"):
        _gather(AXIS, np.array([0, 1]), np.ones(2, dtype=bool), np.array([0, 0]))
