"""Hash what a batch holds, whatever it is made of: contents, never places in memory."""

import hashlib
from collections import ChainMap
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Update = Callable[[bytes], None]
Seen = MutableMapping[int, tuple[int, Any]]
"""By its `id`, when an object was met, and the object: held, or another would get its place."""

_TOLD_BY_REPR = (bool, int, float, complex, type(None))
_DEEPEST = 100  # levels of containers; what is below is told by its type


def absorb(update: Update, value: Any, seen: Seen | None = None, depth: int = 0) -> None:
    """Hash a value: equal contents hash equal in every process, and other contents differ.

    An object is taken apart as pickle and copy would take it, so that its class decides what
    belongs to it, and as there once only: objects that know one another (the nodes of a graph) have
    too many ways from one to the next. What cannot be taken apart (a lock, an open file) is told by
    its type alone.

    Args:
        update: Takes the bytes.
        value: Anything: containers, objects and leaves.
        seen: The containers and objects met before.
        depth: How many of them the value is in.
    """
    seen = {} if seen is None else seen
    if isinstance(value, Tensor):
        _absorb_tensor(update, value)
    elif isinstance(value, np.ndarray | np.generic):
        _absorb_array(update, np.asarray(value), seen, depth)
    elif type(value) in _TOLD_BY_REPR:
        _tell(update, type(value).__name__, repr(value).encode())
    elif type(value) is str:
        _tell(update, "text", value.encode("utf-8", "surrogatepass"))
    elif isinstance(value, bytes | bytearray | memoryview):
        _tell(update, "bytes", bytes(value))
    elif id(value) in seen:
        _tell(update, "again", str(seen[id(value)][0]).encode())
    else:
        if type(value) is not tuple:  # equal ones may be one and the same, or not
            seen[id(value)] = len(seen), value
        _absorb_object(update, value, seen, depth)


def _absorb_object(update: Update, value: Any, seen: Seen, depth: int) -> None:
    if isinstance(value, set | frozenset):
        digests = sorted(_digest(item, seen, depth + 1) for item in value)
        _tell(update, "set", b"".join(digests))
        return
    parts = _parts(value) if depth < _DEEPEST else None
    size = "unknown" if parts is None else len(parts)
    _tell(update, f"object of size {size}", type(value).__qualname__.encode())
    for part in parts or ():
        absorb(update, part, seen, depth + 1)


def _tell(update: Update, kind: str, data: bytes) -> None:
    # With its length, so that where one value ends and the next begins makes a difference.
    update(f"{kind} {len(data)}:".encode())
    update(data)


def _digest(value: Any, seen: Seen, depth: int) -> bytes:
    hasher = hashlib.sha256()
    # What other members have met tells nothing: they come in any order.
    absorb(hasher.update, value, ChainMap({}, seen), depth)
    return hasher.digest()


def _absorb_tensor(update: Update, value: Tensor) -> None:
    if value.is_nested:
        parts = value.unbind()
        _tell(update, "nested", str(len(parts)).encode())
        for part in parts:
            _absorb_tensor(update, part)
        return
    what = f"tensor {tuple(value.shape)} {value.dtype}"
    if value.is_meta:
        _tell(update, what, b"")
    elif value.layout != torch.strided:
        coordinates = value.detach().to_sparse_coo().coalesce()
        _tell(update, what, b"sparse")
        _absorb_tensor(update, coordinates.indices())
        _absorb_tensor(update, coordinates.values())
    else:
        plain = value.detach().cpu()
        plain = plain.dequantize() if plain.is_quantized else plain.resolve_conj().resolve_neg()
        flat = plain.contiguous().flatten().view(torch.uint8)
        _tell(update, what, flat.numpy().tobytes())


def _absorb_array(update: Update, value: np.ndarray, seen: Seen, depth: int) -> None:
    what = f"array {value.shape} {value.dtype}"
    if value.dtype.hasobject:
        _tell(update, what, b"objects")
        for item in value.ravel().tolist():
            absorb(update, item, seen, depth + 1)
    else:
        _tell(update, what, value.tobytes())


def _parts(value: Any) -> list[Any] | None:
    """Take a container or object apart; None where it does not let itself be taken apart."""
    try:
        if isinstance(value, Mapping):
            return [part for item in value.items() for part in item]
        if type(value) in (tuple, list):
            return list(value)
        if hasattr(value, "__qualname__"):  # a class or function
            return [value.__qualname__]
        reduced = value.__reduce_ex__(4)
    except Exception:  # noqa: BLE001  a user's class may raise anything
        return None
    if isinstance(reduced, str):
        return [reduced]
    maker, arguments, *rest = reduced
    state, items, pairs = (*rest[:3], None, None, None)[:3]
    return [maker, arguments, state, list(items or ()), list(pairs or ())]
