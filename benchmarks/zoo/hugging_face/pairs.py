"""Encoders with decoders, and models of two kinds of input."""

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf

from benchmarks.zoo.hugging_face.text import LONGEST, VOCABULARY, tokens, translated, with_text
from benchmarks.zoo.network import Arguments, Network

_SIZE = 64
_ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
_WIDTHS = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 160,
    "decoder_ffn_dim": 144,
    **_ENDS,
}
_TOWER = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "intermediate_size": 160,
}
_TEXT = {"vocab_size": VOCABULARY, "max_position_embeddings": LONGEST}
_IMAGE = {"image_size": _SIZE, "patch_size": 16}


def _translator(config: Any, model: Any, **options: Any) -> Callable[[], Network]:
    sizes = {**_WIDTHS, "vocab_size": VOCABULARY, "max_position_embeddings": LONGEST, **options}
    return lambda: Network(model(config(**sizes)), translated)


def _t5(**options: Any) -> Callable[[], Network]:
    def build() -> Network:
        config = hf.T5Config(
            vocab_size=VOCABULARY,
            d_model=64,
            d_kv=8,
            d_ff=160,
            num_layers=2,
            num_heads=8,
            pad_token_id=0,
            eos_token_id=2,
            decoder_start_token_id=0,
            **options,
        )
        return Network(hf.T5ForConditionalGeneration(config), translated)

    return build


def _whisper() -> Network:
    frames, bands = 24, 16
    config = hf.WhisperConfig(
        **_WIDTHS,
        vocab_size=VOCABULARY,
        num_mel_bins=bands,
        max_source_positions=frames,
        max_target_positions=LONGEST,
        begin_suppress_tokens=None,
    )

    def spoken(samples: int) -> Arguments:
        sounds = torch.randn(samples, bands, 2 * frames)
        return (), {"input_features": sounds, "decoder_input_ids": tokens(samples)}

    return Network(hf.WhisperForConditionalGeneration(config), spoken)


def _pixels(samples: int) -> Arguments:
    return (), {"pixel_values": torch.randn(samples, 3, _SIZE, _SIZE)}


def _clip() -> Network:
    config = hf.CLIPConfig(
        text_config={**_TOWER, **_TEXT, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0},
        vision_config={**_TOWER, **_IMAGE, "hidden_size": 96, "num_attention_heads": 6},
        projection_dim=48,
    )
    return Network(hf.CLIPModel(config), with_text(_pixels))


def _siglip() -> Network:
    config = hf.SiglipConfig(
        text_config={**_TOWER, **_TEXT, **_ENDS}, vision_config={**_TOWER, **_IMAGE}
    )
    return Network(hf.SiglipModel(config), with_text(_pixels))


def _blip() -> Network:
    config = hf.BlipConfig(
        text_config={**_TOWER, **_TEXT, **_ENDS, "sep_token_id": 2, "encoder_hidden_size": 96},
        vision_config={**_TOWER, **_IMAGE, "hidden_size": 96, "num_attention_heads": 6},
    )
    return Network(hf.BlipForConditionalGeneration(config), with_text(_pixels))


BUILDERS: dict[str, Callable[[], Network]] = {
    "t5": _t5(),
    "t5_gated": _t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "bart": _translator(hf.BartConfig, hf.BartForConditionalGeneration),
    "mbart": _translator(hf.MBartConfig, hf.MBartForConditionalGeneration),
    "marian": _translator(hf.MarianConfig, hf.MarianMTModel, decoder_vocab_size=VOCABULARY),
    "whisper": _whisper,
    "clip": _clip,
    "siglip": _siglip,
    "blip": _blip,
}
