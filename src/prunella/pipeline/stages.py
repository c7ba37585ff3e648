"""The stages of a run, each a record of the work folder: reused while nothing changed."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from prunella import sensitivity as analysis
from prunella.allocating import told
from prunella.finetuning.feeding import own_chance
from prunella.finetuning.fingerprints import DRAWS
from prunella.masking import mask
from prunella.model.carrying import plan_of
from prunella.model.structure import weights_digest
from prunella.pipeline.budgets import shares
from prunella.pipeline.context import Context, share_of
from prunella.pipeline.keeping import making_way
from prunella.pipeline.planning import damage_of, plan_for
from prunella.pipeline.remembering import Made, remembered
from prunella.pipeline.repairing import ranking, repaired
from prunella.pipeline.slots import Slot, forget_after
from prunella.plan import Groups, Plan
from prunella.progress import Progress
from prunella.runtimes.in_torch import threads_set
from prunella.sensitivity import Sensitivity
from prunella.storing import save
from prunella.tasks import NotFiniteError, Task, evaluate
from prunella.transforming import transform, transform_and_prove
from prunella.workspace import Entry, digest

# Settings that decide about the numbers.
_MEASURED = {"ratios", "share", "split", "precision", "confidence"}

log = logging.getLogger("prunella")


@dataclass(frozen=True)
class Start:
    """The model a round begins with: "dense", or the folder of a finetuned one."""

    name: str
    digest: str
    model: nn.Module


def baseline(context: Context) -> Entry:
    """Judge the dense model on the valid split, and take the fingerprints of model and data."""
    metric = context.task.metric
    inputs = {
        "task": {"spec": context.config.task.spec, "options": dict(context.config.task.options)},
        "metric": f"{metric.name}, {'higher' if metric.higher_is_better else 'lower'} is better",
        "code": {"metric": context.code["metric"]},
        "weights": context.weights,
        "structure": context.graph.digest,
        "data": dict(context.data),
    }
    before = context.space.read("baseline")
    if before is not None and before.inputs.get("weights") == context.weights:
        old = before.inputs.get("data")
        if old != inputs["data"]:
            context.note(
                "the data changed since the baseline was recorded: what was measured on them is "
                "measured again, and figures from before do not compare"
            )

    def make() -> Made:
        began = time.perf_counter()
        value = context.evaluate(context.dense, "valid")
        return {
            "task": context.task.name,
            "valid": value,
            "macs": context.costs.macs,
            "params": context.costs.params,
            "created": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
            "seconds": time.perf_counter() - began,
        }, ()

    return remembered(context, "baseline", inputs, make)


def foundation(context: Context) -> tuple[Task, dict[str, Any]]:
    """Return the data that the sensitivity is measured on, and all that it depends on."""
    settings = context.config.analyze
    task = share_of(context.task, settings.split, settings.share)
    metric = task.metric
    return task, {
        "code": {"metric": context.code["metric"]},
        "weights": context.weights,
        "structure": context.graph.digest,
        "metric": f"{metric.name}, {'higher' if metric.higher_is_better else 'lower'} is better",
        "data": context.data[settings.split],
        "settings": {
            **settings.model_dump(mode="json", include=_MEASURED, exclude_none=True),
            **chosen_by(context),
            "exclude": list(context.config.prune.exclude),
        },
    }


def sensitivity(context: Context) -> Entry:
    """Measure what every group is worth; its payload holds the `Sensitivity`."""
    settings = context.config.analyze
    task, inputs = foundation(context)
    # Or the first one's own workers measure, and the other processes wait.
    together = context.peers.several and settings.workers == 1

    def make() -> Made:
        began = time.perf_counter()
        ranked = ranking(context, context.dense, context.groups)
        log.info("analyzing %d groups at %d ratios", len(context.groups), len(settings.ratios))
        one = 1 if settings.workers > 1 else None
        with threads_set(one), counted(context.progress, "analyze") as progress:
            found = analysis.analyze(
                context.dense,
                context.groups,
                ranked.scores,
                _judge(context, task),
                metric=task.metric.name,
                higher_is_better=task.metric.higher_is_better,
                ratios=settings.ratios,
                record=context.space.path("analysis.journal"),
                data=f"{inputs['data']}, {settings.split}, {settings.share=}, "
                f"{settings.precision}, {context.code['metric']}",
                workers=settings.workers,
                together=together,
                confidence=settings.confidence,
                memory=None if settings.memory_gb is None else int(settings.memory_gb * 2**30),
                cut=ranked.cut,
                progress=progress,
            )
        return {"sensitivity": found.to_json(), "seconds": time.perf_counter() - began}, ()

    entry = remembered(context, "sensitivity", inputs, make, together=together)
    gaps = Sensitivity.from_json(str(entry.payload["sensitivity"])).gaps
    if gaps:
        context.note(gaps, said=True)  # when it was measured
    return entry


def judge_of(context: Context, task: Task) -> Callable[[nn.Module], float]:
    """Judge every model on the same draws of the data: what differs is the model's doing."""
    split, precision = context.config.analyze.split, context.config.analyze.precision

    def judge(model: nn.Module) -> float:
        with own_chance(DRAWS, context.device):
            return evaluate(model, task, split, device=context.device, precision=precision)

    return judge


def _judge(context: Context, task: Task) -> analysis.Evaluate:
    settings, device = context.config.analyze, context.device
    if settings.confidence is None:
        return judge_of(context, task)
    with own_chance(DRAWS, device):
        return analysis.samplewise(
            context.dense, task, settings.split, device=device, precision=settings.precision
        )


