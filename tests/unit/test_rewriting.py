"""A captured graph in new sizes, as a module that stands in for the model."""

import copy
import dataclasses
import logging
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunella
from prunella.errors import ConfigError, PlanMismatchError
from prunella.finetuning import Recipe, finetune
from prunella.model.examples import Arguments, describe
from prunella.model.structure import digest_of, tensors
from prunella.plan import Costs, Plan
from prunella.rewriting import rewritten
from prunella.rewriting.generated import Rewritten
from tests import tiny_task
from tests.oracle import difference, leaves


def images(batch: int, size: int = 8, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, size, size)


def whole(model: nn.Module, *args: Any, **kwargs: Any) -> Plan:
    """Return a plan that keeps everything."""
    return Plan(
        digest=digest_of(model),
        channels={},
        sizes={},
        kept={},
        attributes={},
        before=Costs(1, 1),
        after=Costs(1, 1),
        example=describe(args, kwargs),
        form="graph",
    )


# ---- models


class Spelled(nn.Module):
    """Its forward spells out how many channels there are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.linear = nn.Linear(32, 24)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.norm(self.conv1(x)), inplace=True)
        x = self.conv2(x).view(-1, 32, 64).transpose(1, 2)
        x = self.linear(x).reshape(-1, 64, 24).mean(1)
        return {"logits": self.head(self.drop(x))}


class Heads(nn.Module):
    """Attention with four heads of eight and a gate, all of it spelled out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.norm = nn.LayerNorm(32)
        self.qkv = nn.Linear(32, 96)
        self.out = nn.Linear(32, 32)
        self.gate = nn.Linear(32, 96)
        self.down = nn.Linear(48, 32)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        x = self.embed(x)
        batch = x.shape[0]
        q, k, v = self.qkv(self.norm(x)).view(batch, -1, 3, 4, 8).permute(2, 0, 3, 1, 4)
        p = 0.1 if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=p)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, -1, 32))
        up, gate = torch.split(self.gate(x), [48, 48], -1)
        x = x + self.down(up * gate.sigmoid())
        return self.head(x.mean(1)) * scale


class Result(NamedTuple):
    first: Tensor
    rest: list[Any]


@dataclasses.dataclass
class Record:
    main: Tensor
    parts: dict[str, Any]


class Structured(nn.Module):
    """Tied, frozen and fleeting tensors, constants, and containers of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.norm.bias.requires_grad = False
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.plain = torch.linspace(0, 1, 8)  # no buffer
        self.register_buffer("fleeting", torch.ones(8), persistent=False)
        self.register_buffer("unused", torch.ones(2))

    def forward(
        self, x: Tensor, times: int = 2, *, extra: dict[str, Tensor] | None = None
    ) -> Record:
        x = self.norm(self.conv(x))
        x += 1
        x = F.relu_(x).flatten(2).mT
        x = self.second(self.first(x.reshape(-1, 8))).view(len(x), -1, 2, 4).flatten(2)
        x = x * self.plain.to(x) + torch.arange(8, device=x.device) * self.fleeting
        x = x + torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8], dtype=x.dtype)
        if extra is not None:
            x = x + extra["shift"].mean()
        return Record(x * times, {"pair": Result(x[:, 0], [x.sum(1), None, 3]), "tuple": (x,)})


class Dropping(nn.Module):
    """Stochastic depth, an auxiliary head and a frozen part: what an evaluation never shows."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(6, 12)
        self.block = nn.Linear(12, 12)
        self.head, self.aux = nn.Linear(12, 3), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            x = self.frozen(x)
        y = self.block(x)
        if self.training:
            y = y * torch.empty(len(y), 1).bernoulli_(0.7) / 0.7
        x = x + y
        return (self.head(x), self.aux(x)) if self.training else self.head(x)


def resnet18() -> nn.Module:
    return pytest.importorskip("torchvision").models.resnet18(weights=None)


def swin() -> nn.Module:
    from torchvision.models.swin_transformer import SwinTransformer

    return SwinTransformer([2, 2], 12, [1, 2], [2, 3], [4, 4], stochastic_depth_prob=0.4)


