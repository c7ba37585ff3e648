"""The end of a run: the final model with its certificate, its latency, and the one look at test."""

import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from prunella.costs import count_macs, count_params
from prunella.costs.latency import Latency, compare, speedup
from prunella.errors import CertificateError, TaskError
from prunella.finetuning.fingerprints import data_digest
from prunella.latency.meeting import Met, judged
from prunella.model.carrying import plan_of
from prunella.model.structure import digest_of, tensors, weights_digest
from prunella.pipeline.context import Context
from prunella.pipeline.keeping import making_way
from prunella.pipeline.remembering import Made, remembered
from prunella.pipeline.slots import Slot
from prunella.pipeline.stages import kept_of
from prunella.runtimes import prepare
from prunella.storing import save
from prunella.transforming import transform_and_prove
from prunella.workspace import Entry

log = logging.getLogger("prunella")


def finish(context: Context, slot: Slot, tuned: Entry) -> Entry:
    """Make the final model: one plan of the original model, proven, with the finetuned weights."""
    inputs = {
        "from": slot.name,
        "weights": tuned.payload["model"],
        "dense": context.weights,
    }

    def make() -> Made:
        began = time.perf_counter()
        healed = context.load(f"{slot.name}/finetuned")
        plan = plan_of(healed)
        assert plan is not None, "a model loaded from a run carries its plan"
        final, proof = transform_and_prove(context.dense, plan, context.example, {})
        _copy(healed, final)
        context.space.replace_folder("final", lambda folder: save(final, folder))
        read = context.load("final")
        if weights_digest(read) != weights_digest(healed):
            raise CertificateError(
                "the saved model is not the finetuned one; it stays in "
                f"`{context.space.folder / slot.name / 'finetuned'}`"
            )
        return {
            "macs": count_macs(read, context.example),
            "params": count_params(read),
            "groups": kept_of(context.groups, plan),
            "certificate": asdict(proof),
            "model": weights_digest(read),
            "seconds": time.perf_counter() - began,
        }, ("final",)

    # One without its record was damaged, and is made again in its place.
    return remembered(context, "final", inputs, make, replacing=making_way(context, slot))


def test(context: Context, final: Entry) -> Entry:
    """Judge the dense and the final model on the test split; a record of it is never made twice."""
    metric = context.task.metric
    inputs = {
        "model": final.payload["model"],
        "dense": context.weights,
        "data": data_digest(context.task, "test"),
        "metric": metric.name,
        "code": {"metric": context.code["metric"]},
    }
    before = context.space.read("test")
    if before is not None and before.inputs.get("model") != inputs["model"]:
        context.note(
            "the test data were already used to judge an earlier model of this folder; a choice "
            "made after seeing that figure makes this one too good"
        )

    def make() -> Made:
        began = time.perf_counter()
        log.info("testing the dense and the final model")
        return {
            "baseline": _tested(context, context.dense, "dense"),
            "compressed": _tested(context, context.load("final"), "final"),
            "seconds": time.perf_counter() - began,
        }, ()

    return remembered(context, "test", inputs, make)


def _tested(context: Context, model: nn.Module, which: str) -> float:
    try:
        return context.evaluate(model, "test")
    except TaskError as cause:
        raise TaskError(f"of the {which} model, {cause}") from cause


def latency(context: Context, model: nn.Module | None) -> Entry:
    """Measure the dense model and a pruned one side by side, in the runtime that a budget names."""
    models = {"baseline": context.dense}
    if model is not None:
        models["compressed"] = model
    bound = context.config.budget.latency
    inputs: dict[str, Any] = {
        "structure": {name: digest_of(found) for name, found in models.items()},
        "device": str(context.device),
        "threads": torch.get_num_threads(),
        "seconds": context.config.run.latency_seconds,
    }
    if bound is not None:
        inputs["budget"] = {"latency": bound, "runtime": str(context.runtime)}
    # Asked for where all processes are: the first one alone does what follows.
    known = None if model is None else context.latency_model

    def make() -> Made:
        found = _timed(context, models)
        payload: dict[str, Any] = {
            name: {key: getattr(each, key) for key in ("median_ms", "p10_ms", "p90_ms", "runs")}
            for name, each in found.items()
        }
        if model is not None:
            payload["text"] = str(speedup(found["baseline"], found["compressed"]))
            plan = plan_of(model)
            predicted = None if plan is None else plan.after.latency
            if bound is not None and known is not None and predicted is not None:
                met = judged(found["baseline"], found["compressed"], bound, known, predicted)
                payload["budget"] = _held(met)
        return payload, ()

    return remembered(context, "latency", inputs, make, quiet=True)


def _timed(context: Context, models: Mapping[str, nn.Module]) -> dict[str, Latency]:
    """Time models eager in torch, as they are, or in the runtime of the budget."""
    seconds = context.config.run.latency_seconds
    if context.config.budget.latency is None:
        return compare(models, context.example, seconds=seconds)
    with ExitStack() as stack:
        ready = {
            name: stack.enter_context(prepare(model, context.example, {}, context.runtime))
            for name, model in models.items()
        }
        return compare(ready, seconds=seconds)


def _held(met: Met) -> dict[str, Any]:
    """Write down what was asked of time, what was predicted, and what came."""
    return {
        "runtime": met.runtime,
        "asked": met.asked,
        "limit_ms": met.limit,
        "predicted_ms": met.predicted,
        "got_ms": met.got,
        "kept": met.kept or (False if met.missed else None),
        "error": met.error,
    }


@torch.no_grad()
def _copy(source: nn.Module, target: nn.Module) -> None:
    into = tensors(target)
    for name, tensor in tensors(source).items():
        into[name].copy_(tensor)
