"""What of a model a plan is tied to: the names and shapes of its tensors, tied ones once."""

import hashlib
import json
from collections.abc import Mapping

import psutil
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from prunella.errors import ConfigError


def check_model(model: object) -> None:
    """Raise `ConfigError` where something else was given in a model's place."""
    if isinstance(model, nn.Module):
        return
    name = getattr(model, "__name__", type(model).__name__)
    if isinstance(getattr(model, "model", None), nn.Module):
        remedy = "give its `.model`"
    elif isinstance(model, type) or callable(model):
        kind = "class" if isinstance(model, type) else "function"
        name, remedy = f"the {kind} `{name}`", "call it, and give the model that it makes"
    elif isinstance(model, Mapping):
        remedy = "make the model, and load the state dict into it"
    else:
        remedy = "make or load the model, and give that"
    raise ConfigError(f"a model is a torch.nn.Module, got {name}: {remedy}")


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """List parameters and buffers by qualified name; a tied one under its first name only."""
    check_model(model)
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def fleeting(model: nn.Module) -> set[str]:
    """Name the buffers that a state dict leaves out: the model's code computes them, some anew."""
    check_model(model)
    return {
        f"{path}.{leaf}" if path else leaf
        for path, module in model.named_modules()
        for leaf in module._non_persistent_buffers_set
    }


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Map every name of every parameter and buffer to the first name of the same tensor."""
    check_model(model)
    first: dict[int, str] = {}
    names: dict[str, str] = {}
    for listed in (model.named_parameters, model.named_buffers):
        for name, tensor in listed(remove_duplicate=False):
            names[name] = first.setdefault(id(tensor), name)
    return names


def device_of(model: nn.Module) -> torch.device:
    """Return where a model's first tensor is; the CPU where it has none."""
    return next((t.device for t in tensors(model).values()), torch.device("cpu"))


def has_memory(tensor: Tensor) -> bool:
    """Say whether a tensor's elements are there, which is not so on the meta device."""
    if tensor.is_meta or isinstance(tensor, FakeTensor):
        return False
    size = tensor.numel() * tensor.element_size()
    return size == 0 or tensor.untyped_storage().nbytes() > 0


def check_numbers(model: nn.Module, doing: str, *, changing: bool = False) -> None:
    """Raise `ConfigError` where a model's tensors have no numbers, or none that can be changed.

    Args:
        model: Any module.
        doing: What needs them: "scoring".
        changing: Whether they are changed for a while.
    """
    for name, tensor in tensors(model).items():
        if tensor.is_meta:
            raise ConfigError(
                f"`{name}` is on the meta device, and {doing} needs its numbers: load the weights "
                "first. To trace, couple, count costs and allocate with scores of your own, none "
                "are needed"
            )
        if changing and tensor.is_inference() and not torch.is_inference_mode_enabled():
            raise ConfigError(
                f"`{name}` was made under torch.inference_mode(), and {doing} changes it for a "
                "while: make or load the model outside of it"
            )


def free_bytes(device: torch.device) -> int:
    """Count the bytes of memory that are free on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def prefixes(name: str) -> list[str]:
    """("a.b.weight") -> ["a", "a.b"]: the modules that a tensor or module is in."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def hashed(named: Mapping[str, Tensor]) -> str:
    """Fingerprint names, types, shapes and every bit of tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(named.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def weights_digest(model: nn.Module) -> str:
    """Fingerprint all parameters and buffers of a model."""
    return hashed(tensors(model))


def digest(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Fingerprint a structure given the shape of every parameter and buffer."""
    text = json.dumps(sorted((name, list(shape)) for name, shape in shapes.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_of(model: nn.Module) -> str:
    """Fingerprint the structure of `model`.

    Buffers that it computes for itself do not count: a first run may give them another shape.
    """
    gone = fleeting(model)
    found = {n: tuple(tensor.shape) for n, tensor in tensors(model).items() if n not in gone}
    return digest(found)
