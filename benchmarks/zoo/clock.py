"""How long each stage of one `prune` call takes, measured inside the call itself.

`prune` is what users call, with all that it falls back on; running the stages again on their own
would time something else, twice. So the stages are wrapped wherever the library refers to them.
Seconds are the processor's, of one thread: other work beside does not count.
"""

import functools
import importlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_STAGES = {
    "trace": "prunella.tracing.trace",
    "couple": "prunella.coupling.couple",
    "score": "prunella.scoring.score",
    "allocate": "prunella.allocating.allocate",
    "transform": "prunella.transforming.smaller",
    "probe": "prunella.pruning.probing.faithful",
    "certify": "prunella.certifying.certify",
}


class Clock:
    """Seconds by stage. What a stage calls counts for it, whichever stage that would be alone.

    `at` is told of every stage that begins; `failed` is the one that raised the last error.
    """

    def __init__(self, at: Callable[[str], None]) -> None:
        self.seconds = dict.fromkeys(_STAGES, 0.0)
        self.failed = ""
        self._at = at
        self._busy = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time the stages of all calls made inside; "all" is the time of the whole."""
        originals = {stage: _find(path) for stage, path in _STAGES.items()}
        wrapped = {id(f): (f, self._timed(stage, f)) for stage, f in originals.items()}
        patched = list(_references(wrapped))
        began = time.process_time()
        try:
            for module, name, (_, replacement) in patched:
                setattr(module, name, replacement)
            yield
        finally:
            self.seconds["all"] = time.process_time() - began
            for module, name, (original, _) in patched:
                setattr(module, name, original)

    def _timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._busy:
                return function(*args, **kwargs)
            self._at(stage)
            self._busy = True
            began = time.process_time()
            try:
                return function(*args, **kwargs)
            except Exception:
                self.failed = stage
                raise
            finally:
                self.seconds[stage] += time.process_time() - began
                self._busy = False

        return timed


def _find(path: str) -> Callable[..., Any]:
    module, _, name = path.rpartition(".")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def _references(wrapped: dict[int, Any]) -> Iterator[tuple[Any, str, Any]]:
    """Find every name in the library's modules that refers to one of the functions."""
    for path, module in list(sys.modules.items()):
        if module is not None and path.partition(".")[0] == "prunella":
            for name, value in list(vars(module).items()):
                if id(value) in wrapped:
                    yield module, name, wrapped[id(value)]
