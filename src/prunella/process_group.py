"""The process group of `torch.distributed`, which is to be gone before the interpreter is.

A thread of the group that lets go of the last message while the interpreter ends aborts the
process: "terminate called without an active exception", seen once in 25 on a busy machine.
`destroy_process_group` ends these threads unless somebody else still holds the group, and
`torch.distributed.nn.functional` does: the group that is there when it is imported is the default
argument of its functions. torch imports it by itself, as late as at an optimizer's first step. So
whoever uses a group has `dist` from here, which imports that one while there is no group yet.
"""

import torch.distributed as dist

__all__ = ["dist", "leave"]

if dist.is_available():
    import torch.distributed.nn.functional  # noqa: F401  see above


def leave() -> None:
    """End this process's group and its threads, where it has one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
