"""Measure in the processes of one run, as a launcher started them, on any device."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prunella.errors import ConfigError, PrunellaError, TaskError
from prunella.journal import Journal
from prunella.process_group import dist
from prunella.sensitivity.processes import Step, Value


def check_ranks(workers: int) -> None:
    """Raise `ConfigError` where processes cannot measure together."""
    if not (dist.is_available() and dist.is_initialized()):
        raise ConfigError(
            "`together` shares the groups among the processes of `torch.distributed`, and there is "
            "no process group: start with `torchrun` or `accelerate launch`, or leave it out"
        )
    if workers > 1:
        raise ConfigError(
            f"the groups are shared among {dist.get_world_size()} processes of a launcher, which "
            f"start no more of their own: got {workers=}, use 1"
        )


def first_of(
    recall: Callable[[], tuple[Journal | None, dict[Step, Value]]],
) -> tuple[Journal | None, dict[Step, Value]]:
    """Let the first process open the record, and all know what it knows.

    Raises:
        PrunellaError: The first one's, in all.
    """
    journal: Journal | None = None
    shared: list[Any] = [None, {}]
    if dist.get_rank() == 0:
        try:
            journal, shared[1] = recall()
        except PrunellaError as error:
            shared[0] = error
    dist.broadcast_object_list(shared, src=0)
    if shared[0] is not None:
        raise shared[0]
    return journal, shared[1]


def dealt_out(
    steps: Sequence[Step], measure: Callable[[Step], Value]
) -> Iterator[tuple[Step, Value]]:
    """Measure one group in each process, tell each other the values, and go on with the next.

    Groups that are measured at once are neighbours in the network, so they take equally long. The
    dense model is measured in all, and the first one's value counts. All processes yield the values
    of all. One that goes no further is to close this, or the others wait for it.

    Args:
        steps: In the order of the network; the same in all processes.
        measure: Measures one step.

    Raises:
        PrunellaError: One of the processes failed; all of them raise.
    """
    mine, ranks = dist.get_rank(), dist.get_world_size()
    names = list(dict.fromkeys(name for name, count in steps if count))
    turns = [names[i : i + ranks] for i in range(0, len(names), ranks)]
    try:
        dense = [step for step in steps if not step[1]]
        yield from _told(dense, measure)[0]
        for turn in turns:
            own = [step for step in steps if step[1] and step[0] in turn[mine : mine + 1]]
            for values in _told(own, measure):
                yield from values
        _told([], measure)  # that all have come to the end
    except GeneratorExit:
        _exchanged(([], TaskError(f"process {mine} of {ranks} stopped; it says why")))
        raise


_Part = tuple[list[tuple[Step, Value]], PrunellaError | None]


def _told(
    steps: Sequence[Step], measure: Callable[[Step], Value]
) -> list[list[tuple[Step, Value]]]:
    """Measure steps, and return what every process measured."""
    parts = _exchanged(_measured(steps, measure))
    for _, error in parts:
        if error is not None:
            raise error
    return [values for values, _ in parts]


def _exchanged(part: _Part) -> list[_Part]:
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, part)
    return found


def _measured(steps: Sequence[Step], measure: Callable[[Step], Value]) -> _Part:
    try:
        return [(step, measure(step)) for step in steps], None
    except PrunellaError as error:
        return [], error
    except Exception as error:  # noqa: BLE001 - whatever the user's function raises
        text = f"evaluating in process {dist.get_rank()} failed: {type(error).__name__}: {error}"
        return [], TaskError(text)
