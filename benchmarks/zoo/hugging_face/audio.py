"""Models of speech."""

from collections.abc import Callable
from typing import Any

import transformers as hf

from benchmarks.zoo.network import Network, tensors

_SIZES = {
    "vocab_size": 32,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "intermediate_size": 160,
    "conv_dim": (32,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    # What draws at random in training would give two runs different gradients.
    "layerdrop": 0.0,
    "apply_spec_augment": False,
}


def _speech(config: Any, model: Any, **options: Any) -> Callable[[], Network]:
    return lambda: Network(model(config(**{**_SIZES, **options})), tensors((4000,)))


BUILDERS: dict[str, Callable[[], Network]] = {
    "wav2vec2": _speech(hf.Wav2Vec2Config, hf.Wav2Vec2ForCTC),
    "wav2vec2_stable": _speech(
        hf.Wav2Vec2Config,
        hf.Wav2Vec2ForCTC,
        do_stable_layer_norm=True,
        feat_extract_norm="layer",
        conv_bias=True,
    ),
    "hubert": _speech(hf.HubertConfig, hf.HubertForCTC),
}
