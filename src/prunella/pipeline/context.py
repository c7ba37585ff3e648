"""What every stage of a run needs: the settings, the work folder, the task, the dense model."""

import contextlib
import dataclasses
import logging
import math
import shlex
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from prunella import tasks
from prunella.config import Config, changed, joined
from prunella.costs.memory import count_activation_bytes
from prunella.costs.predicted import predict
from prunella.coupling import couple
from prunella.finetuning.feeding import own_chance, own_randomness
from prunella.finetuning.fingerprints import Limited, in_order, trained_on
from prunella.graph import Graph
from prunella.latency import LatencyModel
from prunella.model.devices import device_named
from prunella.model.structure import weights_digest
from prunella.pipeline.defaults import suggested
from prunella.pipeline.peers import peers
from prunella.pipeline.profiling import profiled
from prunella.pipeline.teaching import why_mute
from prunella.plan import Costs, Groups
from prunella.progress import Progress, or_silent
from prunella.pruning.probing import faithful
from prunella.runtimes import Runtime
from prunella.runtimes.in_torch import threads_set
from prunella.scoring.scoring import chosen
from prunella.storing import load as load_pruned
from prunella.tasks import Split, Task
from prunella.tracing import trace
from prunella.workspace import Workspace

log = logging.getLogger("prunella")


class Context:
    """The settings of a run and what follows from them, each computed when first asked for.

    Args:
        config: The settings.
        progress: See `prunella.progress`.
        typed: The settings as they were typed, for the commands that messages suggest; made from
            `config` where None.
    """

    def __init__(
        self, config: Config, progress: Progress | None = None, typed: str | None = None
    ) -> None:
        self.config = config
        self.peers = peers(config.run.device)
        self.space = Workspace(config.folder, main=self.peers.main)
        self.progress = or_silent(progress if self.peers.main else None)
        self._typed = typed
        self.notes: list[str] = []

    @cached_property
    def task(self) -> Task:
        """The user's task."""
        options = dict(self.config.task.options)
        task = tasks.load(self.config.task.spec, progress=self.progress, **options)
        self.code = _code_of(task)  # now, for what its functions hold may count or collect
        # What is wrong here is told before hours of work, not after.
        suggested(task)
        chosen(self.config.prune.criterion, with_data=True)
        return task

    @cached_property
    def device(self) -> torch.device:
        """Where models are evaluated."""
        if self.config.run.device != "auto":
            return device_named(self.config.run.device)
        found = (
            torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        )
        return found or torch.device("cpu")

    @cached_property
    def dense(self) -> nn.Module:
        """The trained model as it was before any pruning."""
        with own_chance(self.config.run.seed, self.device):
            return tasks.model_of(self.task).to(self.device).eval()

    @cached_property
    def example(self) -> tuple[Any, ...]:
        """The example inputs, on the device."""
        moved: tuple[Any, ...] = tasks.to_device(self.task.example_inputs, self.device)
        return moved

    @cached_property
    def mute(self) -> str:
        """Why the dense model's outputs teach nothing; "" where they do."""
        with own_chance(self.config.run.seed, self.device):
            return why_mute(self)

    @cached_property
    def graph(self) -> Graph:
        """The dense model, captured."""
        log.info("tracing %s", self.task.name)
        return trace(self.dense, self.example)

    @cached_property
    def groups(self) -> Groups:
        """The groups of the dense model."""
        return faithful(self.dense, couple(self.graph, self.config.prune.exclude), self.example, {})

    @cached_property
    def costs(self) -> Costs:
        """What one sample of the dense model costs."""
        costs = predict(self.groups, np.ones(self.groups.channels, dtype=bool))
        if self.config.budget.activation_bytes is None:
            return costs
        return dataclasses.replace(
            costs, activation_bytes=count_activation_bytes(self.dense, self.example)
        )

    @cached_property
    def runtime(self) -> Runtime:
        """Where time is measured: torch, eager, on the run's device, unless a budget names it."""
        asked = Runtime.of(self.config.budget.runtime or f"torch:device={self.device}")
        return dataclasses.replace(asked, threads=asked.threads or self.config.run.threads)

    @cached_property
    def latency_model(self) -> LatencyModel | None:
        """The dense model's time by its widths, measured once; None where no budget is on time."""
        return None if self.config.budget.latency is None else profiled(self)

    @cached_property
    def priced(self) -> Costs:
        """The costs, with the milliseconds that are predicted where a budget is on time."""
        if self.latency_model is None:
            return self.costs
        whole = np.ones(self.groups.channels, dtype=bool)
        return dataclasses.replace(
            self.costs, latency=self.latency_model.predict(self.groups, whole)
        )

    @cached_property
    def weights(self) -> str:
        """Fingerprint of the dense model's weights."""
        return weights_digest(self.dense)

    @cached_property
    def data(self) -> Mapping[str, str]:
        """Fingerprints of the data that choices are made on."""
        return trained_on(self.task)

    @cached_property
    def code(self) -> Mapping[str, str]:
        """What tells the functions that judge and train models from others, as they were loaded."""
        return _code_of(self.task)

    def groups_of(self, model: nn.Module) -> Groups:
        """Trace and couple a pruned model."""
        groups = couple(trace(model, self.example), self.config.prune.exclude)
        return faithful(model, groups, self.example, {})

    def evaluate(self, model: nn.Module, split: Split) -> float:
        """Judge a model."""
        return tasks.evaluate(model, self.task, split, device=self.device, progress=self.progress)

    def load(self, name: str) -> nn.Module:
        """Load a pruned model of the run by the name of its folder."""
        return load_pruned(self.space.folder / name, self.dense).eval()

    def note(self, text: str, *, said: bool = False) -> None:
        """Warn, unless that was `said` already, and keep the warning for the record."""
        if text not in self.notes:
            self.notes.append(text)
            if self.peers.main and not said:
                log.warning("%s", text)

    def command(self, verb: str, **settings: object) -> str:
        """Write a command that goes on with this run; `settings` replace those that were typed."""
        typed = self._typed
        if typed is None:
            typed = shlex.join(
                part for key, value in changed(self.config).items() for part in (f"--{key}", value)
            )
        if settings:
            typed = _without(typed, settings)
        extra = " ".join(f"--{key} {value}" for key, value in settings.items())
        return " ".join(part for part in ("prunella", verb, typed, extra) if part)


def _code_of(task: Task) -> dict[str, str]:
    return {
        "metric": tasks.code_of(task.metric.compute, task.inputs),
        "training": tasks.code_of(task.loss, task.train, task.inputs),
    }


def _without(typed: str, settings: Iterable[str]) -> str:
    """Leave settings out of what was typed."""
    replaced = tuple(f"--{key}=" for key in settings)
    return shlex.join(word for word in joined(shlex.split(typed)) if not word.startswith(replaced))


@contextlib.contextmanager
def borrowed(context: Context) -> Iterator[None]:
    """Give the number of threads and the random generators back as they were."""
    with threads_set(context.config.run.threads), own_randomness(context.device):
        yield


def share_of(task: Task, split: Split, share: float) -> Task:
    """Give the same task with only a share of a split's batches, rounded up: always the same ones.

    To be read within `own_chance`, since the order of training data is drawn.
    """
    if share == 1:
        return task
    loader = tasks.open_split(task, split)
    size = tasks.size_of(loader)
    if size is None:
        size = sum(1 for _ in loader)
    kept = math.ceil(share * size)

    def first(asked: Split) -> Iterable[Any]:
        return Limited(lambda: in_order(task.data(asked), asked), kept)

    return dataclasses.replace(task, data=first)