def mvit() -> nn.Module:
    from torchvision.models.video.mvit import MSBlockConfig, MViT

    blocks = [
        MSBlockConfig(1, 12, 12, [3, 3, 3], [1, 8, 8], [1, 1, 1], [1, 8, 8]),
        MSBlockConfig(2, 12, 24, [3, 3, 3], [1, 4, 4], [1, 2, 2], [1, 4, 4]),
    ]
    return MViT(
        (32, 32), 4, blocks, True, True, True, True, stochastic_depth_prob=0.3, num_classes=5
    )


def vit() -> nn.Module:
    from torchvision.models.vision_transformer import VisionTransformer

    return VisionTransformer(32, 8, 2, 2, 16, 24, dropout=0.1, attention_dropout=0.1)


def _transformer(kind: str, config: str, **settings: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    return getattr(transformers, kind)(getattr(transformers, config)(vocab_size=64, **settings))


def bert() -> nn.Module:
    return _transformer(
        "BertModel", "BertConfig", hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=32,
    )  # fmt: skip


def gpt2() -> nn.Module:
    return _transformer(
        "GPT2LMHeadModel", "GPT2Config", n_embd=16, n_layer=1, n_head=2, n_positions=32,
        use_cache=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip


def llama() -> nn.Module:
    return _transformer(
        "LlamaForCausalLM", "LlamaConfig", hidden_size=16, intermediate_size=24,
        num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, attention_dropout=0.1,
        max_position_embeddings=32, use_cache=False,
    )  # fmt: skip


def t5() -> nn.Module:
    return _transformer(
        "T5Model", "T5Config", d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=2,
        use_cache=False,
    )  # fmt: skip


def tokens(batch: int, length: int = 6) -> Tensor:
    return torch.randint(0, 64, (batch, length))


def masked_tokens(batch: int) -> Arguments:
    return (tokens(batch),), {"attention_mask": torch.ones(batch, 6, dtype=torch.int64)}


def one_image(size: int) -> Callable[[int], Arguments]:
    return lambda batch: ((images(batch, size),), {})


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Arguments]]] = {
    "spelled": (Spelled, one_image(8)),
    "heads": (Heads, lambda batch: ((torch.randn(batch, 6, 8),), {"scale": 0.5})),
    "structured": (Structured, lambda b: ((images(b),), {"extra": {"shift": images(b, 4)}})),
    "dropping": (Dropping, lambda batch: ((torch.randn(batch, 6),), {})),
    "resnet18": (resnet18, one_image(64)),
    "swin": (swin, one_image(24)),
    "vit": (vit, one_image(32)),
    "mvit": (mvit, lambda batch: ((torch.randn(batch, 3, 4, 32, 32),), {})),
    "bert": (bert, masked_tokens),
    "gpt2": (gpt2, masked_tokens),
    "llama": (llama, masked_tokens),
    "t5": (t5, lambda b: ((), {"input_ids": tokens(b), "decoder_input_ids": tokens(b, 4)})),
}


# ---- it computes what the model computes


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_pruned_is_the_model_in_both_modes(name: str) -> None:
    """Outputs, gradients and buffers, bit by bit, for batches of other sizes than captured."""
    make, inputs = NETWORKS[name]
    model = make()
    made = rewritten(model, whole(model), inputs=inputs(2))
    for batch in (1, 2, 5):
        for training in (False, True):
            if training and batch == 1 and name == "resnet18":
                continue  # batch norm wants more than one value per channel
            args, kwargs = inputs(batch)
            run = [copy.deepcopy(m).train(training) for m in (model, made)]
            outputs = []
            for module in run:
                torch.manual_seed(1)
                outputs.append(module(*copy.deepcopy(args), **kwargs))
            assert type(outputs[0]) is type(outputs[1])
            assert difference(*(list(leaves(out)) for out in outputs)) == 0
            if training:
                for out in outputs:
                    sum(t.float().square().mean() for t in leaves(out)).backward()
                assert_same_state(*run)


def assert_same_state(model: nn.Module, made: nn.Module) -> None:
    others = dict(model.named_parameters())
    for name, parameter in made.named_parameters():
        assert parameter.requires_grad == others[name].requires_grad
        if parameter.grad is None or others[name].grad is None:
            assert parameter.grad is others[name].grad, name
        else:
            assert torch.equal(parameter.grad, others[name].grad), name
    buffers = dict(model.named_buffers())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in made.named_buffers())


def test_captured_with_a_batch_of_one_takes_any() -> None:
    model = Spelled().eval()
    made = rewritten(model, whole(model), inputs=((images(1),), {}))
    x = images(7)
    assert torch.equal(made(x)["logits"], model(x)["logits"])


