"""The processes of one run: usually this one alone, several under `accelerate launch`.

The first process decides and writes; all of them measure the sensitivity, a group each, and
finetune. What the first one found out is shared, an error included, so that all go the same way.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch

from prunella.finetuning.together import together
from prunella.launcher import launched

T = TypeVar("T")

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

    def together(self, act: Callable[[], T]) -> T:
        """Act in all; what raises in one raises in all."""


class Alone:
    """One process: it is the first, and there is nobody to wait for."""

    main = True
    several = False

    def share(self, value: Any) -> Any:
        """Return the value."""
        return value

    def wait(self) -> None:
        """Go on."""

    def together(self, act: Callable[[], T]) -> T:
        """Act."""
        return act()


class Several:
    """Several processes, as Accelerate finds them; `cpu` keeps them off accelerators."""

    several = True

    def __init__(self, *, cpu: bool) -> None:
        from accelerate import PartialState

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

    def together(self, act: Callable[[], T]) -> T:
        """Act in all; what raises in one raises in all."""
        return together(self._state, act)


def peers(device: str) -> Peers:
    """Find out who takes part in this run, from what a launcher put into the environment.

    Args:
        device: `run.device`; finetuning, which asks Accelerate for a device, is held to "cpu".
    """
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on")
    available = torch.accelerator.is_available()
    cpu = device == "cpu" or asked or not available
    several = launched()
    if several or (cpu and available):
        found = Several(cpu=cpu)
        return found if several else Alone()
    return Alone()


def by_first(among: Peers, act: Callable[[], T]) -> T:
    """Let the first process act, and return what it returns, or raise what it raises, in all."""
    value: T = among.share(among.together(lambda: act() if among.main else None))
    return value
