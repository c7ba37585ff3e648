"""Measured latency: a stopwatch that is fair to every model it compares.

A machine drifts while one measures: clocks throttle, neighbours wake up. So the models take turns
in random order, and what is compared are the times within one turn, which drift alike. Before each
timed forward the same model runs once untimed: no model pays for the caches its rival emptied.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binom
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunella.errors import ConfigError
from prunella.model.blame import own_line
from prunella.model.modes import evaluating
from prunella.runtimes import Prepared
from prunella.runtimes.in_torch import threads_set
from prunella.tracing import called_with

Timed = nn.Module | Prepared
"""What a stopwatch can time: a module runs eager in torch, what is prepared in its own runtime."""

SECONDS = 4.0
"""Default time to spend on all models together."""

MIN_RUNS, MAX_RUNS = 7, 300
"""A time budget gives no more turns than this, and no fewer: six are the least from which a 95%
interval of the median can be read."""

RESOLUTION = 0.02
"""Differences below this share are noise however often they repeat.

Copies of one model at other addresses were measured up to 1% apart; the rest is margin.
"""


@dataclass(frozen=True, slots=True)
class Latency:
    """How long one forward of the example inputs takes, in milliseconds.

    Attributes:
        median_ms: Half of the runs were faster.
        p10_ms: One run in ten was faster.
        p90_ms: Nine runs in ten were faster.
        runs: How many runs were timed.
        samples_ms: Every timed run in order; runs of models compared together pair up by position.
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int
    samples_ms: tuple[float, ...] = ()

    def __str__(self) -> str:
        """Write the median with its spread: `1.20 ms (1.18 to 1.31)`."""
        return f"{self.median_ms:.3g} ms ({self.p10_ms:.3g} to {self.p90_ms:.3g})"


@dataclass(frozen=True, slots=True)
class Speedup:
    """How many times faster one model is than another, with a 95% confidence interval.

    Above 1 is faster: `Speedup(2.0, 1.9, 2.1)` takes half the time.
    """

    ratio: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """Whether the interval leaves out 1 and the ratio is more than the clock resolves."""
        resolved = abs(np.log(self.ratio)) > np.log1p(RESOLUTION)
        return bool(resolved and (self.low > 1 or self.high < 1))

    @property
    def reported(self) -> float | None:
        """The ratio, or None where it is inside the noise and says nothing."""
        return self.ratio if self.certain else None

    def __str__(self) -> str:
        """Say what was found; a ratio only where it is more than noise."""
        interval = f"{self.low:.2f}x to {self.high:.2f}x"
        if not self.certain:
            apart = self.low > 1 or self.high < 1
            limit = f"the clock's {RESOLUTION:.0%}" if apart else "the noise"
            return f"no difference beyond {limit} ({interval})"
        if self.ratio > 1:
            return f"{self.ratio:.2f}x faster ({interval})"
        return f"{1 / self.ratio:.2f}x slower ({1 / self.high:.2f}x to {1 / self.low:.2f}x)"


def compare(
    models: Mapping[str, Timed],
    example_inputs: Tensor | tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    threads: int | None = None,
    seconds: float = SECONDS,
    runs: int | None = None,
    warmup: int = 3,
) -> dict[str, Latency]:
    """Time one forward of each model under the same conditions.

    Every module is in evaluation mode and without gradients; each comes back in the mode it came
    in. What `prunella.runtimes.prepare` made runs in its runtime, on the inputs it was prepared
    with; models in several runtimes can be timed together.

    Args:
        models: The models to compare, by the name they shall have in the result.
        example_inputs: One tensor or the positional arguments, on the modules' device. Only
            modules need them.
        example_kwargs: Keyword arguments of the forward.
        threads: Threads of one forward on the CPU; None leaves what is set. Restored afterwards.
            What was prepared runs with the threads of its `Runtime`.
        seconds: Time to spend on all models together; a slow model still gets 7 runs.
        runs: Timed runs of each model, at least 7, instead of as many as fit into
            `seconds`.
        warmup: Untimed forwards of each model before the first timed one.

    Returns:
        A `Latency` for each model, under its name.

    Raises:
        ConfigError: No model, a number that is out of its range, a prepared model that has other
            threads than asked, or a model that raises.
    """
    _check(models, threads, seconds, runs, warmup)
    modules = {name: model for name, model in models.items() if isinstance(model, nn.Module)}
    if modules and example_inputs is None:
        raise ConfigError(
            f"the module `{next(iter(modules))}` needs inputs to be timed on. Give "
            "`example_inputs`, or prepare it with `prunella.runtimes.prepare`"
        )
    given = () if example_inputs is None else example_inputs
    args, kwargs = called_with(given, example_kwargs)
    devices = _devices(modules, (args, kwargs))
    names = list(models)
    calls = {
        name: _eager(model, args, kwargs, devices) if isinstance(model, nn.Module) else model.run
        for name, model in models.items()
    }
    order = np.random.default_rng(0)
    with ExitStack() as stack:
        stack.enter_context(threads_set(_shared_threads(models, threads)))
        stack.enter_context(torch.inference_mode())
        for module in modules.values():
            stack.enter_context(evaluating(module))
        for name in names:
            for _ in range(warmup):
                _milliseconds(name, calls[name])
        began = time.perf_counter()
        turns: list[dict[str, float]] = []
        while _more(len(turns), time.perf_counter() - began, seconds, runs):
            turn: dict[str, float] = {}
            for index in order.permutation(len(names)):
                name = names[index]
                _milliseconds(name, calls[name])
                turn[name] = _milliseconds(name, calls[name])
            turns.append(turn)
    return {name: _summary([turn[name] for turn in turns]) for name in names}