@pytest.mark.parametrize("name", ["heads", "resnet18", "bert", "gpt2"])
def test_other_lengths_where_the_model_takes_them(name: str) -> None:
    make, inputs = NETWORKS[name]
    model = make().eval()
    made = rewritten(model, whole(model), inputs=inputs(2))
    args, kwargs = inputs(3)
    cut = 40 if name == "resnet18" else 5
    shorter = args[0][..., :cut, :cut] if args[0].ndim == 4 else args[0][:, :cut]
    kwargs = {k: v[:, :cut] if isinstance(v, Tensor) else v for k, v in kwargs.items()}
    found, wanted = (list(leaves(m(shorter, **kwargs))) for m in (made, model))
    assert difference(found, wanted) == 0


def test_a_size_that_is_not_free_is_refused() -> None:
    model = vit().eval()
    made = rewritten(model, whole(model), inputs=((images(2, 32),), {}))
    with pytest.raises(ConfigError, match=r"\(2, 3, 16, 16\); .*captured with \(any, 3, 32, 32\)"):
        made(images(2, 16))


def test_gradients_stop_where_the_model_stops_them() -> None:
    model = Dropping()
    made = rewritten(model, whole(model), inputs=((torch.randn(2, 6),), {})).train()
    sum(made(torch.randn(2, 6))).sum().backward()
    assert {n for n, p in made.named_parameters() if p.grad is None} == {
        "frozen.weight",
        "frozen.bias",
    }


# ---- it holds what the model holds


def test_tensors_keep_their_names_ties_and_flags() -> None:
    model = Structured()
    made = rewritten(model, whole(model), inputs=((images(2),), {}))
    assert set(model.state_dict()) - set(made.state_dict()) == {"unused"}
    assert set(made.state_dict()) <= set(model.state_dict())
    assert made.get_parameter("second.weight") is made.get_parameter("first.weight")
    assert set(tensors(made)) == set(tensors(model)) - {"unused"}
    assert "fleeting" in dict(made.named_buffers())
    assert made.norm.bias.requires_grad is False
    assert made.get_parameter("conv.weight").data_ptr() != model.conv.weight.data_ptr()


def test_it_takes_the_models_own_arguments() -> None:
    model = Structured().eval()
    x = images(2)
    made = rewritten(model, whole(model), inputs=((x,), {"times": 3}))
    wanted = model(x, 3)
    for found in (made(x, 3), made(x=x, times=3), made(times=3, x=x, extra=None)):
        assert isinstance(found, Record)
        assert isinstance(found.parts["pair"], Result)
        assert found.parts["pair"].rest[1:] == [None, 3]
        assert difference(list(leaves(found)), list(leaves(wanted))) == 0
    with pytest.raises(ConfigError, match="`times` was 3 when the model was captured, now it is 2"):
        made(x)
    with pytest.raises(ConfigError, match=r"`extra` was None .* now it is \{'shift': tensor"):
        made(x, 3, extra={"shift": x})
    with pytest.raises(ConfigError, match=r"`x` was a tensor .* now it is None"):
        made(None, 3)
    with pytest.raises(TypeError, match="missing a required argument: 'x'"):
        made(times=3)


def test_what_cannot_be_looked_into_is_lost_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Cache:
        pass

    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> OrderedDict[str, Any]:
            return OrderedDict(out=self.linear(x), cache=Cache())

    model = Caching()
    with caplog.at_level(logging.WARNING):
        made = rewritten(model, whole(model), inputs=((torch.randn(2, 4),), {}))
    assert "returns None for its ['Cache']" in caplog.text
    found = made(torch.randn(2, 4))
    assert type(found) is OrderedDict
    assert found["cache"] is None


def test_it_can_be_copied_moved_cast_exported_and_compiled() -> None:
    model = Spelled().eval()
    made = rewritten(model, whole(model), inputs=((images(2),), {}))
    x = images(3)
    other = copy.deepcopy(made)
    with torch.no_grad():
        made.head.bias.add_(1)  # type: ignore[operator]
    assert torch.equal(other(x)["logits"], model(x)["logits"])
    assert torch.equal(other.double()(x.double())["logits"], model.double()(x.double())["logits"])
    for module in (other.to("meta"), other.to("meta").train()):
        assert module(x.double().to("meta"))["logits"].device.type == "meta"
    exported = torch.export.export(made.eval(), (x,)).module()
    compiled = torch.compile(made, backend="eager", fullgraph=True)
    for module in (exported, compiled):
        assert torch.equal(module(x)["logits"], made(x)["logits"])


