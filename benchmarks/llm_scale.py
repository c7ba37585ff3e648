"""Trace, couple and plan language models of full size on the meta device: no weights, no download.

    python -m benchmarks.llm_scale
    python -m benchmarks.llm_scale llama-3-8b --out llm

Each model runs in a process of its own on one thread, and is given half of its channels to lose.
The exit code is 1 where one fails or needs more than the limits.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

import prunella
from benchmarks import record

SECONDS, GIGABYTES = 60, 8.0
"""Limits of one model: trace, couple, score and allocate together, and the process's peak."""

PACKAGES = ("prunella", "torch", "transformers")
RATIO = 0.5
TOKENS = 128
STAGES = ("build", "trace", "couple", "score", "allocate")


def llama_3_8b() -> nn.Module:
    """Build meta-llama/Meta-Llama-3-8B from its published configuration."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=8192,
        rope_theta=500000.0,
        bos_token_id=128000,
        eos_token_id=128001,
    )
    return LlamaForCausalLM(config)


def mixtral_8x7b() -> nn.Module:
    """Build mistralai/Mixtral-8x7B-v0.1 from its published configuration."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        num_local_experts=8,
        num_experts_per_tok=2,
        vocab_size=32000,
        max_position_embeddings=32768,
        rope_theta=1000000.0,
    )
    return MixtralForCausalLM(config)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama-3-8b": llama_3_8b,
    "mixtral-8x7b": mixtral_8x7b,
}


def measure(name: str) -> dict[str, Any]:
    """Plan one model; return a row of the table."""
    seconds: dict[str, float] = {}
    with _timed(seconds, "build"), torch.device("meta"):
        model = MODELS[name]().eval()
        ids = torch.zeros(1, TOKENS, dtype=torch.long)
    with _timed(seconds, "trace"):
        graph = prunella.trace(model, (), {"input_ids": ids, "use_cache": False})
    with _timed(seconds, "couple"):
        groups = prunella.couple(graph)
    with _timed(seconds, "score"):
        scores = prunella.score(model, groups, "random")  # there are no values to judge by
    with _timed(seconds, "allocate"):
        plan = prunella.allocate(groups, scores, RATIO)
    return {
        "name": name,
        "seconds": {stage: round(spent, 2) for stage, spent in seconds.items()},
        "total": round(sum(seconds[stage] for stage in STAGES[1:]), 2),
        "memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        "nodes": len(graph.nodes),
        "groups": len(groups),
        "channels": sum(group.channels for group in groups),
        "frozen": len(groups.frozen),
        "reasons": _reasons(groups),
        "macs": plan.before.macs,
        "macs_left": plan.after.macs / plan.before.macs,
        "params": plan.before.params,
        "params_left": plan.after.params / plan.before.params,
    }


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    began = time.process_time()
    yield
    seconds[stage] = time.process_time() - began


def _reasons(groups: prunella.Groups) -> dict[str, int]:
    """Count the frozen groups by their first reason."""
    return dict(Counter(f"{g.frozen[0].reason} (`{g.frozen[0].op}`)" for g in groups.frozen))


def run(name: str) -> dict[str, Any]:
    """Measure one model in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.llm_scale", name, "--worker"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return {"name": name, "failure": said[0][:300]}
    row: dict[str, Any] = json.loads(lines[-1])
    if row["total"] > SECONDS or row["memory_gb"] > GIGABYTES:
        row["failure"] = f"more than {SECONDS} s or {GIGABYTES:g} GB"
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Write the Markdown page."""
    stages = " | ".join(f"{stage} s" for stage in STAGES)
    lines = [
        "# Language models at scale, without weights",
        "",
        f"`python -m benchmarks.llm_scale` with {', '.join(record.versions(PACKAGES))}; one "
        "thread. transformers' own classes are built from the published configurations on the "
        f"meta device and planned at ratio {RATIO:g} with random scores on a sequence of {TOKENS} "
        f"tokens. *total*: all stages but build; at most {SECONDS} s. *peak*: resident memory of "
        f"the whole process; at most {GIGABYTES:g} GB. MACs are those of the sequence. Seconds are "
        "the processor's, so that other work beside counts little.",
        "",
        f"| model | params | MACs | nodes | groups | channels | frozen | MACs left | params left "
        f"| {stages} | total s | peak GB |",
        "| --- " * (9 + len(STAGES) + 2) + "|",
    ]
    lines += [_line(row) for row in rows]
    for row in rows:
        if row.get("reasons"):
            lines += ["", f"Frozen in {row['name']}:", ""]
            lines += [f"- {count} x {reason}" for reason, count in row["reasons"].items()]
    return "\n".join(lines) + "\n"


def _line(row: dict[str, Any]) -> str:
    if "seconds" not in row:
        return f"| {row['name']} | FAILED: {row['failure']} " + "| " * (9 + len(STAGES)) + "|"
    cells = [
        row["name"] + (f" (FAILED: {row['failure']})" if "failure" in row else ""),
        f"{row['params'] / 1e9:.2f} G",
        f"{row['macs'] / 1e12:.2f} T",
        str(row["nodes"]),
        str(row["groups"]),
        str(row["channels"]),
        str(row["frozen"]),
        f"{row['macs_left']:.3f}",
        f"{row['params_left']:.3f}",
        *(f"{row['seconds'][stage]:.1f}" for stage in STAGES),
        f"{row['total']:.1f}",
        f"{row['memory_gb']:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.llm_scale", description=__doc__)
    parser.add_argument("names", nargs="*", help="only these models")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/llm-scale"))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(MODELS)):
        print(f"no such model: {', '.join(unknown)}; there are {', '.join(MODELS)}")
        return 2
    if options.worker:
        torch.set_num_threads(1)
        print(json.dumps(measure(options.names[0])))
        return 0
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    rows = []
    for name in options.names or MODELS:
        rows.append(run(name))
        print(name, rows[-1].get("failure") or f"{rows[-1]['total']} s", flush=True)
    record.write(rows, options.out, PACKAGES, table)
    return int(any("failure" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
