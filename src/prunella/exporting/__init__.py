"""A model handed to other programs: written, run there, compared, timed, quantised."""

from prunella.exporting.exporting import Exported, export
from prunella.exporting.parity import Parity
from prunella.exporting.quantizing import Quantized, quantize
from prunella.exporting.targets import TARGETS
from prunella.exporting.timing import Timing, timed

__all__ = [
    "TARGETS",
    "Exported",
    "Parity",
    "Quantized",
    "Timing",
    "export",
    "quantize",
    "timed",
]
