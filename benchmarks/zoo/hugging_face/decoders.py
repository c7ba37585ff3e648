"""Language models: attention with all, grouped and single keys; experts; state spaces."""

from collections.abc import Callable
from typing import Any

import transformers as hf

from benchmarks.zoo.hugging_face.text import LONGEST, VOCABULARY, prompt
from benchmarks.zoo.network import Network

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "intermediate_size": 160,
    "max_position_embeddings": LONGEST,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_OLD_SIZES = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 8}
_GROUPED = {"num_key_value_heads": 2}
_ENDS = {"bos_token_id": 1, "eos_token_id": 2}
_ALTERNATING = ["sliding_attention", "full_attention"]


def _decoder(config: Any, model: Any, **options: Any) -> Callable[[], Network]:
    return lambda: Network(model(config(**{**_SIZES, **options})), prompt)


def _old(config: Any, model: Any, **options: Any) -> Callable[[], Network]:
    """Describe a decoder whose configuration speaks GPT-2's dialect."""
    made = {**_OLD_SIZES, "n_positions": LONGEST, "n_inner": 160, **_ENDS, **options}
    return lambda: Network(model(config(**made)), prompt)


def _bloom() -> Network:
    config = hf.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=64, n_layer=2, n_head=8, pad_token_id=0, **_ENDS
    )
    return Network(hf.BloomForCausalLM(config), prompt)


def _mamba() -> Network:
    config = hf.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=64, state_size=8, num_hidden_layers=2, time_step_rank=4
    )
    return Network(hf.MambaForCausalLM(config), prompt)


def _mamba2() -> Network:
    config = hf.Mamba2Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        state_size=16,
        num_hidden_layers=2,
        num_heads=8,
        head_dim=16,
        n_groups=2,
        chunk_size=8,
        pad_token_id=0,
        **_ENDS,
    )
    return Network(hf.Mamba2ForCausalLM(config), prompt)


BUILDERS: dict[str, Callable[[], Network]] = {
    "gpt2": _old(hf.GPT2Config, hf.GPT2LMHeadModel),
    "gptj": _old(hf.GPTJConfig, hf.GPTJForCausalLM, rotary_dim=4),
    "gpt_neox": _decoder(hf.GPTNeoXConfig, hf.GPTNeoXForCausalLM, num_attention_heads=4),
    "opt": _decoder(
        hf.OPTConfig, hf.OPTForCausalLM, ffn_dim=160, word_embed_proj_dim=64, layerdrop=0.0
    ),
    "bloom": _bloom,
    "falcon": _decoder(
        hf.FalconConfig, hf.FalconForCausalLM, multi_query=True, new_decoder_architecture=False
    ),
    "falcon_gqa": _decoder(
        hf.FalconConfig, hf.FalconForCausalLM, num_kv_heads=2, new_decoder_architecture=True
    ),
    "gpt_bigcode": _old(hf.GPTBigCodeConfig, hf.GPTBigCodeForCausalLM, multi_query=True),
    "llama": _decoder(hf.LlamaConfig, hf.LlamaForCausalLM, **_GROUPED),
    "llama_gqa2": _decoder(hf.LlamaConfig, hf.LlamaForCausalLM, num_key_value_heads=4),
    "llama_mha": _decoder(hf.LlamaConfig, hf.LlamaForCausalLM),
    "mistral": _decoder(hf.MistralConfig, hf.MistralForCausalLM, sliding_window=8, **_GROUPED),
    "qwen2": _decoder(hf.Qwen2Config, hf.Qwen2ForCausalLM, **_GROUPED),
    "qwen3": _decoder(hf.Qwen3Config, hf.Qwen3ForCausalLM, head_dim=16, **_GROUPED),
    "gemma2": _decoder(
        hf.Gemma2Config, hf.Gemma2ForCausalLM, head_dim=16, sliding_window=8, **_GROUPED
    ),
    "gemma3": _decoder(
        hf.Gemma3TextConfig,
        hf.Gemma3ForCausalLM,
        head_dim=16,
        sliding_window=8,
        layer_types=_ALTERNATING,
        **_GROUPED,
    ),
    "phi": _decoder(hf.PhiConfig, hf.PhiForCausalLM),
    "phi3": _decoder(hf.Phi3Config, hf.Phi3ForCausalLM, **_GROUPED),
    "cohere": _decoder(hf.CohereConfig, hf.CohereForCausalLM, use_qk_norm=True, **_GROUPED),
    "olmo2": _decoder(hf.Olmo2Config, hf.Olmo2ForCausalLM, **_GROUPED),
    "stablelm": _decoder(hf.StableLmConfig, hf.StableLmForCausalLM, **_GROUPED),
    "granite": _decoder(
        hf.GraniteConfig,
        hf.GraniteForCausalLM,
        embedding_multiplier=2.0,
        residual_multiplier=0.5,
        attention_multiplier=0.3,
        logits_scaling=2.0,
        **_GROUPED,
    ),
    "mixtral": _decoder(hf.MixtralConfig, hf.MixtralForCausalLM, num_local_experts=4, **_GROUPED),
    "qwen2_moe": _decoder(
        hf.Qwen2MoeConfig,
        hf.Qwen2MoeForCausalLM,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=40,
        shared_expert_intermediate_size=56,
        **_GROUPED,
    ),
    "mamba": _mamba,
    "mamba2": _mamba2,
}
