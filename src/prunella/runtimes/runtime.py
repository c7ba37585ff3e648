"""Which runtime, on what device, with how many threads, in which precision: one small value."""

import difflib
import importlib
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, get_args

from prunella.errors import ConfigError

Name = Literal["torch", "torch-compile", "onnxruntime", "openvino"]
RUNTIMES: tuple[Name, ...] = get_args(Name)
DTYPES = ("float32", "bfloat16", "float16")
DEVICES = {
    "torch": ("cpu", "cuda", "mps", "xpu"),
    "torch-compile": ("cpu", "cuda", "xpu"),
    "onnxruntime": ("cpu", "cuda"),
    "openvino": ("cpu", "gpu"),
}


@dataclass(frozen=True, slots=True)
class Runtime:
    """What runs a network, and how. Its text form is what the command line and settings take.

    Attributes:
        name: "torch" (eager), "torch-compile", "onnxruntime" or "openvino".
        device: As the runtime calls it, e.g. "cpu", "cuda", "gpu".
        threads: Threads of one forward on the CPU; None is what the runtime takes by itself.
        dtype: In which it computes: "float32", "bfloat16" or "float16".

    Example:
        >>> Runtime.of("onnxruntime:threads=2")
        Runtime(name='onnxruntime', device='cpu', threads=2, dtype='float32')
        >>> str(Runtime.of("openvino:dtype=bfloat16,threads=1"))
        'openvino:threads=1,dtype=bfloat16'

    Raises:
        ConfigError: A name, device, number of threads or dtype that there is not.
    """

    name: Name = "torch"
    device: str = "cpu"
    threads: int | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        _one_of("runtime", self.name, RUNTIMES)
        kind = self.device.partition(":")[0]
        _one_of(f"device of the runtime `{self.name}`", kind, DEVICES[self.name])
        _one_of("dtype of a runtime", self.dtype, DTYPES)
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"`threads` must be at least 1, got threads={self.threads}")
        if self.name == "onnxruntime" and self.dtype == "bfloat16":
            raise ConfigError(
                "ONNX Runtime has no kernels in bfloat16 here. Use dtype=float32 or float16, or "
                "`openvino:dtype=bfloat16`"
            )

    @classmethod
    def of(cls, text: "str | Runtime") -> Self:
        """Read the text form: `NAME` or `NAME:key=value,key=value`.

        Args:
            text: E.g. "torch" or "onnxruntime:threads=1"; a `Runtime` comes back as it is.
        """
        if isinstance(text, cls):
            return text
        name, _, rest = str(text).partition(":")
        known = [field.name for field in fields(cls)][1:]
        given: dict[str, Any] = {}
        for part in filter(None, rest.split(",")):
            key, equals, value = part.partition("=")
            if not equals or key not in known:
                raise ConfigError(
                    f"`{part}` in the runtime `{text}` says nothing. Write `NAME:key=value,...` "
                    f"with keys of {', '.join(known)}, e.g. `onnxruntime:threads=1`"
                )
            given[key] = _number(value) if key == "threads" else value
        return cls(name, **given)  # type: ignore[arg-type]  # the constructor checks the name

    def __str__(self) -> str:
        """Write the text form, without what is as by default."""
        given = {
            field.name: getattr(self, field.name)
            for field in fields(self)[1:]
            if getattr(self, field.name) != field.default
        }
        options = ",".join(f"{key}={value}" for key, value in given.items())
        return f"{self.name}:{options}" if options else self.name


def required(module: str, extra: str) -> Any:
    """Import what an extra brings.

    Args:
        module: The module, e.g. "onnxruntime".
        extra: The extra of prunella that installs it.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as cause:
        raise ConfigError(
            f"this needs `{module.partition('.')[0]}`, which cannot be imported ({cause}). "
            f"Install it: pip install 'prunella[{extra}]'"
        ) from cause


def _one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        close = difflib.get_close_matches(value, known, 1)
        guess = f"; did you mean `{close[0]}`?" if close else f". Choose of {', '.join(known)}"
        raise ConfigError(f"there is no {what} `{value}`{guess}")


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"`threads` is a whole number, got threads={text}") from None
