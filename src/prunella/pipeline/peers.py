"""The processes of one run: usually this one alone, several under `accelerate launch`.

The first process decides and writes; all of them measure the sensitivity, a group each, and
finetune. What the first one found out is shared, an error included, so that all go the same way.
"""

import os
from datetime import timedelta
from typing import Any, Protocol

import torch

from prunella.errors import PrunellaError

# One process may analyze for hours while the others wait.
_PATIENCE = timedelta(days=7)


class Peers(Protocol):
    """The processes of a run, as one of them sees them.

    `main` is whether it is the first, `several` whether there are others.
    """

    main: bool
    several: bool

    def share(self, value: Any) -> Any:
        """Return the first process's value in all, when all have come here."""

    def wait(self) -> None:
        """Return when all have come here."""


class Alone:
    """One process: it is the first, and there is nobody to wait for."""

    main = True
    several = False

    def share(self, value: Any) -> Any:
        """Return the value."""
        return value

    def wait(self) -> None:
        """Go on."""


class Several:
    """Several processes, as Accelerate finds them; `cpu` keeps them off accelerators."""

    several = True

    def __init__(self, *, cpu: bool) -> None:
        from accelerate import PartialState

        from prunella import process_group  # noqa: F401 - before there is a group

        self._state = PartialState(cpu=cpu, timeout=_PATIENCE)
        self.main = bool(self._state.is_main_process)

    def share(self, value: Any) -> Any:
        """Return the first process's value in all, when all have come here."""
        from accelerate.utils import broadcast_object_list

        shared = broadcast_object_list([value])[0]
        self.wait()
        return shared

    def wait(self) -> None:
        """Return when all have come here."""
        self._state.wait_for_everyone()


def peers(device: str) -> Peers:
    """Find out who takes part in this run, from what a launcher put into the environment.

    Args:
        device: `run.device`; finetuning, which asks Accelerate for a device, is held to "cpu".
    """
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on")
    available = torch.accelerator.is_available()
    cpu = device == "cpu" or asked or not available
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several or (cpu and available):
        found = Several(cpu=cpu)
        return found if several else Alone()
    return Alone()


def agreed(error: PrunellaError | None, value: Any, among: Peers) -> Any:
    """Share a value of the first process, or raise its error, in all of them."""
    problem, shared = among.share((error, value))
    if problem is not None:
        raise problem
    return shared
