"""Where a network runs: torch eager, `torch.compile`, ONNX Runtime, OpenVINO, by one interface.

    runtime = Runtime.of("onnxruntime:threads=2")
    with prepare(model, images, runtime=runtime) as ready:
        outputs = ready.run()

What takes long (exporting, compiling, loading) happens once, in `prepare`; `run` is what a
stopwatch times, see `prunella.costs.latency.compare`.
"""

from prunella.runtimes.prepared import Prepared
from prunella.runtimes.preparing import available, prepare, prepare_onnx
from prunella.runtimes.runtime import RUNTIMES, Runtime

__all__ = ["RUNTIMES", "Prepared", "Runtime", "available", "prepare", "prepare_onnx"]
