"""Bad input: a clear error that says what to do, and nothing lost."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import prunella
from prunella.errors import (
    BudgetError,
    ConfigError,
    NothingToPruneError,
    PlanMismatchError,
    TaskError,
    TraceError,
    TransformError,
    WorkspaceError,
)
from tests import oracle
from tests.models import ZOO, Concat, Residual, conv_norm, randomize

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> Iterator[nn.Module]:
    """A model that must come out of every failed call bit for bit, in the mode it went in."""
    torch.manual_seed(0)
    model = randomize(Residual()).train()
    before = oracle.state(model)
    yield model
    assert oracle.unchanged(model, before), "a failed call changed the model"
    assert all(module.training for module in model.modules()), "a failed call changed the mode"
    assert prunella.plan_of(model) is None


# Example inputs


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        (torch.randn(2, 4, 8, 8), r"example inputs \(\(2, 4, 8, 8\) torch.float32\)"),
        ((IMAGE, IMAGE), r"`Residual` does not run on the example inputs \(.*\).*: TypeError"),
        ((), r"`Residual` does not run on the example inputs"),
        (("image",), r"does not run on the example inputs \(str\)"),
        (IMAGE.double(), r"does not run on the example inputs .*RuntimeError"),
    ],
)
def test_wrong_example_inputs_are_shown_with_the_models_own_error(
    model: nn.Module, inputs: object, match: str
) -> None:
    with pytest.raises(TraceError, match=match) as caught:
        prunella.prune(model, inputs, ratio=0.5)
    assert "Pass inputs that" in str(caught.value)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("inputs", [[IMAGE], {"x": IMAGE}, None, 3])
def test_example_inputs_of_another_kind(model: nn.Module, inputs: object) -> None:
    with pytest.raises(ConfigError, match=r"is a tensor or a tuple of positional arguments, got"):
        prunella.prune(model, inputs, ratio=0.5)


def test_unknown_keyword_argument(model: nn.Module) -> None:
    with pytest.raises(TraceError, match="unexpected keyword argument 'mask'"):
        prunella.prune(model, IMAGE, ratio=0.5, example_kwargs={"mask": IMAGE})


@pytest.mark.parametrize(
    ("inputs", "remedy"),
    [
        ([IMAGE], r"got list: write `\(x,\)`"),
        ({"x": IMAGE}, "got dict: pass keyword arguments as `example_kwargs`"),
        (IMAGE.numpy(), "got ndarray: write `torch.from_numpy"),
        (
            DataLoader(TensorDataset(IMAGE)),
            r"got DataLoader: .* of one batch, .*next\(iter\(loader",
        ),
        (3, "got int: give what the model is called with"),
    ],
)
def test_example_inputs_of_another_kind_are_told_what_to_write(
    model: nn.Module, inputs: object, remedy: str
) -> None:
    for act in (prunella.prune, prunella.count_macs):
        with pytest.raises(ConfigError, match=remedy):
            act(model, inputs, **({"ratio": 0.5} if act is prunella.prune else {}))


def test_keyword_arguments_of_another_kind(model: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"`example_kwargs` is a dict .*, got list"):
        prunella.prune(model, (), ratio=0.5, example_kwargs=[IMAGE])


def test_counting_says_that_the_model_does_not_run(model: nn.Module) -> None:
    with pytest.raises(TraceError, match="does not run on the example inputs"):
        prunella.count_macs(model, torch.randn(2, 4, 8, 8))


# Something else in the place of a model, or of a stage's value


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        (Residual, "got the class `Residual`: call it"),
        (lambda: Residual(), "got the function `<lambda>`: call it"),
        (Residual().state_dict(), "load the state dict into it"),
        ("model.pt", "got str: make or load the model"),
        (None, "got NoneType: make or load the model"),
    ],
    ids=["a class", "a function", "a state dict", "a path", "nothing"],
)
def test_what_is_no_model(given: Any, remedy: str, tmp_path: Path) -> None:
    model = Residual()
    groups = prunella.couple(prunella.trace(model, IMAGE))
    scores = prunella.score(model, groups)
    plan = prunella.allocate(groups, scores, 0.5)
    data = prunella.Calibration([((IMAGE,), {})])
    prunella.save(prunella.transform(model, plan), tmp_path)
    better: Any = {"metric": "none", "higher_is_better": True}
    for act in (
        lambda: prunella.prune(given, IMAGE, ratio=0.5),
        lambda: prunella.trace(given, IMAGE),
        lambda: prunella.score(given, groups),
        lambda: prunella.analyze(given, groups, scores, lambda model: 0.5, **better),
        lambda: prunella.estimate(given, groups, scores, data),
        lambda: prunella.reconstruct(given, groups, scores, data),
        lambda: prunella.compensate(given, plan, data),
        lambda: prunella.mask(given, plan),
        lambda: prunella.transform(given, plan),
        lambda: prunella.certify(given, model, plan, IMAGE),
        lambda: prunella.certify(model, given, plan, IMAGE),
        lambda: prunella.save(given, tmp_path / "other"),
        lambda: prunella.save(given, tmp_path / "other", plan),
        lambda: prunella.load(tmp_path, given),
        lambda: prunella.plan_of(given),
        lambda: prunella.export(given, IMAGE, tmp_path / "model.onnx"),
        lambda: prunella.count_macs(given, IMAGE),
        lambda: prunella.count_params(given),
        lambda: prunella.count_weight_bytes(given),
        lambda: prunella.count_activation_bytes(given, IMAGE),
    ):
        with pytest.raises(ConfigError, match=re.escape(remedy)):
            act()


def test_a_stages_value_in_the_place_of_another_is_told_whose(
    model: nn.Module, tmp_path: Path
) -> None:
    result = prunella.prune(model, IMAGE, ratio=0.5)
    graph = prunella.trace(model, IMAGE)
    groups = prunella.couple(graph)
    scores = prunella.score(model, groups)
    wrong: list[tuple[Callable[[], object], str]] = [
        (lambda: prunella.couple(model), r"`Graph` is expected here, got Residual: `trace\("),
        (
            lambda: prunella.couple(groups),
            "`Graph` is expected here, got Groups: give its `.graph`",
        ),
        (lambda: prunella.score(model, graph), r"`Groups` is expected .*: `couple\(graph\)`"),
        (lambda: prunella.allocate(groups, scores.values, 0.5), "`Scores` is expected .* got dict"),
        (lambda: prunella.mask(model, "plan.json"), "`Plan` is expected here, got str"),
        (lambda: prunella.transform(model, result), "got PruneResult: give its `.plan`"),
        (lambda: prunella.save(result, tmp_path), "got PruneResult: give its `.model`"),
        (lambda: prunella.save(result.model, tmp_path, result), "give its `.plan`"),
        (lambda: prunella.reconstruct(model, groups, scores, [IMAGE]), "`Calibration` is expected"),
        (lambda: prunella.estimate(model, groups, scores, [IMAGE]), "`Calibration` is expected"),
        (lambda: prunella.save(tmp_path, result.model), "a model is a torch.nn.Module, got .*Path"),
        (lambda: prunella.load(model, tmp_path), "a path is text or a pathlib.Path, got Residual"),
        (lambda: prunella.quantize(model, "q.onnx", [IMAGE]), "`Exported` is expected here"),
    ]
    for act, match in wrong:
        with pytest.raises(ConfigError, match=match):
            act()


def test_certifying_takes_a_lone_tensor_for_the_input(model: nn.Module) -> None:
    result = prunella.prune(model, IMAGE, ratio=0.5)
    alone, packed = (
        prunella.certify(model, result.model, result.plan, args) for args in (IMAGE, (IMAGE,))
    )
    assert alone == packed


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"calibration": 3}, "calibration data are batches, in a list .*, got int"),
        ({"calibration": DataLoader}, "calibration data are batches, .*, got type"),
        ({"calibration": IMAGE.numpy()}, "got a ndarray: write `torch.from_numpy"),
        ({"calibration": [IMAGE.double()]}, "batch 0 of the calibration data: `Residual` does not"),
        ({"calibration": [IMAGE[:, :2]], "criterion": "fisher"}, "batch 0 of the calibration data"),
        ({"calibration": [IMAGE[:, :2]], "criterion": "wanda"}, "batch 0 of the calibration data"),
        ({"exclude": 3}, "`exclude` takes names, .*, got 3"),
        ({"criterion": 3}, "a criterion is a name of `prunella.CRITERIA` or a function .*, got 3"),
        ({"criterion": nn.ReLU}, "a criterion is .*; call the class"),
        ({"criterion": lambda members: 3}, "a criterion returns a tensor, .* returned a int"),
        ({"damage": {"conv1": 1.0}}, "`damage` is a function"),
        ({"progress": True, "calibration": [IMAGE]}, "`progress` is a function .*, got True"),
    ],
)
def test_options_of_another_kind(model: nn.Module, options: dict[str, Any], match: str) -> None:
    with pytest.raises((ConfigError, TraceError), match=match):
        prunella.prune(model, IMAGE, macs=0.5, **options)


@pytest.mark.parametrize("ratio", ["50%", "0.5", None, [0.5], {"conv1": "half"}])
def test_ratios_that_are_no_numbers(model: nn.Module, ratio: Any) -> None:
    groups = prunella.couple(prunella.trace(model, IMAGE))
    scores = prunella.score(model, groups)
    named = {name: "half" for name in [g.name for g in groups][:1]}
    with pytest.raises(ConfigError, match=r"a ratio is a share of channels, a number such as 0.5"):
        prunella.allocate(groups, scores, named if isinstance(ratio, dict) else ratio)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"ratios": 0.5}, ConfigError, r"got ratios=0.5; write them as in \(0.25, 0.5\)"),
        ({"ratios": "50%"}, ConfigError, "ratios are fractions .*, got ratios='50%'"),
        ({"evaluate": 3}, ConfigError, "`evaluate` is a function .*, got 3"),
        ({"evaluate": lambda model: None}, TaskError, "`evaluate` returned a NoneType"),
    ],
)
def test_arguments_of_analyze_of_another_kind(
    model: nn.Module, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    groups = prunella.couple(prunella.trace(model, IMAGE))
    given: dict[str, Any] = {"evaluate": lambda model: 0.5, "metric": "m", "higher_is_better": True}
    with pytest.raises(error, match=match):
        prunella.analyze(model, groups, prunella.score(model, groups), **(given | options))


# Models that cannot be traced


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv_norm(3, 8)
        self.fc = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).mean((2, 3))
        if x.sum() > 0:
            x = x * 2
        return self.fc(x)


class Loop(Branching):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).mean((2, 3))
        for _ in range(int(x.abs().sum().item())):
            x = x * 0.9
        return self.fc(x)


@pytest.mark.parametrize("kind", [Branching, Loop])
def test_without_weights_a_model_that_depends_on_values_is_named_with_its_line(
    kind: type[nn.Module],
) -> None:
    model = kind().to("meta")
    with pytest.raises(TraceError, match="does not run") as caught:
        prunella.trace(model, IMAGE.to("meta"))
    message = str(caught.value)
    assert kind.__name__ in message
    assert re.search(r"test_bad_input\.py:\d+", message), message
    assert caught.value.__cause__ is not None
    assert model.training


@pytest.mark.parametrize("kind", [Branching, Loop])
def test_a_model_that_depends_on_values_is_recorded_and_what_they_depend_on_stays(
    kind: type[nn.Module],
) -> None:
    model = kind()
    before = oracle.state(model)
    assert prunella.trace(model, IMAGE).recorded
    with pytest.raises(NothingToPruneError, match="statistics of a recorded run"):
        prunella.prune(model, IMAGE, ratio=0.5)
    assert oracle.unchanged(model, before)
    assert model.training


# Budgets and ratios


@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize("name", ["residual", "concat", "shuffle", "depthwise", "grouped_conv"])
def test_a_budget_that_cannot_be_met_names_the_smallest_that_can(name: str, kind: str) -> None:
    case = ZOO[name]
    model = case.model()
    before = oracle.state(model)
    with pytest.raises(BudgetError, match="smallest possible leaves") as caught:
        prunella.prune(model, case.inputs(), **{kind: 2})
    assert oracle.unchanged(model, before)
    reachable = caught.value.reachable
    result = prunella.prune(model, case.inputs(), **{kind: reachable})
    assert getattr(result.plan.after, kind) == reachable
    with pytest.raises(BudgetError, match=f"{reachable:,}"):
        prunella.prune(model, case.inputs(), **{kind: reachable - 1})


def test_two_budgets_that_can_only_be_met_one_at_a_time(model: nn.Module) -> None:
    with pytest.raises(BudgetError, match="params"):
        prunella.prune(model, IMAGE, macs=0.9, params=2)


@pytest.mark.parametrize("value", [0, -0.5, "0%", "half", True, "1.5", -3, float("nan"), [0.5]])
def test_budgets_out_of_range(model: nn.Module, value: object) -> None:
    with pytest.raises(ConfigError, match="macs is a share of the dense model"):
        prunella.prune(model, IMAGE, macs=value)


@pytest.mark.parametrize("value", [50, "50", 50.0])
def test_a_budget_that_was_meant_in_hundredths(model: nn.Module, value: object) -> None:
    with pytest.raises(BudgetError, match=r"at most 50 macs .*; 50% is written 0.5 or '50%'"):
        prunella.prune(model, IMAGE, macs=value)


@pytest.mark.parametrize("options", [{}, {"macs": 0.5, "ratio": 0.5}])
def test_budget_and_ratio_exclude_each_other(model: nn.Module, options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"budget .* or a `ratio`, and not both"):
        prunella.prune(model, IMAGE, **options)


@pytest.mark.parametrize("ratio", [1.0, 1.5, -0.1, float("nan")])
def test_ratios_out_of_range(model: nn.Module, ratio: float) -> None:
    with pytest.raises(ConfigError, match=r"0 <= ratio < 1, got ratio="):
        prunella.prune(model, IMAGE, ratio=ratio)


def test_a_ratio_for_an_unknown_group_names_the_nearest(model: nn.Module) -> None:
    groups = prunella.couple(prunella.trace(model, IMAGE))
    scores = prunella.score(model, groups)
    with pytest.raises(ConfigError, match=r"no group called 'stem\.00'; did you mean 'stem\.0'\?"):
        prunella.allocate(groups, scores, {"stem.00": 0.5})
    with pytest.raises(ConfigError, match=r"did you mean 'stem\.0'"):
        groups["stem0"]


@pytest.mark.parametrize("ratio", [0.0, 0.01])
def test_a_ratio_that_removes_nothing(model: nn.Module, ratio: float) -> None:
    with pytest.raises(NothingToPruneError, match=r"asks for less than one channel.*stem\.0 \(8\)"):
        prunella.prune(model, IMAGE, ratio=ratio)


def test_a_full_budget_removes_nothing(model: nn.Module) -> None:
    with pytest.raises(NothingToPruneError, match="the dense model keeps the budget"):
        prunella.prune(model, IMAGE, macs=1.0)


# Everything frozen


class Straight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def test_where_everything_is_frozen_every_group_is_listed_with_its_reason(
    model: nn.Module,
) -> None:
    with pytest.raises(NothingToPruneError, match="every group is frozen") as caught:
        prunella.prune(Straight(), IMAGE, ratio=0.5)
    assert re.search(r"conv \(4 channels\): reaches the output", str(caught.value))
    assert re.search(r"conv\[1\] \(3 channels\): .*`aten\.conv2d", str(caught.value))
    with pytest.raises(NothingToPruneError, match="excluded by '\\*'"):
        prunella.prune(model, IMAGE, ratio=0.5, exclude=["*"])
    with pytest.raises(NothingToPruneError, match="every group is frozen"):
        prunella.prune(Straight(), IMAGE, macs=0.5, criterion="fisher", calibration=IMAGE)


def test_a_model_without_weights() -> None:
    with pytest.raises(NothingToPruneError, match="no weights with channels"):
        prunella.prune(nn.Sequential(nn.ReLU(), nn.Flatten()), IMAGE, ratio=0.5)


# Exclude


def test_an_unknown_layer_in_exclude_names_the_nearest(model: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"'down.2' matches no .*; did you mean 'down"):
        prunella.prune(model, IMAGE, ratio=0.5, exclude=["down.2"])


@pytest.mark.parametrize("entry", ["layer9.*", re.compile("block.*"), nn.ConvTranspose2d])
def test_an_entry_of_exclude_that_matches_nothing(model: nn.Module, entry: object) -> None:
    with pytest.raises(ConfigError, match="matches no module or parameter"):
        prunella.prune(model, IMAGE, ratio=0.5, exclude=[entry])


def test_an_entry_of_exclude_of_another_kind(model: nn.Module) -> None:
    with pytest.raises(ConfigError, match="takes names, globs, regular expressions or classes"):
        prunella.prune(model, IMAGE, ratio=0.5, exclude=[3])


def test_an_entry_of_exclude_that_is_no_regular_expression(model: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"'re:\*' is no regular expression: nothing to repeat"):
        prunella.prune(model, IMAGE, ratio=0.5, exclude="re:*")


@pytest.mark.parametrize(
    "entry", ["down", "do*", re.compile(r"down\..*"), r"re:down\..*", "down.0.weight"]
)
def test_what_is_excluded_stays(model: nn.Module, entry: object) -> None:
    result = prunella.prune(model, IMAGE, ratio=0.5, exclude=[entry])
    assert result.model.down[0].weight.shape == model.down[0].weight.shape
    assert result.model.stem[0].weight.shape == model.stem[0].weight.shape, "its input stays too"
    assert result.model.a[0].out_channels == 3
    assert f"excluded by {entry!r}" in str(result.summary)


def test_a_class_in_exclude(model: nn.Module) -> None:
    result = prunella.prune(model, IMAGE, ratio=0.5, exclude=[nn.Linear])
    assert result.model.fc.weight.shape == model.fc.weight.shape
    with pytest.raises(NothingToPruneError, match="excluded by"):
        prunella.prune(model, IMAGE, ratio=0.5, exclude=[nn.Conv2d])


# Criteria


def test_an_unknown_criterion_names_the_nearest(model: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"no criterion called 'magnitud'; did you mean 'magn"):
        prunella.prune(model, IMAGE, ratio=0.5, criterion="magnitud")


@pytest.mark.parametrize(
    "criterion",
    [
        lambda slices: torch.full((len(slices[0]),), torch.nan),
        lambda slices: torch.ones(len(slices[0]) + 1),
        lambda slices: torch.ones(len(slices[0]), 2),
    ],
)
def test_a_criterion_that_misbehaves(model: nn.Module, criterion: Callable[..., Tensor]) -> None:
    with pytest.raises(ConfigError, match=r"one finite score per channel; for 'stem\.0' with 8"):
        prunella.prune(model, IMAGE, ratio=0.5, criterion=criterion)


# Plans of other models


def test_a_plan_of_another_model(model: nn.Module) -> None:
    plan = prunella.prune(Concat(), IMAGE, ratio=0.5).plan
    for call in (prunella.mask, prunella.transform):
        with pytest.raises(PlanMismatchError, match=f"for a model of structure {plan.digest}"):
            call(model, plan)


def test_a_plan_does_not_fit_the_model_it_made(model: nn.Module) -> None:
    result = prunella.prune(model, IMAGE, ratio=0.5)
    before = oracle.state(result.model)
    with pytest.raises(PlanMismatchError, match="before pruning"):
        prunella.transform(result.model, result.plan)
    assert oracle.unchanged(result.model, before)


def test_groups_of_another_model(model: nn.Module) -> None:
    groups = prunella.couple(prunella.trace(Concat(), IMAGE))
    with pytest.raises(PlanMismatchError, match="groups were found in another model"):
        prunella.score(model, groups)


def test_a_size_in_the_users_code_leaves_the_model_untouched() -> None:
    case = ZOO["size_in_code"]
    model = case.model()
    before = oracle.state(model)
    groups = prunella.couple(prunella.trace(model, case.inputs()))
    plan = prunella.allocate(groups, prunella.score(model, groups), 0.5)
    with pytest.raises(TransformError, match="left untouched"):
        prunella.transform(model, plan, case.inputs())
    assert oracle.unchanged(model, before)


def test_a_plan_that_was_tampered_with_is_not_believed(model: nn.Module) -> None:
    """What is cut together must be: a plan with other channels on one side proves wrong."""
    plan = prunella.prune(model, IMAGE, ratio=0.5).plan
    record = json.loads(plan.to_json())
    kept = record["kept"]["a.0.weight"]["0"]
    free = next(i for i in range(6) if i not in kept)
    record["kept"]["a.0.weight"]["0"] = sorted([*kept[1:], free])
    forged = prunella.Plan.from_json(json.dumps(record))
    with pytest.raises(prunella.PrunellaError):
        prunella.transform(model, forged, IMAGE)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda text: text[:-20], "it may be truncated"),
        (lambda text: "", "this is not a plan"),
        (lambda text: "[1, 2]", "this is not a plan"),
        (lambda text: '{"schema": 99}', "has schema 99, this version reads"),
        (lambda text: text.replace('"kept"', '"held"'), "this is not a plan .*kept"),
    ],
)
def test_text_that_is_no_plan(model: nn.Module, change: Callable[[str], str], match: str) -> None:
    text = prunella.prune(model, IMAGE, ratio=0.5).plan.to_json()
    with pytest.raises(PlanMismatchError, match=match):
        prunella.Plan.from_json(change(text))


# Saved models


@pytest.fixture
def saved(model: nn.Module, tmp_path: Path) -> Path:
    prunella.save(prunella.prune(model, IMAGE, ratio=0.5).model, tmp_path / "pruned")
    return tmp_path / "pruned"


def test_a_saved_model_comes_back_bit_for_bit(model: nn.Module, tmp_path: Path) -> None:
    pruned = prunella.prune(model, IMAGE, ratio=0.5).model
    prunella.save(pruned, tmp_path / "pruned")
    loaded = prunella.load(tmp_path / "pruned", Residual())
    assert oracle.unchanged(loaded, oracle.state(pruned))
    pruned.eval(), loaded.eval()
    assert torch.equal(loaded(IMAGE), pruned(IMAGE))
    again = prunella.prune(loaded, IMAGE, ratio=0.3)
    prunella.save(again.model, tmp_path / "again")
    assert prunella.count_params(prunella.load(tmp_path / "again", Residual())) == (
        again.plan.after.params
    )


@pytest.mark.parametrize("name", ["plan.json", "model.safetensors", "sha256.json"])
@pytest.mark.parametrize("how", ["truncated", "changed", "missing", "empty"])
def test_a_damaged_file_is_named(saved: Path, name: str, how: str) -> None:
    path = saved / name
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "changed":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        path.write_bytes(content[: len(content) // 2] if how == "truncated" else b"")
    fresh = Residual()
    before = oracle.state(fresh)
    with pytest.raises(WorkspaceError, match=re.escape(str(saved))):
        prunella.load(saved, fresh)
    assert oracle.unchanged(fresh, before)


def test_a_saved_model_loaded_into_another_class(saved: Path) -> None:
    with pytest.raises(PlanMismatchError, match="`Concat` has"):
        prunella.load(saved, Concat())


def test_a_folder_that_holds_nothing(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"nothing` is no folder, .* Name the one that"):
        prunella.load(tmp_path / "nothing", Residual())
    with pytest.raises(WorkspaceError, match="holds no complete saved model"):
        prunella.load(tmp_path, Residual())


def test_the_work_folder_of_a_run_is_not_the_models(model: nn.Module, tmp_path: Path) -> None:
    prunella.save(prunella.prune(model, IMAGE, ratio=0.5).model, tmp_path / "final")
    with pytest.raises(WorkspaceError, match=r"is the work folder of a run, .* Name `.*final`"):
        prunella.load(tmp_path, Residual())


def test_saving_a_model_that_was_not_pruned(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(PlanMismatchError, match="carries no plan; pass the plan"):
        prunella.save(model, tmp_path / "pruned")


def test_a_disk_that_is_full_leaves_what_was_saved_before(
    model: nn.Module, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.name: path.read_bytes() for path in saved.iterdir()}
    other = prunella.prune(model, IMAGE, ratio=0.75).model

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(WorkspaceError, match=r"No space left.*intact"):
            prunella.save(other, saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == files
    prunella.load(saved, Residual())


def test_a_model_that_kept_what_it_computed_with_gradients_can_be_pruned() -> None:
    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv_norm(3, 8)
            self.fc = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.seen = self.conv(x).mean((2, 3))
            return self.fc(self.seen)

    model = Keeping()
    model(IMAGE)
    assert model.seen.grad_fn is not None
    assert prunella.prune(model, IMAGE, ratio=0.5).plan.after.macs > 0
