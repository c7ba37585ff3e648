"""Give batch norms the statistics of what a changed model computes, for a while."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunella.calibration import Calibration


@contextmanager
def recalibrated(model: nn.Module, data: Calibration, modules: Collection[str]) -> Iterator[None]:
    """Estimate the running statistics of some batch norms anew; on leaving, every bit is as before.

    They are the mean over batches of each batch's own statistics, in the order of the network: what
    a norm normalises with while they are taken is its batch.

    Args:
        model: In evaluation mode.
        data: Batches of inputs.
        modules: Names of modules; those that are batch norms with running statistics take part.
    """
    named = dict(model.named_modules(remove_duplicate=False))
    found = dict.fromkeys(named[name] for name in sorted(modules))  # one may have several names
    norms = [m for m in found if isinstance(m, _BatchNorm) and m.track_running_stats]
    buffers = [b for norm in norms for b in norm.buffers(recurse=False)]
    saved = [buffer.clone() for buffer in buffers]
    momenta = [norm.momentum for norm in norms]
    try:
        with torch.no_grad():
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None
                norm.train()
            for args, kwargs in data.batches if norms else ():
                model(*args, **kwargs)
            for norm in norms:
                norm.eval()
        yield
    finally:
        with torch.no_grad():
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
                norm.eval()
            for buffer, value in zip(buffers, saved, strict=True):
                buffer.copy_(value)
