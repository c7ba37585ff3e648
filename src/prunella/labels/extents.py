"""Which dimension of a tensor gets shorter when channels are cut, and what is left along it.

A layer that varies along several dimensions says which channel sits at each of their positions:
`[heads, head_dim]`, say. Which of them gets shorter depends on what is one channel. Where whole
heads go together the other dimension is *tied*: all its positions hold the same channel. Where
every head loses channels of its own the rows keep equally many: the dimension inside the rows gets
shorter.
"""

from collections.abc import Sequence

import numpy as np

Spread = tuple[tuple[int, ...], np.ndarray]
"""The dimensions a layer varies along, and an array of channels with just these dimensions."""

Rows = frozenset[bytes]
"""The rows that keep equally many, each as the bytes of its sorted channels (int64)."""


def row_key(row: np.ndarray) -> bytes:
    """Return what stands for a row in `Rows`."""
    return np.sort(row.astype(np.int64)).tobytes()


def shorter_dim(ids: np.ndarray, rows: Rows) -> int | None:
    """Return which dimension of an array of channels gets shorter when some are cut.

    None where all positions hold one channel. Where it cannot be told -1 is returned.
    """
    loose = [d for d in range(ids.ndim) if not _is_tied(ids, d)]
    if len(loose) < 2:
        return loose[0] if loose else None
    for d in reversed(loose):
        inside = [e for e in range(ids.ndim) if e == d or e not in loose]
        outside = [e for e in range(ids.ndim) if e not in inside]
        size = int(np.prod([ids.shape[e] for e in inside]))
        lines = _different(ids.transpose(*outside, *inside).reshape(-1, size))
        if all(row_key(line) in rows for line in lines):
            return d
    return -1


def _different(lines: np.ndarray) -> np.ndarray:
    """Drop lines that are there already: at every place of a picture there are the same ones."""
    weights = np.random.default_rng(0).integers(1 << 62, size=lines.shape[1])
    _, first, which = np.unique(lines @ weights, return_index=True, return_inverse=True)
    return lines[first] if np.array_equal(lines[first][which], lines) else lines


def _is_tied(ids: np.ndarray, dim: int) -> bool:
    return bool((ids == ids.take([0], dim)).all())


def along(spreads: Sequence[Spread], dim: int, rows: Rows) -> np.ndarray | None:
    """Return the channels along one dimension of a tensor, if it is what gets shorter.

    Where every row loses channels of its own, those of the first row: all keep equally many. None
    where the dimension keeps its size whatever is cut.

    Raises:
        LookupError: It cannot be told which dimension gets shorter.
    """
    for dims, ids in spreads:
        if dim in dims:
            found = shorter_dim(ids, rows)
            if found == -1:
                raise LookupError
            if found is not None and dims[found] == dim:
                first = tuple(slice(None) if d == found else 0 for d in range(ids.ndim))
                return np.asarray(ids[first])
    return None


def spans(ids: np.ndarray, mask: np.ndarray) -> list[int] | None:
    """Return how far a mask reaches along each dimension, None unless it keeps a full block."""
    kept = mask[ids]
    others = [tuple(set(range(kept.ndim)) - {d}) for d in range(kept.ndim)]
    reach = [int(kept.any(axis=other).sum()) for other in others]
    return reach if np.prod(reach) == kept.sum() else None
