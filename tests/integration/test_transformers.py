"""Architectures of Hugging Face transformers, tiny but whole: prune, train, save, restore."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunella
from prunella.configuring import reconfigure
from prunella.errors import ConfigError
from tests import oracle

transformers = pytest.importorskip("transformers")

Case = tuple[nn.Module, dict[str, Any]]

LAYERS = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 4}
TEXT = {**LAYERS, "intermediate_size": 48, "vocab_size": 50, "max_position_embeddings": 16}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def tokens() -> torch.Tensor:
    return torch.randint(3, 50, (2, 6))


def bert() -> Case:
    config = transformers.BertConfig(**TEXT)
    return transformers.BertForSequenceClassification(config), {"input_ids": tokens()}


def gpt2() -> Case:
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=32, n_head=4, n_layer=1, n_positions=16, **SPECIAL
    )
    return transformers.GPT2LMHeadModel(config), {"input_ids": tokens(), "use_cache": False}


def llama() -> Case:
    config = transformers.LlamaConfig(**TEXT, **SPECIAL, num_key_value_heads=2)
    return transformers.LlamaForCausalLM(config), {"input_ids": tokens(), "use_cache": False}


def mixtral() -> Case:
    config = transformers.MixtralConfig(
        **TEXT, **SPECIAL, num_key_value_heads=2, num_local_experts=3
    )
    return transformers.MixtralForCausalLM(config), {"input_ids": tokens(), "use_cache": False}


def t5() -> Case:
    config = transformers.T5Config(
        vocab_size=50, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4
    )
    given = {"input_ids": tokens(), "decoder_input_ids": tokens(), "use_cache": False}
    return transformers.T5ForConditionalGeneration(config), given


def vit() -> Case:
    config = transformers.ViTConfig(**LAYERS, intermediate_size=48, image_size=16, patch_size=8)
    model = transformers.ViTForImageClassification(config)
    return model, {"pixel_values": torch.randn(2, 3, 16, 16)}


def clip() -> Case:
    vision = {**LAYERS, "intermediate_size": 40, "image_size": 16, "patch_size": 8}
    config = transformers.CLIPConfig(
        text_config={**TEXT, **SPECIAL}, vision_config=vision, projection_dim=24
    )
    given = {"input_ids": tokens(), "pixel_values": torch.randn(2, 3, 16, 16)}
    return transformers.CLIPModel(config), given


def whisper() -> Case:
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    config = transformers.WhisperConfig(
        **heads,
        **SPECIAL,
        vocab_size=50,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=48,
        decoder_ffn_dim=40,
        num_mel_bins=8,
        max_source_positions=8,
        max_target_positions=8,
        decoder_start_token_id=1,
    )
    given = {
        "input_features": torch.randn(2, 8, 16),
        "decoder_input_ids": tokens(),
        "use_cache": False,
    }
    return transformers.WhisperForConditionalGeneration(config), given


CASES: tuple[Callable[[], Case], ...] = (bert, gpt2, llama, mixtral, t5, vit, clip, whisper)

RESTORED = {"bert", "gpt2", "llama", "mixtral", "t5", "vit"}
"""Architectures whose config describes what ratio 0.5 leaves; the others must say why not."""


def randomised(case: Callable[[], Case]) -> Case:
    """Build with norms and biases that hide no fault."""
    model, given = case()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval(), given


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_an_architecture_is_pruned_trains_and_is_restored(
    case: Callable[[], Case], tmp_path: Path
) -> None:
    model, given = randomised(case)
    result = prunella.prune(model, (), ratio=0.5, example_kwargs=given, form="class")
    pruned = result.model
    assert type(pruned) is type(model)
    assert result.certificate.error <= result.certificate.tolerance
    assert result.plan.after.params < 0.8 * result.plan.before.params
    assert result.plan.after.params == prunella.count_params(pruned)
    expected = oracle.outputs(pruned, (), given)

    prunella.save(pruned, tmp_path / "own")
    again = prunella.load(tmp_path / "own", case()[0].eval())
    assert oracle.difference(expected, oracle.outputs(again, (), given)) == 0

    folder = tmp_path / "theirs"
    if case.__name__ in RESTORED:
        pruned.save_pretrained(folder)
        again = type(model).from_pretrained(folder, local_files_only=True).eval()
        assert oracle.difference(expected, oracle.outputs(again, (), given)) < 1e-5
    else:
        with pytest.raises(ConfigError, match=r"prunella\.load"):
            pruned.save_pretrained(folder)
        assert not folder.exists()

    sum(t.float().square().mean() for t in oracle.leaves(pruned.train()(**given))).backward()
    used = [p for p in pruned.parameters() if p.grad is not None]
    assert all(bool(p.grad.isfinite().all()) for p in used)
    assert len(used) > 0.8 * len(list(pruned.parameters()))


def pretend(kind: type[nn.Module], dense: Any, small: Any) -> tuple[nn.Module, nn.Module]:
    """Make a pruned model by building the class small and leaving the dense config in place."""
    model, pruned = kind(dense).eval(), kind(small).eval()
    configs = {name: getattr(m, "config", None) for name, m in copy.deepcopy(model).named_modules()}
    for name, module in pruned.named_modules():
        if configs[name] is not None:
            module.config = configs[name]
    return model, pruned


def different(config: Any, other: Any) -> set[str]:
    found, wanted = config.to_dict(), other.to_dict()
    return {key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key)}


def test_numbers_that_a_config_leaves_to_be_derived_are_stated() -> None:
    kind = transformers.MixtralForCausalLM  # head_dim is None: hidden_size / heads
    dense = transformers.MixtralConfig(**TEXT, **SPECIAL, num_key_value_heads=2)
    uneven = {"hidden_size": 20, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    small = transformers.MixtralConfig(**{**TEXT, **SPECIAL, **uneven})
    model, pruned = pretend(kind, dense, small)
    assert reconfigure(model, pruned, ((), {"input_ids": tokens()})) is None
    assert not different(pruned.config, small)
    assert model.config.hidden_size == 32, "the dense model's config was changed"


def test_nested_configs_are_written_in_place() -> None:
    def config(size: int, wide: int, heads: int) -> Any:
        layers = {"hidden_size": size, "num_attention_heads": heads, "intermediate_size": wide}
        return transformers.CLIPConfig(
            text_config={**TEXT, **SPECIAL, **layers, "projection_dim": 24},
            vision_config={**LAYERS, **layers, "image_size": 16, "patch_size": 8},
            projection_dim=24,
        )

    model, pruned = pretend(transformers.CLIPModel, config(32, 48, 4), config(16, 20, 2))
    assert reconfigure(model, pruned, ((), clip()[1])) is None
    assert not different(pruned.config, config(16, 20, 2))
    assert pruned.text_model.config.hidden_size == 16, "a module's own reference is stale"


def test_layers_of_different_widths_are_refused_by_name(tmp_path: Path) -> None:
    dense = transformers.BertConfig(**{**TEXT, "num_hidden_layers": 2})
    small = transformers.BertConfig(**{**TEXT, "num_hidden_layers": 2, "intermediate_size": 20})
    model, pruned = pretend(transformers.BertModel, dense, small)
    layer = pruned.encoder.layer[1]
    layer.intermediate.dense = nn.Linear(32, 10)
    layer.output.dense = nn.Linear(10, 32)
    reason = reconfigure(model, pruned)
    assert reason is not None
    assert "encoder.layer.1" in reason
    assert "`intermediate_size`" in reason
    with pytest.raises(ConfigError, match=r"could not restore.*alike, by `intermediate_size`"):
        pruned.save_pretrained(tmp_path)


def test_a_size_that_is_used_as_a_number_is_found_by_running() -> None:
    dense = {**TEXT, **SPECIAL, "num_key_value_heads": 2, "head_dim": 8}
    model, pruned = pretend(
        transformers.GemmaForCausalLM,  # multiplies embeddings by the root of hidden_size
        transformers.GemmaConfig(**dense),
        transformers.GemmaConfig(**{**dense, "hidden_size": 16}),
    )
    for module in pruned.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name == "embed_scale":
                buffer.fill_(32**0.5)  # what a pruned copy keeps of the dense model
    reason = reconfigure(model, pruned, ((), {"input_ids": tokens()}))
    assert reason is not None
    assert "computes something else" in reason


def test_a_model_without_a_config_is_left_alone() -> None:
    model = nn.Linear(4, 4)
    assert reconfigure(model, model) is None
    assert not hasattr(model, "save_pretrained")


def test_no_weights_are_drawn_for_a_class_that_is_built_from_a_config(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Drawing anew until all numbers are right never ends where none is ever filled in."""
    model, given = vit()
    pruned = prunella.prune(model.eval(), (), example_kwargs=given, ratio=0.5).model

    def drawn(*_: Any, **__: Any) -> None:
        raise AssertionError("weights are drawn")

    monkeypatch.setattr(torch.nn.init, "_no_grad_trunc_normal_", drawn)
    assert reconfigure(model, pruned, ((), given)) is None
