"""Prune one network, prove it, and write down what it took."""

import random
import re
import resource
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import prunella
from benchmarks.zoo import checking
from benchmarks.zoo.clock import Clock
from benchmarks.zoo.network import Arguments, Network
from benchmarks.zoo.randomising import randomise
from benchmarks.zoo.row import Row, Status
from prunella.errors import CertificateError, NothingToPruneError
from prunella.model.outputs import tensors_in

RATIO = 0.5
LEAST, MOST = 0.1, 0.9
"""Bounds of the uneven ratios."""

Said = Callable[[Any], None]
"""Takes the name of a stage that begins, or a row as far as it is known."""


def measure(name: str, build: Callable[[str], Network], say: Said, uneven: bool = False) -> None:
    """Measure one network; the last row said is the result.

    Args:
        name: The network.
        build: Builds it.
        say: Told of every stage that begins and of every row.
        uneven: Whether to prove it at a random ratio for every group as well.
    """
    clock = Clock(say)
    stage = "build"
    try:
        say(stage)
        torch.manual_seed(0)
        network = build(name)
        stage = "randomise"
        say(stage)
        randomise(network.model, network.inputs)
        inputs = network.inputs(1)
        stage = ""
        with clock.running():
            result = prunella.prune(network.model, inputs[0], ratio=RATIO, example_kwargs=inputs[1])
    except Exception as error:  # noqa: BLE001 - a row is written whatever happens
        say(_failure(name, error, stage or clock.failed, clock))
        return
    row = _row(name, result, clock)
    say(row)
    for check, run in {
        "costs": lambda: checking.costs(result, inputs),
        "signal": lambda: _signal(result.model, network),
        "uneven": lambda: _uneven(name, result, network.model, inputs) if uneven else None,
        "loads": lambda: checking.loads(result.model, build(name).model, inputs),
        "exports": lambda: checking.exports(result.model, network.model, inputs),
        "trains": lambda: checking.trains(result.model, network),
    }.items():
        say(check)
        began = time.process_time()
        row = _with(row, check, run)
        spent = {**row.seconds, check: round(time.process_time() - began, 3)}
        row = replace(row, seconds=spent)
        say(row)


def _with(row: Row, check: str, run: Callable[[], Any]) -> Row:
    if check in ("signal", "uneven"):
        try:
            return replace(row, **{check: run()})
        except Exception as error:  # noqa: BLE001 - as above
            return replace(row, checks={**row.checks, check: _text(error)})
    return replace(row, checks={**row.checks, check: checking.attempt(run)})


def _row(name: str, result: prunella.PruneResult, clock: Clock) -> Row:
    plan, groups, proof = result.plan, result.summary.groups, result.certificate
    left = {
        part: getattr(plan.after, part) / max(getattr(plan.before, part), 1)
        for part in ("macs", "params")
    }
    return Row(
        name=name,
        status="ok",
        error=proof.error,
        dtype=proof.dtype,
        form=result.form,
        macs=plan.before.macs,
        macs_left=left["macs"],
        params=plan.before.params,
        params_left=left["params"],
        units=sum(group.channels for group in groups),
        groups=len(groups),
        frozen=len(groups.frozen),
        reasons=_reasons(groups),
        seconds=_rounded(clock),
        memory_gb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    )


def _rounded(clock: Clock) -> dict[str, float]:
    return {stage: round(spent, 3) for stage, spent in clock.seconds.items()}


def _reasons(groups: prunella.Groups) -> tuple[tuple[str, int, int, float], ...]:
    """Sum up why groups are frozen, most costly first.

    A reason's share are the MACs of the operators of which it freezes a side: what they might lose,
    were the reason not there.
    """
    frozen = defaultdict(list)
    for group in groups.frozen:
        # A line of code is named by its library, wherever that is installed here.
        for reason in {
            re.sub(r"\S*site-packages/", "", f"{why.reason} (`{why.op}`)") for why in group.frozen
        }:
            frozen[reason].append(group)
    costs = [(prod((term.factor, *map(len, term.dims))), term.dims) for term in groups.terms]
    every = max(sum(cost for cost, _ in costs), 1)
    found = []
    for reason, members in frozen.items():
        stuck = np.zeros(groups.channels + 1, dtype=bool)  # the last is -1, what is never cut
        for group in members:
            stuck[group.start : group.start + group.channels] = True
        held = sum(cost for cost, dims in costs if any(stuck[numbers].any() for numbers in dims))
        channels = sum(group.channels for group in members)
        found.append((reason, len(members), channels, round(held / every, 4)))
    return tuple(sorted(found, key=lambda reason: (-reason[3], reason[0])))


def _failure(name: str, error: Exception, stage: str, clock: Clock) -> Row:
    kinds: dict[type, Status] = {
        CertificateError: "certificate failed",
        NothingToPruneError: "nothing removed",
    }
    last = traceback.extract_tb(_root(error).__traceback__)[-1]
    return Row(
        name=name,
        status=kinds.get(type(error), "failed"),
        stage=stage,
        why=_text(error),
        where=f"{'/'.join(Path(last.filename).parts[-2:])}:{last.lineno} in {last.name}",
        seconds=_rounded(clock),
    )


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:600]


def _signal(model: nn.Module, network: Network) -> float:
    outputs = []
    with torch.no_grad():
        for _ in range(2):
            args, kwargs = network.inputs(1)
            outputs.append([out for out in tensors_in(model(*args, **kwargs)) if _counts(out)])
    if [out.shape for out in outputs[0]] != [out.shape for out in outputs[1]]:
        return 1.0  # not even as many boxes
    gaps = [float((a - b).abs().max() / a.abs().max()) for a, b in zip(*outputs, strict=True)]
    return max((gap for gap in gaps if gap == gap), default=0.0)


def _counts(output: Tensor) -> bool:
    return output.is_floating_point() and output.numel() > 0


def _uneven(name: str, result: prunella.PruneResult, model: nn.Module, inputs: Arguments) -> float:
    groups = result.summary.groups
    draw = random.Random(name)
    ratios = {group.name: draw.uniform(LEAST, MOST) for group in groups}
    plan = prunella.allocate(groups, prunella.score(model, groups), ratios)
    pruned = prunella.transform(model, plan, certify=False)
    return prunella.certify(model, pruned, plan, *inputs).error
