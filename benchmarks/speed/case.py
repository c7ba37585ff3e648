"""One row: a network, a runtime, a batch size, and a speed-up that is asked."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torchvision.models as zoo
from torch import Tensor, nn

import prunella
from benchmarks.record import Row
from prunella.costs.latency import compare, speedup
from prunella.latency import LatencyModel, profile
from prunella.latency.meeting import Met
from prunella.runtimes import Runtime, prepare

NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "ResNet-18": zoo.resnet18,
    "ResNet-50": zoo.resnet50,
    "MobileNetV2": zoo.mobilenet_v2,
    "EfficientNet-B0": zoo.efficientnet_b0,
    "ViT-B/16": zoo.vit_b_16,
}

SECONDS = 10.0  # for the runs that a row reports
LATENCY, MACS = "latency", "MACs"


@dataclass(frozen=True)
class Setting:
    """A network on a runtime.

    Attributes:
        network: One of `NETWORKS`.
        runtime: With its threads.
        batch: Images of one forward.
        plans: How many networks the latency model is measured on.
    """

    network: str
    runtime: str
    batch: int
    plans: int

    @cached_property
    def inputs(self) -> Tensor:
        """Return random images."""
        return torch.randn(self.batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))

    @cached_property
    def model(self) -> nn.Module:
        """Make the network, with random weights."""
        torch.manual_seed(0)
        return NETWORKS[self.network]().eval()

    @cached_property
    def groups(self) -> prunella.Groups:
        """Trace the network."""
        return prunella.couple(prunella.trace(self.model, self.inputs))

    @cached_property
    def profiled(self) -> tuple[LatencyModel, float]:
        """Measure the latency model, and how long that takes where it was not there yet."""
        began = time.monotonic()
        found = profile(self.model, self.inputs, self.groups, self.runtime, plans=self.plans)
        return found, time.monotonic() - began

    def rows(self, asked: float) -> Iterator[Row]:
        """Prune to a share of the time, and to the same share of the MACs, and time both."""
        known, seconds = self.profiled
        yield self._row(
            LATENCY,
            asked,
            prunella.prune(
                self.model,
                self.inputs,
                latency=1 / asked,
                runtime=self.runtime,
                latency_model=known,
            ),
            profile_seconds=round(seconds, 1),
            model_plans=known.plans,
            model_error=round(known.error, 4),
            model_error_p90=round(known.worst, 4),
        )
        yield self._row(MACS, asked, prunella.prune(self.model, self.inputs, macs=1 / asked))

    def _row(self, budget: str, asked: float, found: prunella.PruneResult, **more: float) -> Row:
        known, _ = self.profiled
        runtime = Runtime.of(self.runtime)
        with (
            prepare(self.model, self.inputs, runtime=runtime) as dense,
            prepare(found.model, self.inputs, runtime=runtime) as pruned,
        ):
            times = compare({"dense": dense, "pruned": pruned}, seconds=SECONDS)
        got = speedup(times["dense"], times["pruned"])
        macs = found.plan.before.macs / found.plan.after.macs
        predicted = self._predicted(known, found.plan)
        met: Met | None = found.summary.latency
        return {
            "network": self.network,
            "runtime": runtime.name,
            "threads": runtime.threads,
            "batch": self.batch,
            "budget": budget,
            "asked": asked,
            "got": round(got.ratio, 3),
            "low": round(got.low, 3),
            "high": round(got.high, 3),
            "predicted": round(predicted, 3),
            "missed": round(got.ratio / predicted - 1, 4),
            "macs": round(macs, 3),
            "ideal": round(got.ratio / macs, 3),
            "dense_ms": round(times["dense"].median_ms, 3),
            "pruned_ms": round(times["pruned"].median_ms, 3),
            "tries": met.tries if met else 0,
            **more,
        }

    def _predicted(self, known: LatencyModel, plan: prunella.Plan) -> float:
        """Return the speed-up that the latency model predicts for a plan."""
        mask = np.ones(self.groups.channels, dtype=bool)
        whole = known.predict(self.groups, mask)
        for group in self.groups:
            mask[group.start : group.start + group.channels] = False
            mask[group.start + np.array(plan.channels[group.name], dtype=int)] = True
        return whole / known.predict(self.groups, mask)
