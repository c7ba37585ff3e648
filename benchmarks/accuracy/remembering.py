"""A teacher that is asked once: every method trains on the same batches, so it says the same."""

import hashlib
import sqlite3
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from prunella.model.structure import weights_digest


class Remembering(nn.Module):
    """A network whose logits of a batch are kept in a file, and looked up by the batch's bytes.

    A quarter of a training's time goes into the teacher. The answers are those the network gave,
    so trainings end with the very weights they would have without the file.

    Args:
        network: In evaluation mode; always asked under the same autocast.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        folder = Path(tempfile.gettempdir()) / "prunella-accuracy"
        folder.mkdir(exist_ok=True)
        name = f"logits-{weights_digest(network)[:16]}-{torch.__version__}.sqlite"
        # Two trainings at once write it in turn.
        self._file = sqlite3.connect(folder / name, timeout=60, isolation_level=None)
        self._file.execute("pragma journal_mode=wal")
        self._file.execute("create table if not exists said (batch blob primary key, logits blob)")

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, float32 `[images, classes]`."""
        plain = images.detach().contiguous()
        batch = hashlib.blake2b(plain.numpy().tobytes(), digest_size=16).digest()
        found = self._file.execute("select logits from said where batch = ?", (batch,)).fetchone()
        if found is not None:
            return torch.frombuffer(bytearray(found[0]), dtype=torch.float32).view(len(images), -1)
        logits: Tensor = self.network(images).float()
        kept = logits.contiguous().numpy().tobytes()
        self._file.execute("insert or ignore into said values (?, ?)", (batch, kept))
        return logits
