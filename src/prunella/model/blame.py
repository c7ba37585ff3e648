"""Find the line of the user's own code that an error came from."""

import linecache
import sys
import traceback
from pathlib import Path

import torch

_OURS = Path(__file__).parents[1]
_FRAMEWORK = Path(torch.__file__).parent


def own_line(error: BaseException) -> str:
    """Return ` at file:line ("code")` for the innermost frame outside us and torch, or ""."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_file() and not {_OURS, _FRAMEWORK} & set(path.parents):
            return f" at {frame.filename}:{frame.lineno} (`{frame.line}`)"
    return ""


def calling_line() -> str:
    """Return `file:line ("code")` of the innermost running frame outside us and torch, or ""."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith((str(_OURS), str(_FRAMEWORK), "<")):
            code = linecache.getline(name, frame.f_lineno).strip()
            return f"{name}:{frame.f_lineno} (`{code}`)"
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that says something."""
    return next((line for line in str(error).splitlines() if line.strip()), "")[:300]
