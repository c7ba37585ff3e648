"""The process group of `torch.distributed`, which is to be gone before the interpreter is.

A thread of the group that lets go of the last message while the interpreter ends aborts the
process: "terminate called without an active exception", seen once in 25 on a busy machine.
`destroy_process_group` ends these threads unless somebody else still holds the group, and
`torch.distributed.nn.functional` does: the group that is there when it is imported is the default
argument of its functions. torch imports it by itself, as late as at an optimizer's first step. So
whoever uses a group has `dist` from here, which imports that one while there is no group yet.
"""

import contextlib
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as dist

from prunella import launcher

__all__ = ["dist", "leave", "telling"]

_TOLD, _PATIENCE = "prunella/told", timedelta(seconds=10)

if dist.is_available():
    import torch.distributed.nn.functional  # noqa: F401  see above


@contextlib.contextmanager
def telling() -> Iterator[bool]:
    """Yield whether it is this process that tells why all end: the first to come here.

    The others wait until it has told, for whoever started them ends all when one has ended. Before
    there is a group all of them read the same settings, and the one of rank 0 tells.
    """
    if not (dist.is_available() and dist.is_initialized()):
        yield launcher.first()
        return
    store = dist.distributed_c10d._get_default_store()
    try:
        first = store.add(f"{_TOLD}/by", 1) == 1
    except RuntimeError:  # the process that kept the store is gone, as one is that was killed
        first = True
    yield first
    with contextlib.suppress(RuntimeError):
        if first:
            store.set(_TOLD, "")
        else:
            store.wait([_TOLD], _PATIENCE)


def leave(*, failed: bool) -> None:
    """End this process's group and its threads, where it has one.

    Where the process `failed`, others may still be in the middle of something together, and leaving
    any group but Gloo's may wait for them.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    if not failed or dist.get_backend() == dist.Backend.GLOO:
        dist.destroy_process_group()
