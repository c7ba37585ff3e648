"""Encoders of text."""

from collections.abc import Callable
from typing import Any

import transformers as hf

from benchmarks.zoo.hugging_face.text import LONGEST, VOCABULARY, tokenized
from benchmarks.zoo.network import Network

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "intermediate_size": 160,
    "max_position_embeddings": LONGEST,
}


def _encoder(config: Any, model: Any, **options: Any) -> Callable[[], Network]:
    return lambda: Network(model(config(**{**_SIZES, **options})), tokenized)


def _distilbert() -> Network:
    config = hf.DistilBertConfig(
        vocab_size=VOCABULARY,
        dim=64,
        n_layers=2,
        n_heads=8,
        hidden_dim=160,
        max_position_embeddings=LONGEST,
    )
    return Network(hf.DistilBertForSequenceClassification(config), tokenized)


BUILDERS: dict[str, Callable[[], Network]] = {
    "bert": _encoder(hf.BertConfig, hf.BertForMaskedLM),
    "roberta": _encoder(hf.RobertaConfig, hf.RobertaForMaskedLM),
    "distilbert": _distilbert,
    "albert": _encoder(hf.AlbertConfig, hf.AlbertForSequenceClassification, embedding_size=24),
    "electra": _encoder(hf.ElectraConfig, hf.ElectraForPreTraining, embedding_size=24),
    "deberta_v2": _encoder(
        hf.DebertaV2Config,
        hf.DebertaV2ForSequenceClassification,
        relative_attention=True,
        position_buckets=16,
        max_relative_positions=-1,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pooler_hidden_size=64,
    ),
    "mpnet": _encoder(hf.MPNetConfig, hf.MPNetForMaskedLM),
    "modernbert": _encoder(
        hf.ModernBertConfig,
        hf.ModernBertForMaskedLM,
        num_hidden_layers=4,
        local_attention=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
    ),
}
