"""A deployed file as a module, so that whatever judges a model can judge the file."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunella.model.containers import filled
from prunella.runtimes import Prepared
from prunella.runtimes.converting import batched
from prunella.runtimes.flattening import Form
from prunella.runtimes.prepared import Array


class Deployed(nn.Module):
    """Runs an exported file in its runtime; takes and gives what the model does.

    A file that is bound to a batch is run as often as it takes, the last rows filled up.

    Args:
        ready: The file, loaded.
        form: How a call is packed.
        names: The names of the outputs.
        output: The form of the outputs.
        batch: The batch the file is bound to; None is any.
    """

    def __init__(
        self,
        ready: Prepared,
        form: Form,
        names: tuple[str, ...],
        output: Any,
        batch: int | None,
    ) -> None:
        super().__init__()
        self.ready, self.form, self.batch = ready, form, batch
        self.names, self.output = names, output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the file."""
        given = self.form.tensors(args, kwargs)
        found = [torch.from_numpy(array) for array in self._answers(given)]
        return filled(self.output, dict(zip(self.names, found, strict=True)))

    def close(self) -> None:
        """Let go of the file."""
        self.ready.close()

    def _answers(self, given: Sequence[Tensor]) -> list[Array]:
        found = [self.ready.on(part) for part in parts(given, self.batch)]
        size = _size(given)
        if self.batch in (None, size):
            return found[0]
        return [
            # An output without a row for each sample cannot be put together.
            np.concatenate(outputs)[:size] if outputs[0].shape[:1] == (self.batch,) else outputs[0]
            for outputs in zip(*found, strict=True)
        ]


def parts(given: Sequence[Tensor], batch: int | None) -> Iterator[list[Array]]:
    """Cut a batch into some of the size that a file takes, the last one filled up with its last."""
    rows, size = {id(tensor) for tensor in batched(given)}, _size(given)
    for start in range(0, size, batch or size):
        taken = torch.arange(start, start + (batch or size)).clamp(max=size - 1)
        yield [_array(t[taken] if batch and id(t) in rows else t) for t in given]


def _size(given: Sequence[Tensor]) -> int:
    found = batched(given)
    return found[0].shape[0] if found else 1


def _array(tensor: Tensor) -> Array:
    array: Array = np.ascontiguousarray(tensor.detach().cpu().numpy())
    return array
