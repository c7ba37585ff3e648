"""Count the costs of a model by running it once under the framework's own counter."""

from collections.abc import Mapping
from contextlib import nullcontext
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from prunella.model.modes import evaluating, unfused_attention
from prunella.model.structure import tensors
from prunella.tracing import Inputs, called_with
from prunella.tracing.capturing import wrong_input


class _Untracked(nullcontext[None]):
    """Stands in for the counter's module tracker, which fails on views of parameters."""

    parents = frozenset({"Global"})


def _more() -> dict[Any, Any]:
    """Return what the framework's counter leaves out.

    Attention on the CPU, rows of experts, and products with vectors: whether `x @ v` is one of
    these or of a matrix, to it, depends on how `x` lies in memory.
    """
    aten = torch.ops.aten
    more: dict[Any, Any] = {aten._scaled_dot_product_flash_attention_for_cpu: _attention}
    more[aten.mkldnn_rnn_layer] = _recurrent
    more |= {aten.mv: _vector, aten.dot: _vector, aten.vdot: _vector, aten.addmv: _added_vector}
    for library, name in (("aten", "_grouped_mm"), ("transformers", "grouped_mm_fallback")):
        op = getattr(getattr(torch.ops, library), name, None)
        if op is not None:
            more[op] = _grouped
    return more


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _vector(x: torch.Size, *_: Any, **__: Any) -> int:
    """Every element of a matrix, or a vector, meets one of a vector."""
    return 2 * prod(x)


def _added_vector(_: torch.Size, x: torch.Size, *__: Any, **___: Any) -> int:
    return 2 * prod(x)


def _recurrent(x: torch.Size, inner: torch.Size, outer: torch.Size, *_: Any, **__: Any) -> int:
    """Every step of one layer meets the weights of its input and of its state."""
    return 2 * prod(x[:-1]) * (prod(inner) + prod(outer))


def _grouped(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    """Every row of `[rows, in]` meets the weight of one expert, `[experts, in, out]`."""
    return 2 * x[0] * x[1] * weight[-1]


def count_macs(
    model: nn.Module, example_inputs: Inputs, example_kwargs: Mapping[str, Any] | None = None
) -> int:
    """Count the multiply-accumulates of one sample by running the model.

    Convolutions and matrix products count, called as modules or as functions alike; norms, biases
    and activations do not.

    Args:
        model: Any module.
        example_inputs: A tensor, or a tuple of positional arguments. The first dimension counts
            the samples, where all inputs agree on it.
        example_kwargs: Keyword arguments.

    Raises:
        TraceError: The model does not run on these inputs.
    """
    args, kwargs = called_with(example_inputs, example_kwargs)
    counter = FlopCounterMode(display=False, custom_mapping=_more())
    counter.mod_tracker = _Untracked()  # type: ignore[assignment]
    with evaluating(model), torch.no_grad(), unfused_attention(), counter:
        try:
            model(*args, **kwargs)
        except Exception as error:
            problem = wrong_input(model, args, kwargs)
            if problem is None:
                raise
            raise problem from error
    firsts = {a.shape[0] for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.ndim}
    samples = firsts.pop() if len(firsts) == 1 else 1
    return int(counter.get_total_flops()) // 2 // samples


def count_params(model: nn.Module) -> int:
    """Count the parameters of a model; a tied one counts once, buffers do not."""
    found = tensors(model)
    return sum(found[name].numel() for name, _ in model.named_parameters())


def count_weight_bytes(model: nn.Module) -> int:
    """Count the bytes of a model's parameters and buffers; a tied one counts once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors(model).values())