@contextlib.contextmanager
def counted(progress: Progress, label: str) -> Iterator[Callable[[int, int], None]]:
    """Show the progress of something that says how much there is only once it is under way."""
    with contextlib.ExitStack() as stack:
        seen: list[Callable[[int], None]] = []

        def report(done: int, total: int) -> None:
            if not seen:
                seen.append(stack.enter_context(progress(label, total)))
            seen[0](1)

        yield report


def dense_start(context: Context) -> Start:
    """Begin with the dense model."""
    return Start("dense", context.weights, context.dense)


def tuned_start(context: Context, slot: Slot, tuned: Entry) -> Start:
    """Begin with the model an attempt ended with."""
    return Start(slot.name, str(tuned.payload["model"]), context.load(f"{slot.name}/finetuned"))


def cut(
    context: Context,
    slot: Slot,
    start: Start,
    target: Mapping[str, float],
    analyzed: Entry,
    *,
    last: bool,
) -> Entry:
    """Prune the model of `start` to `target`, shares of the dense model; certified.

    Args:
        context: Of the run.
        slot: The attempt.
        start: The model to prune.
        target: What may remain.
        analyzed: The record of the sensitivity.
        last: Whether that is the whole budget; one on time is then kept by the stopwatch.
    """
    text = str(analyzed.payload["sensitivity"])
    inputs = {
        "start": {"name": start.name, "weights": start.digest},
        "structure": context.graph.digest,
        "code": {"metric": context.code["metric"]},
        "target": dict(target),
        "sensitivity": digest(text),
        "settings": {
            **chosen_by(context),
            "exclude": list(context.config.prune.exclude),
            "max_ratio": context.config.prune.max_ratio,
            "multiple_of": context.config.prune.multiple_of,
            "candidates": context.config.prune.candidates,
        },
    }
    if context.latency_model is not None:
        inputs["latency"] = {"model": digest(asdict(context.latency_model)), "timed": last}

    make_way = making_way(context, slot)

    def make() -> Made:
        began = time.perf_counter()
        log.info("%s: pruning to %s", slot, shares(target))
        make_way()
        forget_after(context.space, slot)
        context.space.clear(slot.name)
        first = start.name == "dense"
        groups = context.groups if first else context.groups_of(start.model)
        scores = ranking(context, start.model, groups).scores
        damage = damage_of(context, Sensitivity.from_json(text), groups)
        found = plan_for(context, start.model, groups, target, scores, damage, last=last)
        plan = told(found.allocation)
        healed = repaired(context, start.model, plan)
        pruned, proof = transform_and_prove(healed, plan, context.example, {})
        whole = plan_of(pruned)
        assert whole is not None, "a transformed model carries its plan"
        value = just_pruned(context, slot, pruned)
        context.space.replace_folder(f"{slot.name}/pruned", lambda folder: save(pruned, folder))
        step = f"{slot.name}/step.json"
        context.space.write_text(step, plan.to_json())
        return {
            "target": dict(target),
            **{name: getattr(whole.after, name) for name in ("macs", "params", *target)},
            **({"found": found.how} if found.how else {}),
            "warnings": found.allocation.warnings,
            "groups": kept_of(context.groups, whole),
            "pruned_metric": value,
            "certificate": asdict(proof),
            "model": weights_digest(pruned),
            "seconds": time.perf_counter() - began,
        }, (f"{slot.name}/pruned", step)

    entry = remembered(context, slot.record("prune"), inputs, make)
    for warning in entry.payload["warnings"]:
        context.note(f"{slot}: {warning}", said=True)  # when the plan was made
    return entry


def just_pruned(context: Context, slot: Slot, pruned: nn.Module) -> float | None:
    """Judge a model before it is finetuned; None where the metric is not finite."""
    try:
        return context.evaluate(pruned, "valid")
    except NotFiniteError as cause:
        context.note(f"{slot}: before finetuning, {cause}. Finetuning begins with it all the same")
        return None


def kept_of(groups: Groups, plan: Plan) -> list[dict[str, Any]]:
    """List, for every group of the dense model, its channels and how many a plan keeps."""
    return [
        {
            "name": group.name,
            "channels": group.channels,
            "kept": len(plan.channels.get(group.name, range(group.channels))),
        }
        for group in groups
    ]


def to_train(context: Context, slot: Slot, start: Start) -> tuple[nn.Module, Plan | None]:
    """Give the model to finetune, and the plan to hold it to where that is masked training."""
    if not context.config.finetune.masked:
        return context.load(f"{slot.name}/pruned"), None
    plan = Plan.from_json((context.space.folder / slot.name / "step.json").read_text())
    return mask(repaired(context, start.model, plan), plan), plan


def trained(model: nn.Module, plan: Plan | None) -> nn.Module:
    """Cut what was trained masked; what was trained pruned is as it shall be."""
    return model if plan is None else transform(model, plan, certify=False)


def chosen_by(context: Context) -> dict[str, Any]:
    """Name the settings that decide which channels go, and what makes up for them."""
    settings = context.config.prune
    found: dict[str, Any] = {"criterion": settings.criterion, "repair": settings.repair}
    if settings.repair:
        found |= {"calibration": settings.calibration, "inputs": context.data["train"]}
        found["seed"] = context.config.run.seed  # it says which inputs are drawn
    return found
