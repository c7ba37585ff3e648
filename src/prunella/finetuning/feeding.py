"""Training batches: in an order fixed by (seed, epoch), a share of them for each process."""

import logging
import random
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from prunella.progress import Progress
from prunella.tasks import batches, size_of
from prunella.tasks._images import mix

log = logging.getLogger("prunella")

_LONG = 30.0  # seconds of counting, after which a loader may have no end


class Feed:
    """The training batches of one process out of several.

    Of every `count` batches in turn each process takes one, so that all make the same number of
    steps; up to `count - 1` batches at the end of an epoch are left out.

    Args:
        loader: The task's training loader, the same in all processes.
        seed: With the epoch, decides every random number drawn while training.
        index: Of this process.
        count: Of processes.
    """

    def __init__(self, loader: Iterable[Any], seed: int, index: int = 0, count: int = 1) -> None:
        self._loader, self._seed, self._index, self._count = loader, seed, index, count

    def steps(self, progress: Progress) -> int:
        """Count an epoch's steps; a loader without a length is read through once."""
        size = size_of(self._loader)
        return (self._counted(progress) if size is None else size) // self._count

    def _counted(self, progress: Progress) -> int:
        size, said, start = 0, False, time.monotonic()
        with progress("counting training batches", None) as advance:
            for _ in self._numbered("counting split `train`"):
                size += 1
                advance(1)
                if not said and time.monotonic() - start > _LONG:
                    said = True
                    log.warning(
                        "the training batches are still counted, %d so far, as their loader has no "
                        "length. If it has no end, give it a `__len__`: the batches of an epoch",
                        size,
                    )
        return size

    def epoch(self, number: int) -> Iterator[Any]:
        """Yield this process's batches of an epoch, counted from 1.

        A loader that goes on beyond its length is left there: it may have no end.

        Raises:
            TaskError: The loader raises or is empty.
        """
        seed = mix(self._seed, number)
        _start_epoch(self._loader, number, seed)
        # The order is drawn when iteration starts, from the same seed in all processes; what is
        # drawn later (dropout) must differ between them.
        seed_all(seed)
        source: Iterable[Any] = self._loader
        dealt = self._count > 1 and _indexed(self._loader)
        if dealt:
            source = _dealt(self._loader, self._index, self._count)
        first = True
        found = batches(source, f"split `train` in epoch {number}")
        if not dealt:
            found = islice(found, size_of(self._loader) or None)  # of none, `batches` tells
        for batch in self._share(found, dealt):
            if first and self._index:
                seed_all(mix(self._seed, number, self._index))
            first = False
            yield batch

    def _numbered(self, what: str) -> Iterator[Any]:
        _start_epoch(self._loader, 1, mix(self._seed, 1))
        seed_all(mix(self._seed, 1))
        return batches(self._loader, what)

    def _share(self, source: Iterator[Any], dealt: bool) -> Iterator[Any]:
        if self._count == 1 or dealt:
            yield from source
            return
        for turn in _turns(source, self._count):
            yield turn[self._index]


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Give the global random generators back as they were found."""
    python, numbers = random.getstate(), np.random.get_state()
    devices = [] if device.type == "cpu" else [device]
    kind = "cuda" if device.type == "cpu" else device.type
    with torch.random.fork_rng(devices=devices, device_type=kind):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)


def seed_all(seed: int) -> None:
    """Seed the generators of torch (all devices), numpy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def own_chance(seed: int, device: torch.device) -> Iterator[None]:
    """Let what happens inside draw from its own seed, and leave the caller's numbers alone."""
    with own_randomness(device):
        seed_all(seed)
        yield


def _start_epoch(loader: Iterable[Any], number: int, seed: int) -> None:
    parts = [loader, *(getattr(loader, name, None) for name in ("sampler", "batch_sampler"))]
    for part in (*parts, getattr(loader, "dataset", None)):
        set_epoch = getattr(part, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(number)
    for part in parts:
        generator = getattr(part, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)


def _indexed(loader: Iterable[Any]) -> bool:
    return (
        isinstance(loader, DataLoader)
        and not isinstance(loader.dataset, IterableDataset)
        and loader.batch_sampler is not None
    )


def _dealt(loader: Any, index: int, count: int) -> "DataLoader[Any]":
    # A process need not load what the others train on: only the lists of indices are shared out.
    return DataLoader(
        loader.dataset,
        batch_sampler=_Share(loader.batch_sampler, index, count),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


class _Share:
    """Every `count`-th list of indices of a batch sampler."""

    def __init__(self, sampler: Iterable[list[int]], index: int, count: int) -> None:
        self._sampler, self._index, self._count = sampler, index, count

    def __iter__(self) -> Iterator[list[int]]:
        for turn in _turns(iter(self._sampler), self._count):
            yield turn[self._index]


def _turns(source: Iterator[Any], count: int) -> Iterator[list[Any]]:
    while len(turn := list(islice(source, count))) == count:
        yield turn
