"""What an ONNX network is called with: examples of its own, and batches from an .npz file."""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from prunella.calibration import Calibration
from prunella.errors import ConfigError
from prunella.onnxfiles.opening import DTYPES, OnnxFile
from prunella.plan import nearest

BATCH = 32
"""Samples in a batch where the file leaves it open."""

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True, slots=True)
class Entry:
    """An input of the graph: its name, its type, and its sizes, a name or "?" where one is open."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"`{self.name}`: {kind} of shape ({', '.join(map(str, self.shape))})"


def entries(file: OnnxFile) -> list[Entry]:
    """List the inputs of a graph.

    Raises:
        ConfigError: One is not a tensor of a type that we read.
    """
    found = []
    for value in file.model.graph.input:
        if value.name in file.constants:
            continue
        kind = value.type.tensor_type
        if not value.type.HasField("tensor_type") or kind.elem_type not in DTYPES:
            name = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
            raise ConfigError(
                f"input `{value.name}` of `{file.path}` is no tensor of numbers ({name}). Take the "
                "part of the graph that makes numbers of it off first"
            )
        dims = tuple(
            d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in kind.shape.dim
        )
        found.append(Entry(value.name, DTYPES[kind.elem_type], dims))
    return found


def example(asked: Sequence[Entry], shapes: Shapes | None = None) -> tuple[Tensor, ...]:
    """Make one random batch of the smallest size that the graph allows.

    Args:
        asked: The inputs.
        shapes: Shapes by name, where the graph leaves sizes open that are not the first.

    Raises:
        ConfigError: A size is not known.
    """
    given = dict(shapes or {})
    for name in given:
        if name not in {entry.name for entry in asked}:
            raise ConfigError(f"no input is called {name!r}{_nearest(name, asked)}")
    generator = torch.Generator().manual_seed(0)
    return tuple(_make(entry, given.get(entry.name), generator) for entry in asked)


def _make(entry: Entry, given: Sequence[int] | None, generator: torch.Generator) -> Tensor:
    sizes = list(given) if given is not None else list(_sizes(entry))
    fits = len(sizes) == len(entry.shape) and all(
        isinstance(own, str) or own == n for n, own in zip(sizes, entry.shape, strict=True)
    )
    if not fits:
        raise ConfigError(
            f"{entry}, and the shape given for it is {tuple(sizes)}. Give one that fits"
        )
    if entry.dtype.is_floating_point:
        return torch.randn(sizes, generator=generator).to(entry.dtype)
    return torch.randint(0, 2, sizes, generator=generator).to(entry.dtype)


def _sizes(entry: Entry) -> list[int]:
    sizes = [1 if i == 0 and isinstance(n, str) else n for i, n in enumerate(entry.shape)]
    open_ones = [n for n in sizes if isinstance(n, str)]
    if open_ones:
        raise ConfigError(
            f"the size {', '.join(open_ones)} of input {entry} is open. Say what to prune for: "
            f"`--shape {entry.name}={'x'.join(map(str, sizes))}` with a number in its place, or "
            "give calibration data"
        )
    return [n for n in sizes if isinstance(n, int)]


def calibrate(path: str | Path | Mapping[str, np.ndarray], asked: Sequence[Entry]) -> Calibration:
    """Read batches from an .npz file: an array for each input, samples along the first dimension.

    Args:
        path: The file, or the arrays themselves by name.
        asked: The inputs of the graph.

    Raises:
        ConfigError: An array is missing, is called otherwise, or has another type or shape.
    """
    arrays = dict(path) if isinstance(path, Mapping) else _load(Path(path))
    origin = "the calibration data" if isinstance(path, Mapping) else f"`{path}`"
    expected = "It should hold " + "; ".join(map(str, asked))
    for name in arrays:
        if name not in {entry.name for entry in asked}:
            raise ConfigError(
                f"{origin} holds {name!r}, which is no input of the model"
                f"{_nearest(name, asked)}. {expected}"
            )
    for entry in asked:
        if entry.name not in arrays:
            raise ConfigError(f"{origin} lacks the input `{entry.name}`. {expected}")
        _check(entry, arrays[entry.name], origin)
    return Calibration(_batches(arrays, asked, origin))


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        held = np.load(path, allow_pickle=False)
        if isinstance(held, np.ndarray):
            raise ConfigError(
                f"`{path}` holds one array without a name. Save it with the input's name: "
                "`numpy.savez(path, input=array)`"
            )
        with held:
            return {name: held[name] for name in held.files}
    except FileNotFoundError:
        raise ConfigError(f"there is no file `{path}`. Name an .npz file") from None
    except ConfigError:  # a ValueError too
        raise
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ConfigError(
            f"`{path}` is no .npz file of plain arrays ({type(error).__name__}: {error}). Write it "
            "with `numpy.savez(path, input=array)`"
        ) from error


def _check(entry: Entry, array: np.ndarray, origin: str) -> None:
    wanted = str(entry.dtype).removeprefix("torch.")
    if str(array.dtype) != wanted:
        raise ConfigError(
            f"in {origin} input `{entry.name}` is {array.dtype}, the model asks for {wanted}. "
            f"Convert it: `array.astype(numpy.{wanted})`, scaled as the model was trained"
        )
    fits = array.ndim == len(entry.shape) and all(
        isinstance(own, str) or n == own or i == 0
        for i, (n, own) in enumerate(zip(array.shape, entry.shape, strict=True))
    )
    if not fits:
        rest = ", ".join(map(str, ("samples", *entry.shape[1:])))
        raise ConfigError(
            f"in {origin} input `{entry.name}` has the shape {array.shape}, the model asks for "
            f"({rest}). Lay it out so, samples first"
        )


def _batches(
    arrays: Mapping[str, np.ndarray], asked: Sequence[Entry], origin: str
) -> list[tuple[tuple[Tensor, ...], dict[str, Tensor]]]:
    # An input that is there once for all samples, in the very shape that the graph names, is handed
    # to every batch.
    sampled = [e for e in asked if e.shape and arrays[e.name].shape != e.shape]
    if not sampled:
        return [(tuple(_tensor(arrays[e.name]) for e in asked), {})]
    counts = {e.name: len(arrays[e.name]) for e in sampled}
    if len(set(counts.values())) > 1:
        raise ConfigError(f"{origin} has other numbers of samples for each input: {counts}")
    fixed = {e.shape[0] for e in sampled if isinstance(e.shape[0], int)}
    if len(fixed) > 1:
        raise ConfigError(
            f"inputs have a fixed first dimension, and not the same one: "
            f"{'; '.join(map(str, sampled))}. Give one array of exactly that shape for each"
        )
    count = next(iter(counts.values()))
    size = fixed.pop() if fixed else min(BATCH, count)
    if count < size or not count:
        raise ConfigError(
            f"{origin} holds {count} samples, and the model takes {size or 1} at once. Give more"
        )
    return [
        (
            tuple(
                _tensor(arrays[e.name][i : i + size] if e in sampled else arrays[e.name])
                for e in asked
            ),
            {},
        )
        for i in range(0, count - size + 1, size)
    ]


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _nearest(name: str, asked: Sequence[Entry]) -> str:
    return nearest(name, [entry.name for entry in asked])
