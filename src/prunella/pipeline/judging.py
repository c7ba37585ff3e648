"""Whether a finetuned model is good enough to go on from."""

from prunella.errors import ConfigError
from prunella.pipeline.context import Context
from prunella.pipeline.remembering import Made, remembered
from prunella.pipeline.slots import Slot
from prunella.workspace import Entry


def floor_of(context: Context, baseline: Entry) -> float | None:
    """Give the worst metric on the valid split the user accepts, None for any."""
    settings = context.config.finetune
    if settings.max_drop is None:
        return settings.floor
    sign = 1 if context.task.metric.higher_is_better else -1
    return float(baseline.payload["valid"]) - sign * settings.max_drop


def check_floor(context: Context, baseline: Entry) -> None:
    """Refuse a floor that the dense model itself misses."""
    floor, value = floor_of(context, baseline), float(baseline.payload["valid"])
    if floor is not None and context.task.metric.better(floor, value):
        raise ConfigError(
            f"the dense model's {context.task.metric.name} on the valid split is {value:.4g}, "
            f"which already misses the floor {floor:.4g}. Set `--finetune.floor` to what a pruned "
            "model can reach, or `--finetune.max_drop` relative to the dense one"
        )


def judge(context: Context, slot: Slot, tuned: Entry, baseline: Entry) -> Entry:
    """Accept an attempt whose metric meets the floor, and record why or why not."""
    floor, metric = floor_of(context, baseline), context.task.metric
    value = float(tuned.payload["metric"])
    inputs = {"model": tuned.payload["model"], "metric": value, "floor": floor}
    name = f"{metric.name} {value:.4g} on the valid split"

    def make() -> Made:
        if floor is None:
            return {"accepted": True, "reason": f"{name}; no floor is set"}, ()
        accepted = not metric.better(floor, value)
        words = "meets" if accepted else "misses"
        return {"accepted": accepted, "reason": f"{name} {words} the floor {floor:.4g}"}, ()

    return remembered(context, slot.record("verdict"), inputs, make, quiet=True)
