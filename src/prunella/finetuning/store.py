"""The checkpoint of a training that may be spread over processes; or of one that keeps none."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from prunella.finetuning.checkpoint import Checkpoint, Saved
from prunella.finetuning.together import together

_LOG = logging.getLogger("prunella")


class Store:
    """Every process reads, the first one writes; without a folder, neither."""

    def __init__(
        self, accelerator: Accelerator, folder: Path | None, identity: Mapping[str, Any]
    ) -> None:
        self._accelerator = accelerator
        self._checkpoint = None if folder is None else Checkpoint(Path(folder), identity)

    def read(self) -> tuple[Saved | None, str]:
        """Read what was saved last, and why it is not taken where it is not."""
        if self._checkpoint is None:
            return None, ""
        self._accelerator.wait_for_everyone()
        saved, note = self._checkpoint.read()
        if note:
            _LOG.info(note)
        return saved, note

    def write(self, saved: Saved) -> None:
        """Replace what was saved before."""
        checkpoint = self._checkpoint
        if checkpoint is not None:
            main = self._accelerator.is_main_process
            together(self._accelerator, lambda: checkpoint.write(saved) if main else None)
