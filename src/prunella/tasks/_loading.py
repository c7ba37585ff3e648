"""Find a task by name in the catalogue, or in a Python file of the user's."""

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from prunella.errors import ConfigError, TaskError
from prunella.files import expanded
from prunella.progress import Progress
from prunella.tasks._protocol import Task

# A built-in task is a module of the same form as a user's file: it has `def task(...) -> Task`.
CATALOGUE = {
    "cifar10": "prunella.tasks.cifar10",
    "digits": "prunella.tasks.digits",
}


def load(spec: str, *, progress: Progress | None = None, **options: Any) -> Task:
    """Load a task.

    The folder of a user's file is at the end of `sys.path` from then on.

    Args:
        spec: A name of the catalogue ("digits", "cifar10"), or the path of a Python file that
            defines `task`: a `Task`, or a function returning one.
        progress: Handed to that function if it has a parameter of this name.
        options: Handed to that function.

    Raises:
        ConfigError: There is no such task, or it does not know an option.
        TaskError: The user's file raises or defines no task.
    """
    if spec in CATALOGUE:
        module = importlib.import_module(CATALOGUE[spec])
    elif spec.endswith(".py"):
        module = _module(expanded(spec))
    else:
        close = difflib.get_close_matches(spec, CATALOGUE, n=1)
        hint = f" Did you mean `{close[0]}`?" if close else ""
        raise ConfigError(
            f"there is no task `{spec}`.{hint} A task is one of {', '.join(CATALOGUE)}, or the "
            "path of a Python file ending in .py that defines `task`"
        )
    found = getattr(module, "task", None)
    if callable(found) and not isinstance(found, Task):
        found = _call(found, spec, Path(str(module.__file__)), progress, options)
    elif options:
        raise ConfigError(
            f"task `{spec}` takes no options, got {', '.join(sorted(options))}. Leave them out, "
            "or make `task` a function with these parameters"
        )
    if not isinstance(found, Task):
        raise TaskError(
            f"`{spec}` must define `task`, a `prunella.tasks.Task` or a function that returns "
            f"one; found {'nothing of that name' if found is None else type(found).__name__}"
        )
    return found


def _module(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(
            f"there is no task file `{path}` (looked in `{path.absolute().parent}`). Correct its "
            "path, which in a settings file is relative to that file"
        )
    path = path.resolve()
    name = f"prunella_task_{path.stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"`{path}` is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and data loader workers look their module up by name.
    sys.modules[name] = module
    try:
        with _importable(path.parent):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as cause:
        del sys.modules[name]
        raise TaskError(
            f"the task file `{path}` raised {_place(cause, path)}: {type(cause).__name__}: {cause}."
            " Repair it there"
        ) from cause
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    # A file may import its neighbours, as it may when it is run by itself. Its functions may, too,
    # whenever they are called; by then the folder comes last, and is in nobody else's way.
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _place(cause: BaseException, path: Path) -> str:
    line = None
    step = cause.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == str(path):
            line = step.tb_lineno
        step = step.tb_next
    if line is None and isinstance(cause, SyntaxError):
        line = cause.lineno
    return "when it was loaded" if line is None else f"at line {line}"


def _call(
    make: Callable[..., Any],
    spec: str,
    file: Path,
    progress: Progress | None,
    options: dict[str, Any],
) -> Any:
    signature = inspect.signature(make)
    known = list(signature.parameters)
    given = dict(options)
    if "progress" in known:
        given["progress"] = progress
    try:
        signature.bind(**given)
    except TypeError as cause:
        accepted = ", ".join(name for name in known if name != "progress") or "none"
        raise ConfigError(
            f"task `{spec}` cannot take these options: {cause}. It accepts: {accepted}"
        ) from cause
    try:
        return make(**given)
    except (TaskError, ConfigError):
        raise
    except (Exception, SystemExit) as cause:
        raise TaskError(
            f"task `{spec}` raised {_place(cause, file)}: {type(cause).__name__}: {cause}. Repair "
            "it there"
        ) from cause
