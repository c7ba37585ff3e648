"""The devices that torch can compute on here."""

import torch

from prunella.errors import ConfigError


def device_named(name: str) -> torch.device:
    """Return a device by its name, e.g. "cpu", "cuda" or "cuda:1".

    Raises:
        ConfigError: There is no such device on this machine.
    """
    seen = _seen()
    try:
        device = torch.device(name)
    except RuntimeError:  # no name of a device at all
        device = torch.device("meta")
    if device.type != "cpu" and str(torch.device(device.type, device.index or 0)) not in seen:
        raise ConfigError(
            f"torch sees no device `{name}` on this machine. It sees {', '.join(seen)}"
        )
    return device


def _seen() -> list[str]:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    count = torch.accelerator.device_count() if found else 0
    return ["cpu", *(f"{found.type}:{index}" for index in range(count) if found)]
