"""Measure the time of a network as a function of its widths: model + groups + runtime -> model."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from prunella.allocating.planning import nothing_to_prune
from prunella.costs.timed import LatencyModel, Region, digest_of
from prunella.costs.widths import widths
from prunella.errors import ConfigError
from prunella.latency import compiled
from prunella.latency.caching import measurements
from prunella.latency.compiled import fit_compiled
from prunella.latency.fitting import fit, predict
from prunella.latency.fitting_whole import fit_whole
from prunella.latency.in_onnxruntime import OnnxBench
from prunella.latency.in_torch import TorchBench
from prunella.latency.measured import Bench, Sample, from_head, read, to_entry, to_head
from prunella.latency.sampling import draw
from prunella.latency.subject import Subject
from prunella.plan import Groups, Plan
from prunella.progress import Progress, or_silent
from prunella.runtimes import Runtime, available
from prunella.tracing import Inputs, called_with

PLANS = 64
"""Networks that are timed."""

Fit = Callable[[Sequence[Sample]], tuple[Region, ...]]

_LEAST = 16
_FOLDS = 4
_DOUBTFUL = 0.1  # a median error above which a budget rests on luck
_DISTURBED, _AGAIN = 1.08, 2  # a network so much slower than expected is timed again, so often

log = logging.getLogger("prunella")


def profile(  # noqa: PLR0913 - one call for all of it
    model: nn.Module,
    example_inputs: Inputs,
    groups: Groups,
    runtime: Runtime | str,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    plans: int = PLANS,
    seconds: float | None = None,
    folder: Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> LatencyModel:
    """Time pruned networks of many widths, and fit what the time of each part depends on.

    What is measured is kept on the disk at once, by machine, runtime and network: a second call
    reads it, and one that was killed half-way goes on. For `torch-compile` the networks are timed
    in eager torch, and a few of them compiled.

    Args:
        model: The dense model.
        example_inputs: A tensor, or a tuple of positional arguments; their batch is what is timed.
        groups: Its groups, traced with inputs of the same sizes.
        runtime: Where it will run, e.g. "onnxruntime:threads=1".
        example_kwargs: Keyword arguments.
        plans: How many networks to time, the dense one among them, at least 16. Of these 8 are
            compiled where the runtime is `torch-compile`.
        seconds: After so long no further network is timed, but for the first 16 (compiled: 8).
        folder: Where measurements are kept; by default a folder of the user's cache.
        seed: Of the widths that are tried.
        progress: See `prunella.progress`.

    Raises:
        ConfigError: The runtime is not installed or has no such device, or `plans` is too small.
        NothingToPruneError: All groups are frozen.
        ExportError: The runtime cannot have the model.
    """
    runtime = Runtime.of(runtime)
    _check(groups, runtime, plans)
    eager: LatencyModel | None = None
    least = _LEAST
    if runtime.name == "torch-compile":
        eager = profile(
            model,
            example_inputs,
            groups,
            replace(runtime, name="torch"),
            example_kwargs=example_kwargs,
            plans=plans,
            seconds=seconds,
            folder=folder,
            seed=seed,
            progress=progress,
        )
        plans = least = compiled.NETWORKS
    found = widths(groups)
    inputs = called_with(example_inputs, example_kwargs)
    journal = measurements(groups, runtime, seed, folder)

    @cache
    def bench() -> Bench:  # exports a few networks: not where all is measured already
        return _BENCHES[runtime.name](Subject(model, groups, found, inputs), runtime)

    if not journal.entries:
        journal.append(to_head(bench().places))
    places = from_head(journal.entries[0])
    fitted: Fit = partial(fit, places, found) if places else partial(fit_whole, groups, found)
    if eager is not None:
        fitted = partial(fit_compiled, eager.regions)
    samples = read(journal.entries[1:], plans)

    @cache
    def drawn() -> list[Plan | None]:
        return [None, *islice(draw(groups, seed), plans - 1)]

    began = time.monotonic()

    def add(index: int) -> None:
        samples[index] = timed(bench(), drawn()[index], samples.get(index))
        journal.append(to_entry(index, samples[index]))

    with or_silent(progress)("latency", plans) as advance:
        advance(len(samples))
        for index in [i for i in range(plans) if i not in samples]:
            if len(samples) >= least and time.monotonic() - began > (seconds or np.inf):
                break
            add(index)
            advance(1)
        for _ in range(_AGAIN):
            for index in disturbed(fitted, samples):
                add(index)
    return _fitted(str(runtime), digest_of(groups), fitted, list(samples.values()))


def _check(groups: Groups, runtime: Runtime, plans: int) -> None:
    """See that there is something to measure, and where, before anything is exported."""
    if plans < _LEAST:
        raise ConfigError(f"a latency model needs at least {_LEAST} networks, got {plans=}")
    if not len(groups):
        raise nothing_to_prune(groups)
    if runtime.name == "onnxruntime" and runtime.dtype != "float32":
        raise ConfigError(
            "latency models of ONNX Runtime are in float32 so far: leave out `dtype`, or take "
            "`openvino`, which has others"
        )
    available(runtime)


_BENCHES: Mapping[str, Callable[[Subject, Runtime], Bench]] = {
    "onnxruntime": OnnxBench,
    "openvino": OnnxBench,
    "torch": TorchBench,
    "torch-compile": TorchBench,
}


def timed(bench: Bench, plan: Plan | None, before: Sample | None) -> Sample:
    """Time the network of a plan; of a second time what was quicker counts."""
    sample = bench.time(plan)
    return sample if before is None else before.quicker(sample)


def disturbed(fitted: Fit, samples: Mapping[int, Sample]) -> list[int]:
    """List the networks that took longer than the others let expect, and were not looked at twice.

    What else the machine does makes single networks slow, never fast.
    """
    known = list(samples.values())
    expected = predict(fitted(known), np.array([s.lengths for s in known]))
    return [
        index
        for (index, sample), ms in zip(samples.items(), expected.tolist(), strict=True)
        if sample.whole > _DISTURBED * ms and sample.looks <= _AGAIN
    ]


def _fitted(runtime: str, digest: str, fitted: Fit, samples: Sequence[Sample]) -> LatencyModel:
    """Fit all samples; the error is that of four fits, each on plans it has not seen."""
    long = np.array([sample.lengths for sample in samples])
    whole = np.array([sample.whole for sample in samples])
    missed = np.zeros(len(samples))
    for first in range(_FOLDS):
        held = np.arange(len(samples)) % _FOLDS == first
        seen = [sample for sample, out in zip(samples, held, strict=True) if not out]
        predicted = predict(fitted(seen), long[held])
        missed[held] = np.abs(predicted / whole[held] - 1)
    median, worst = (float(q) for q in np.quantile(missed, [0.5, 0.9]))
    log.info(
        "latency on %s: dense %.4g ms; on unseen plans predicted within %.1f%% (median), "
        "%.1f%% (nine of ten)",
        runtime,
        whole[0],
        100 * median,
        100 * worst,
    )
    if median > _DOUBTFUL:
        log.warning(
            "times on %s are predicted within %.0f%% only: let the machine do nothing else, set "
            "`threads=1`, or time more networks (`plans`)",
            runtime,
            100 * median,
        )
    regions = fitted(samples)
    return LatencyModel(runtime, digest, regions, float(whole[0]), len(samples), median, worst)