def speedup(before: Latency, after: Latency) -> Speedup:
    """Compare two models that were timed together.

    The ratio is the median over turns of `before / after`. Its interval is read off the sorted
    ratios (the exact binomial interval of a median), so no shape of the noise is assumed.

    Args:
        before: Usually the dense model.
        after: Usually the pruned model; `before` taking twice as long makes a ratio of 2.

    Raises:
        ConfigError: The two were not timed in one `compare`.
    """
    if len(before.samples_ms) != len(after.samples_ms) or not before.samples_ms:
        raise ConfigError(
            f"a speedup needs runs that pair up, got {len(before.samples_ms)} and "
            f"{len(after.samples_ms)}. Time both models in one call of `compare`"
        )
    ratios = np.sort(np.asarray(before.samples_ms) / np.asarray(after.samples_ms))
    # The k-th smallest bounds the median from below with 97.5% as long as P(Binomial < k) <= 2.5%;
    # ppf gives the largest such k, counted from 1: of seven values the smallest.
    rank = max(int(binom.ppf(0.025, len(ratios), 0.5)) - 1, 0)
    return Speedup(float(np.median(ratios)), float(ratios[rank]), float(ratios[-1 - rank]))


def _check(
    models: Mapping[str, Timed],
    threads: int | None,
    seconds: float,
    runs: int | None,
    warmup: int,
) -> None:
    if not models:
        raise ConfigError("there is no model to time. Give at least one, as {name: model}")
    if threads is not None and threads < 1:
        raise ConfigError(f"`threads` must be at least 1, got {threads=}")
    for name, model in models.items():
        if isinstance(model, Prepared) and threads not in (None, model.runtime.threads):
            raise ConfigError(
                f"`{name}` was prepared for `{model.runtime}` and cannot run with {threads=}. "
                f"Prepare it for a runtime with `threads={threads}`"
            )
    if not seconds > 0:
        raise ConfigError(f"`seconds` must be above 0, got {seconds=}")
    if runs is not None and runs < MIN_RUNS:
        raise ConfigError(
            f"`runs` must be at least {MIN_RUNS}, got {runs=}: fewer cannot tell a difference "
            "from noise"
        )
    if warmup < 0:
        raise ConfigError(f"`warmup` must not be negative, got {warmup=}")


def _more(done: int, elapsed: float, seconds: float, runs: int | None) -> bool:
    if runs is not None:
        return done < runs
    return done < MIN_RUNS or (done < MAX_RUNS and elapsed < seconds)


def _eager(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], devices: list[torch.device]
) -> Callable[[], Any]:
    """Give the forward that is done when the devices are."""

    def run() -> Any:
        model(*args, **kwargs)
        for device in devices:
            torch.accelerator.synchronize(device)

    return run


def _milliseconds(name: str, run: Callable[[], Any]) -> float:
    began = time.perf_counter_ns()
    try:
        run()
    except Exception as cause:
        raise ConfigError(
            f"the model `{name}` raised {type(cause).__name__}{own_line(cause)} while it was timed "
            f"on the example inputs, in evaluation mode and without gradients: {cause}. Repair it "
            "there, or give inputs that it takes again and again"
        ) from cause
    return (time.perf_counter_ns() - began) / 1e6


def _shared_threads(models: Mapping[str, Timed], threads: int | None) -> int | None:
    """Set what all that run in torch ask for beforehand, so that it costs no timed run anything."""
    asked = {
        None if isinstance(model, nn.Module) else model.runtime.threads
        for model in models.values()
        if isinstance(model, nn.Module) or model.runtime.name in ("torch", "torch-compile")
    }
    return asked.pop() if threads is None and len(asked) == 1 else threads


def _devices(models: Mapping[str, nn.Module], inputs: object) -> list[torch.device]:
    """List the devices that work behind the program's back: where a tensor of ours lives."""
    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    for model in models.values():
        tensors += [*model.parameters(), *model.buffers()]
    devices = {tensor.device for tensor in tensors}
    if torch.device("meta") in devices:
        raise ConfigError(
            "a model on the meta device computes nothing, so it has no latency. Give it weights "
            "with `model.to_empty(device=...)` or load them"
        )
    return [device for device in devices if device.type != "cpu"]


def _summary(samples: list[float]) -> Latency:
    values: NDArray[np.float64] = np.asarray(samples)
    p10, median, p90 = (float(value) for value in np.percentile(values, [10, 50, 90]))
    return Latency(median, p10, p90, len(samples), tuple(samples))
