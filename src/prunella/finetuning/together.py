"""What raises in one process of several raises in all: or the others would wait for it."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list

from prunella.errors import PrunellaError, TaskError
from prunella.process_group import dist

T = TypeVar("T")


def together(
    processes: Accelerator | PartialState, act: Callable[[], T], *, often: bool = False
) -> T:
    """Act in every process, and go on when all have.

    Args:
        processes: All that come here, as Accelerate knows them.
        act: What each does; it may not wait for the others.
        often: This is done at every step. An accelerator would stand still each time, so there it
            is left to whoever started the processes to end those that wait for one that failed.

    Raises:
        Exception: What `act` raised in this process, or else the first other's as a PrunellaError.
    """
    if processes.num_processes == 1 or (often and processes.device.type != "cpu"):
        return act()
    made: list[T] = []
    own: Exception | None = None
    try:
        made.append(act())
    except Exception as error:  # noqa: BLE001 - whatever the user's code raises
        own = error
    failed = torch.tensor(float(own is not None), device=processes.device)
    dist.all_reduce(failed, dist.ReduceOp.MAX)
    if not failed:
        return made[0]
    errors: list[Any] = [None] * processes.num_processes
    dist.all_gather_object(errors, None if own is None else _sent(own, processes.process_index))
    try:
        raise own or next(error for error in errors if error is not None)
    finally:
        del own, errors  # or the traceback holds this frame, which holds the error: neither goes


def from_main(accelerator: Accelerator, value: Any) -> Any:
    """Replace a value by the main process's, so that all take the same way."""
    if accelerator.num_processes == 1:
        return value
    return broadcast_object_list([value])[0]


def _sent(error: Exception, index: int) -> PrunellaError:
    """Give an error as others can have it: what users' code raises may be of a class of theirs."""
    if isinstance(error, PrunellaError):
        return error
    return TaskError(f"process {index} raised {type(error).__name__}: {error}")
