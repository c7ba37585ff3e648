"""Write a file of settings to begin with."""

from prunella.config.keys import keys
from prunella.config.kinds import toml


def template(task: str = "digits") -> str:
    """Write a commented TOML file: task and budget set, every other key there with its default."""
    lines = ["# Settings of a Prunella run. Keys that are commented out show their defaults.", ""]
    previous = ""
    chosen = {"task.spec": task, "budget.macs": 0.5, "finetune.max_drop": 0.01}
    for name, default, text in keys():
        section, key = name.split(".")
        if section != previous:
            lines += ["", f"[{section}]"] if previous else [f"[{section}]"]
            previous = section
        lines.append(f"# {text}")
        value = chosen.get(name, default)
        shown = f"{key} = {toml(value)}" if value is not None else f"{key} ="
        lines.append(shown if name in chosen else f"# {shown}")
    return "\n".join(lines) + "\n"