def test_the_code_can_be_read() -> None:
    model = Spelled()
    made = rewritten(model, whole(model), inputs=((images(2),), {}))
    assert "def forward(self, x):" in made.code
    assert "self.conv1.weight" in made.code
    assert "num_batches_tracked" not in made.code
    assert "num_batches_tracked" in made.training_code
    assert str(made).startswith("RewrittenSpelled(")
    assert "weight=(16, 3, 3, 3)" in str(made)


# ---- pruned


@pytest.mark.parametrize("name", ["spelled", "heads"])
def test_pruned_it_proves_itself_trains_and_exports(name: str) -> None:
    make, inputs = NETWORKS[name]
    model = make().eval()
    args, kwargs = inputs(2)
    result = prunella.prune(model, args, ratio=0.5, form="graph", example_kwargs=kwargs)
    pruned = result.model
    assert isinstance(pruned, Rewritten)
    assert result.form == "graph"
    assert result.plan.after.macs < 0.4 * result.plan.before.macs
    assert result.certificate.error < 1e-9
    args, kwargs = inputs(5)
    sum(t.square().mean() for t in leaves(pruned.train()(*args, **kwargs))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in pruned.parameters())
    torch.export.export(pruned.eval(), *inputs(2))


def test_pruned_again_the_plans_join(tmp_path: Path) -> None:
    model, x = Spelled().eval(), images(2)
    first = prunella.prune(model, x, ratio=0.25, form="graph").model
    second = prunella.prune(first, x, ratio=0.5, form="graph").model
    assert isinstance(second, Rewritten)
    plan = prunella.plan_of(second)
    assert plan is not None
    assert plan.digest == digest_of(model)
    assert plan.form == "graph"
    prunella.save(second, tmp_path)
    loaded = prunella.load(tmp_path, model)
    x = images(5)
    assert torch.equal(loaded(x)["logits"], second(x)["logits"])


def test_a_finetuned_one_comes_back_from_disk(tmp_path: Path) -> None:
    task = tiny_task.task()
    model = tiny_task.trained()
    pruned = prunella.prune(model, images(1, 8, 1), ratio=0.5, form="graph").model
    finetune(pruned, task, Recipe(epochs=1, lr=0.02))
    prunella.save(pruned, tmp_path)
    loaded = prunella.load(tmp_path, tiny_task.Tiny())
    x = images(4, 8, 1)
    assert torch.equal(loaded.eval()(x), pruned.eval()(x))
    assert difference([pruned(x)], [model(x)]) > 0.01


# ---- where it cannot be


def test_data_dependent_models_are_refused() -> None:
    class Deciding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.linear(x)
            return x * 2 if x.sum() > 0 else x

    model = Deciding()
    with pytest.raises(ConfigError, match="`Deciding` cannot be rewritten: its course depends on"):
        rewritten(model, whole(model), inputs=((torch.randn(2, 4),), {}))


def test_a_training_mode_that_cannot_be_captured_is_told(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=None)).eval()
    with caplog.at_level(logging.WARNING):
        made = rewritten(model, whole(model), inputs=((images(2),), {}))
    assert "computes in training mode what it does in evaluation mode" in caplog.text
    x = images(2)
    assert torch.equal(made.train()(x), model(x))


def test_loading_needs_inputs_and_the_same_tensors(tmp_path: Path) -> None:
    model = Spelled().eval()
    pruned = prunella.prune(model, images(2), ratio=0.5, form="graph").model
    plan = prunella.plan_of(pruned)
    assert plan is not None
    prunella.save(pruned, tmp_path, dataclasses.replace(plan, example=None))
    with pytest.raises(ConfigError, match="does not say what inputs the model takes"):
        prunella.load(tmp_path, model)
    x = images(3)
    loaded = prunella.load(tmp_path, model, images(1))
    assert torch.equal(loaded(x)["logits"], pruned(x)["logits"])
    prunella.save(prunella.prune(model, x, ratio=0.25, form="graph").model, tmp_path, plan)
    with pytest.raises(PlanMismatchError, match="holds other tensors than the model: "):
        prunella.load(tmp_path, model)
