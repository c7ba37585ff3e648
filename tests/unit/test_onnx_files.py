"""An ONNX file goes in, a smaller one that computes what the masked one does comes out."""

import json
from functools import partial

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import prunella
from prunella.costs.timed import LatencyModel, Part, Region, digest_of
from prunella.costs.widths import Step, widths
from prunella.errors import BudgetError, CertificateError, ConfigError
from prunella.onnxfiles import pruning
from prunella.onnxfiles.operators import OPERATORS
from prunella.plan import Plan
from prunella.pruning import timing
from tests.onnx_models import convs, model, run, saved, weights

IMAGES = np.random.default_rng(1).standard_normal((24, 3, 12, 12)).astype(np.float32)


def masked_by_hand(path, plan, output):
    """Zero what the plan removes in the original file: an oracle that shares no code with ours."""
    read = onnx.load(str(path))
    for proto in read.graph.initializer:
        values = numpy_helper.to_array(proto).copy()
        for dim, kept in plan.kept.get(proto.name, {}).items():
            if kept and isinstance(kept[0], tuple):  # columns of a grouped convolution
                rows = np.split(np.arange(len(values)), len(kept))
                for own, columns in zip(rows, kept, strict=True):
                    gone = np.setdiff1d(np.arange(values.shape[1]), columns)
                    values[np.ix_(own, gone)] = 0
            else:
                gone = np.setdiff1d(np.arange(values.shape[dim]), kept)
                np.moveaxis(values, dim, 0)[gone] = 0
        proto.CopyFrom(numpy_helper.from_array(values, proto.name))
    onnx.save(read, str(output))
    return output


@pytest.mark.parametrize("macs", ["50%", 0.5, "0.7"])
def test_the_smaller_file_computes_what_the_masked_one_does(macs, tmp_path):
    path = saved(convs(), tmp_path)
    made = prunella.prune_onnx(path, tmp_path / "small.onnx", macs=macs)
    share = {"50%": 0.5, 0.5: 0.5, "0.7": 0.7}[macs]
    assert share * 0.9 < made.plan.after.macs / made.plan.before.macs <= share
    masked = masked_by_hand(path, made.plan, tmp_path / "masked.onnx")
    for images in (IMAGES[:1], IMAGES[:7]):  # the batch is as open as it was
        (wanted,), (found,) = (run(p, image=images) for p in (masked, made.path))
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert made.certificate.holds
    assert made.certificate.dtype == "float64"


def test_the_plan_beside_it_says_what_was_kept_of_the_original(tmp_path):
    path = saved(convs(), tmp_path)
    made = prunella.prune_onnx(path, tmp_path / "small.onnx", ratio=0.5)
    plan = Plan.from_json((tmp_path / "small.plan.json").read_text())
    assert plan == made.plan
    before, after = weights(path), weights(made.path)
    changed = {name for name in before if before[name].shape != after[name].shape}
    assert changed == set(plan.kept)
    assert {"stem.weight", "hidden.weight"} <= changed
    for name, dims in plan.kept.items():
        wanted = before[name]
        for dim, kept in dims.items():
            if not isinstance(kept[0], tuple):
                wanted = np.take(wanted, kept, dim)
        if name != "grouped.weight":
            np.testing.assert_array_equal(after[name], wanted)


def test_everything_else_in_the_file_stays(tmp_path):
    before = convs()
    before.producer_name, before.doc_string = "somebody", "a text"
    before.graph.doc_string = "of the graph"
    helper.set_model_props(before, {"classes": "five"})
    path = saved(before, tmp_path)
    after = onnx.load(str(prunella.prune_onnx(path, tmp_path / "small.onnx", ratio=0.5).path))
    assert (after.producer_name, after.doc_string) == ("somebody", "a text")
    assert after.graph.doc_string == "of the graph"
    assert after.metadata_props[0].value == "five"
    assert after.opset_import == before.opset_import
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    assert [n.name for n in after.graph.node] == [n.name for n in before.graph.node]
    assert [i.name for i in after.graph.initializer] == [i.name for i in before.graph.initializer]
    deep = next(n for n in after.graph.node if n.name == "deep")
    assert helper.get_attribute_value(deep.attribute[0]) == 8  # the conv groups that are left
    assert path.read_bytes() == before.SerializeToString()


def test_shapes_noted_in_between_are_those_of_the_smaller_file(tmp_path):
    path = saved(onnx.shape_inference.infer_shapes(convs()), tmp_path)
    after = onnx.load(str(prunella.prune_onnx(path, tmp_path / "small.onnx", ratio=0.5).path))
    noted = {v.name: v.type.tensor_type.shape.dim[1].dim_value for v in after.graph.value_info}
    assert (noted["a"], noted["g"]) == (8, 6)
    onnx.checker.check_model(after, full_check=True)


def test_calibration_repairs(tmp_path):
    path = saved(convs(), tmp_path)
    np.savez(tmp_path / "data.npz", image=IMAGES)
    (dense,) = run(path, image=IMAGES)

    def off(made):
        return float(np.square(run(made.path, image=IMAGES)[0] - dense).sum())

    alone = prunella.prune_onnx(path, tmp_path / "alone.onnx", macs=0.6)
    repaired = prunella.prune_onnx(path, tmp_path / "small.onnx", tmp_path / "data.npz", macs=0.6)
    assert off(repaired) < 0.5 * off(alone)
    assert repaired.moved == pytest.approx(
        (off(repaired) / np.square(dense).sum()) ** 0.5, rel=1e-3
    )
    assert alone.moved is None
    same = prunella.prune_onnx(path, None, {"image": IMAGES}, macs=0.6)
    assert same.plan.kept == repaired.plan.kept
    assert same.path is None


def test_nodes_are_excluded_by_name(tmp_path):
    path = saved(convs(), tmp_path)
    made = prunella.prune_onnx(path, None, ratio=0.5, exclude=("gro*",))
    assert "hidden" in " ".join(made.plan.channels)
    assert {name for name in made.plan.kept if name.startswith(("stem", "grouped"))} == set()
    assert "excluded" in made.summary


# -- what is read


def test_a_file_that_is_not_onnx(tmp_path):
    for name, content in (("text.onnx", b"hello, this is a text\n" * 9), ("empty.onnx", b"")):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=rf"{name}` is not an ONNX .*check_model"):
            prunella.prune_onnx(path, tmp_path / "small.onnx", macs=0.5)
    with pytest.raises(ConfigError, match=r"there is no file .*gone\.onnx"):
        prunella.prune_onnx(tmp_path / "gone.onnx", tmp_path / "small.onnx", macs=0.5)
    assert not (tmp_path / "small.onnx").exists()


def test_the_file_itself_is_never_written_to(tmp_path):
    path = saved(convs(), tmp_path)
    with pytest.raises(ConfigError, match="is the file that is pruned"):
        prunella.prune_onnx(path, path, macs=0.5)
    with pytest.raises(BudgetError, match="smallest possible"):
        prunella.prune_onnx(path, tmp_path / "small.onnx", macs=0.0001)
    assert not (tmp_path / "small.onnx").exists()


CHAIN = """
agraph (float[batch, 3, 8, 8] x) => (float[batch, 4, 8, 8] y) {
    [one] a = Conv <kernel_shape = [1, 1]> (x, w1)
    [two] b = Relu (a)
    [three] c = Conv <kernel_shape = [1, 1]> (b, w2)
    [odd_one] d = %s (c)
    [four] e = Conv <kernel_shape = [1, 1]> (d, w3)
    [five] f = Relu (e)
    [six] y = Conv <kernel_shape = [1, 1]> (f, w4)
}
"""
CHAIN_SHAPES = {"w1": (16, 3, 1, 1), "w2": (8, 16, 1, 1), "w3": (12, 8, 1, 1), "w4": (4, 12, 1, 1)}
SMALL = np.random.default_rng(2).standard_normal((3, 3, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("op", ["MeanVarianceNormalization", "com.microsoft.QuickGelu"])
def test_an_operator_that_we_do_not_read_is_frozen_and_named(op, tmp_path):
    path = saved(model(CHAIN % op, CHAIN_SHAPES), tmp_path)
    made = prunella.prune_onnx(path, tmp_path / "small.onnx", {"x": SMALL}, ratio=0.5)
    assert {"w1", "w3"} == set(made.plan.channels)  # both sides of it
    assert f"frozen: `{op}` in `odd_one`" in made.summary
    assert "has no rule" in made.summary
    assert "w2 (8 channels)" in made.summary
    assert made.parity < 1e-4
    assert weights(made.path)["w2"].shape == (8, 8, 1, 1)


def test_an_operator_that_nobody_knows_is_left_out_and_stays_in_the_file(tmp_path):
    text = CHAIN % "odd.Thing <strength = 3>"
    path = saved(model(text, CHAIN_SHAPES), tmp_path)
    made = prunella.prune_onnx(path, tmp_path / "small.onnx", {"x": SMALL}, ratio=0.5)
    assert made.left_out[0] == "`Thing` in `odd_one`"
    assert "left out: `Thing` in `odd_one`" in made.summary
    assert set(made.plan.channels) == {"w1"}  # before it all can go on
    after = onnx.load(str(made.path))
    thing = next(n for n in after.graph.node if n.op_type == "Thing")
    assert (thing.domain, thing.attribute[0].i, thing.name) == ("odd", 3, "odd_one")
    np.testing.assert_array_equal(weights(made.path)["w4"], weights(path)["w4"])


def test_where_nothing_but_an_unknown_operator_is_left(tmp_path):
    text = "agraph (float[2, 3] x) => (float[2, 3] y) { [it] y = odd.Thing (x) }"
    path = saved(model(text, {}), tmp_path)
    with pytest.raises(ConfigError, match=r"nothing in .* can be pruned: .*`Thing` in `it`"):
        prunella.prune_onnx(path, tmp_path / "small.onnx", ratio=0.5)


def test_a_choice_of_boxes_ends_the_network(tmp_path):
    text = """
    agraph (float[1, 3, 8, 8] x) => (int64[found, 3] chosen) {
        [one] a = Conv <kernel_shape = [1, 1]> (x, w1)
        [two] b = Conv <kernel_shape = [1, 1]> (a, w2)
        [flat] c = Reshape (b, shape)
        [turn] boxes = Transpose <perm = [0, 2, 1]> (c)
        [score] s = ReduceMax <axes = [1], keepdims = 1> (c)
        [nms] chosen = NonMaxSuppression (boxes, s, most, overlap)
    }
    """
    made = model(text, {"w1": (16, 3, 1, 1), "w2": (4, 16, 1, 1)})
    for name, value in (("shape", [1, 4, 64]), ("most", [9])):
        made.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    overlap = numpy_helper.from_array(np.array([0.5], np.float32), "overlap")
    made.graph.initializer.append(overlap)
    path = saved(made, tmp_path)
    found = prunella.prune_onnx(path, tmp_path / "small.onnx", ratio=0.5)
    assert found.left_out == ("`NonMaxSuppression` in `nms`",)
    assert weights(found.path)["w1"].shape == (8, 3, 1, 1)
    assert run(found.path, x=SMALL[:1])[0].shape[1] == 3


def test_weights_in_files_beside_the_model(tmp_path):
    before = convs()
    folder = tmp_path / "in"
    folder.mkdir()
    path = folder / "model.onnx"
    onnx.save(before, str(path), save_as_external_data=True, location="w.bin", size_threshold=0)
    held = (folder / "w.bin").read_bytes()
    made = prunella.prune_onnx(path, tmp_path / "small.onnx", {"image": IMAGES}, macs=0.5)
    assert (folder / "w.bin").read_bytes() == held
    assert (tmp_path / "small.onnx.data").stat().st_size > 1000
    after = onnx.load(str(made.path), load_external_data=False)
    places = {i.name: i.data_location for i in after.graph.initializer}
    assert places["up.weight"] == TensorProto.EXTERNAL  # small ones stay inside
    inside = prunella.prune_onnx(
        saved(convs(), tmp_path), tmp_path / "inside.onnx", {"image": IMAGES}, macs=0.5
    )
    for one, other in zip(
        run(made.path, image=IMAGES), run(inside.path, image=IMAGES), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    (folder / "w.bin").write_bytes(held[:100])
    with pytest.raises(ConfigError, match=r"`.*w\.bin` is too short: tensor `"):
        prunella.prune_onnx(path, tmp_path / "small.onnx", macs=0.5)
    (folder / "w.bin").unlink()
    with pytest.raises(ConfigError, match="Put the file beside the model"):
        prunella.prune_onnx(path, tmp_path / "small.onnx", macs=0.5)


def test_weights_are_not_looked_for_outside_the_models_folder(tmp_path):
    before = convs()
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "model.onnx"
    onnx.save(before, str(path), save_as_external_data=True, location="w.bin", size_threshold=0)
    read = onnx.load(str(path), load_external_data=False)
    for entry in read.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../../etc/passwd"
    path.write_bytes(read.SerializeToString())
    with pytest.raises(ConfigError, match="outside the model's own folder"):
        prunella.prune_onnx(path, tmp_path / "small.onnx", macs=0.5)


def test_integers_go_in(tmp_path):
    text = """
    agraph (int64[batch, length] words) => (float[batch, 3] y) {
        [table] a = Gather (table, words)
        [wide] b = MatMul (a, w1)
        [bias] c = Add (b, b1)
        [act] d = Gelu (c)
        [mean] e = ReduceMean <keepdims = 0> (d, axes)
        [head] y = Gemm <transB = 1> (e, w2)
    }
    """
    made = model(text, {"table": (20, 8), "w1": (8, 16), "b1": (16,), "w2": (3, 16)}, opset=20)
    made.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "axes"))
    path = saved(made, tmp_path)
    words = np.random.default_rng(0).integers(0, 20, (40, 6))
    found = prunella.prune_onnx(path, tmp_path / "small.onnx", {"words": words}, macs=0.5)
    assert found.plan.after.macs <= 0.5 * found.plan.before.macs
    assert run(found.path, words=words[:5, :4])[0].shape == (5, 3)
    with pytest.raises(ConfigError, match="`--shape words=1xlength` with a number"):
        prunella.prune_onnx(path, tmp_path / "small.onnx", macs=0.5)
    prunella.prune_onnx(path, tmp_path / "small.onnx", macs=0.5, shapes={"words": (1, 6)})
    with pytest.raises(ConfigError, match="the shape given for it is \\(1, 6, 2\\)"):
        prunella.prune_onnx(path, None, macs=0.5, shapes={"words": (1, 6, 2)})


def test_weights_that_a_node_fills(tmp_path):
    text = """
    agraph (float[batch, 3, 8, 8] x) => (float[batch, 4, 8, 8] y) {
        [fill] w1 = ConstantOfShape <value = float[1] {0.25}> (shape)
        [one] a = Conv <kernel_shape = [1, 1]> (x, w1)
        [two] y = Conv <kernel_shape = [1, 1]> (a, w2)
    }
    """
    made = model(text, {"w2": (4, 16, 1, 1)})
    shape = numpy_helper.from_array(np.array([16, 3, 1, 1], np.int64), "shape")
    made.graph.initializer.append(shape)
    found = prunella.prune_onnx(saved(made, tmp_path), tmp_path / "small.onnx", ratio=0.5)
    assert run(found.path, x=SMALL)[0].shape == (3, 4, 8, 8)
    after = onnx.load(str(found.path))
    assert after.graph.node[0].op_type == "ConstantOfShape"  # as small as it was


def test_a_vector_that_several_nodes_share_is_cut_for_each(tmp_path):
    text = """
    agraph (float[batch, 3, 8, 8] x) => (float[batch, 4, 8, 8] y) {
        [one] a = Conv <kernel_shape = [1, 1]> (x, w1, bias)
        [same] again = Identity (bias)
        [two] b = Conv <kernel_shape = [1, 1]> (a, w2, again)
        [three] y = Conv <kernel_shape = [1, 1]> (b, w3)
    }
    """
    shapes = {"w1": (16, 3, 1, 1), "bias": (16,), "w2": (16, 16, 1, 1), "w3": (4, 16, 1, 1)}
    path = saved(model(text, shapes), tmp_path)
    plans = {"w1": 0.5, "w2": 0.25}
    found = prunella.prune_onnx(path, tmp_path / "small.onnx", ratio=plans)
    assert {name: len(kept) for name, kept in found.plan.channels.items()} == {"w1": 8, "w2": 12}
    assert found.parity < 1e-5
    vectors = [v for v in weights(found.path).values() if v.ndim == 1]
    assert sorted(map(len, vectors)) == [8, 12]


# -- calibration data


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES}, r"holds 'images', which is no input.* did you mean 'image'\?.* should "
                             r"hold `image`: float32 of shape \(batch, 3, 12, 12\)"),
        ({}, "lacks the input `image`"),
        ({"image": IMAGES.astype(np.float64)}, "is float64, the model asks for float32.*astype"),
        ({"image": (IMAGES * 9).astype(np.uint8)}, "is uint8, the model asks for float32"),
        ({"image": IMAGES.transpose(0, 2, 3, 1)}, r"shape \(24, 12, 12, 3\), the model asks for "
                                                  r"\(samples, 3, 12, 12\)"),
        ({"image": IMAGES[0]}, r"the shape \(3, 12, 12\)"),
        ({"image": IMAGES[:0]}, "holds 0 samples"),
    ],
)  # fmt: skip
def test_wrong_calibration_data_are_named(arrays, message, tmp_path):
    path = saved(convs(), tmp_path)
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(ConfigError, match=message):
        prunella.prune_onnx(path, tmp_path / "small.onnx", tmp_path / "data.npz", macs=0.5)


def test_calibration_files_that_are_none(tmp_path):
    path = saved(convs(), tmp_path)
    np.save(tmp_path / "one.npy", IMAGES)
    (tmp_path / "text.npz").write_text("no zip")
    for name, message in (
        ("one.npy", "holds one array without a name"),
        ("text.npz", "is no .npz file of plain arrays"),
        ("gone.npz", "there is no file"),
    ):
        with pytest.raises(ConfigError, match=message):
            prunella.prune_onnx(path, tmp_path / "small.onnx", tmp_path / name, macs=0.5)


def test_a_fixed_batch_is_kept(tmp_path):
    made = convs()
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    path = saved(made, tmp_path)
    found = prunella.prune_onnx(path, tmp_path / "small.onnx", {"image": IMAGES[:7]}, macs=0.5)
    assert json.loads(found.plan.to_json())["example"]["args"][0]["tensor"] == [2, 3, 12, 12]
    with pytest.raises(ConfigError, match="holds 1 samples, and the model takes 2 at once"):
        prunella.prune_onnx(path, None, {"image": IMAGES[:1]}, macs=0.5)


# -- torch and ONNX Runtime compared


def test_a_node_that_torch_reads_otherwise_is_handed_back_to_onnx(tmp_path, monkeypatch):
    path = saved(model(CHAIN % "Elu", CHAIN_SHAPES), tmp_path)
    monkeypatch.setitem(OPERATORS, "Elu", lambda call, x: x * 1.01)
    made = prunella.prune_onnx(path, tmp_path / "small.onnx", ratio=0.5)
    assert "frozen: `Elu` in `odd_one` (torch computes something else)" in made.summary
    assert set(made.plan.channels) == {"w1", "w3"}
    assert made.parity < 1e-5


def test_rounding_that_a_network_blows_up_is_no_other_node(tmp_path):
    text = """
    agraph (float[batch, 3, 8, 8] x) => (float[batch, 4, 8, 8] y) {
        [one] a = Conv <kernel_shape = [1, 1]> (x, w1)
        [big] b = Mul (a, much)
        [wave] c = Sin (b)
        [two] y = Conv <kernel_shape = [1, 1]> (c, w2)
    }
    """
    made = model(text, {"w1": (16, 3, 1, 1), "w2": (4, 16, 1, 1)})
    made.graph.initializer.append(numpy_helper.from_array(np.float32(3e4), "much"))
    found = prunella.prune_onnx(saved(made, tmp_path), tmp_path / "small.onnx", ratio=0.5)
    assert 1e-3 < found.dense_parity < 0.1
    assert "run as ONNX says" not in found.summary


def spoil_weight(read):
    first = read.graph.initializer[0]
    values = numpy_helper.to_array(first) * np.float32(1.0001)
    first.CopyFrom(numpy_helper.from_array(values, first.name))


def spoil_node(read):
    next(n for n in read.graph.node if n.op_type == "HardSwish").op_type = "Relu"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_weight, "tensor `stem.weight` in .* is not that of the proven model"),
        (spoil_node, "something else than the proven model computes"),
    ],
)
def test_a_wrong_file_is_not_passed_on(spoil, message, tmp_path, monkeypatch):
    path = saved(convs(), tmp_path)

    def spoiled(file, dense, pruned, inputs, output):
        honest(file, dense, pruned, inputs, output)
        read = onnx.load(str(output))
        spoil(read)
        onnx.save(read, str(output))

    honest = pruning.write
    monkeypatch.setattr(pruning, "write", spoiled)
    with pytest.raises(CertificateError, match=message):
        prunella.prune_onnx(path, tmp_path / "small.onnx", ratio=0.5)


def test_a_budget_on_time(tmp_path, monkeypatch):
    asked = []

    def profiled(network, inputs, groups, runtime, **_):  # a file so small takes no time to measure
        asked.append(str(runtime))
        parts = [Part(0.1, (index,), (Step(),)) for index in range(len(widths(groups)))]
        known = str(runtime), digest_of(groups), (Region("all", "", tuple(parts)),)
        return LatencyModel(*known, 1.0, 16, 0.0, 0.0)

    monkeypatch.setattr(timing, "profile", profiled)
    monkeypatch.setattr(timing, "meet", partial(timing.meet, seconds=0.3))
    monkeypatch.setattr(pruning, "SECONDS", 0.5)
    path = saved(convs(), tmp_path)
    runtime = "onnxruntime:threads=1"
    made = prunella.prune_onnx(path, tmp_path / "small.onnx", latency=0.8, runtime=runtime)
    assert asked == [runtime]
    assert made.plan.after.latency < made.plan.before.latency
    assert made.times.runtime == runtime
    assert len(made.times.original.samples_ms) == len(made.times.written.samples_ms) >= 7
    (found,), (wanted,) = (
        run(p, image=IMAGES)
        for p in (made.path, masked_by_hand(path, made.plan, tmp_path / "masked.onnx"))
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_files_are_timed_only_where_files_run(tmp_path):
    path = saved(convs(), tmp_path)
    with pytest.raises(ConfigError, match="`torch` runs no ONNX file"):
        prunella.prune_onnx(path, tmp_path / "small.onnx", latency=0.8, runtime="torch")
    made = prunella.prune_onnx(path, tmp_path / "small.onnx", macs=0.8)
    assert made.times is None


WORDS = """
agraph (int64[batch, 12] words) => (float[batch, 5] scores) {
    [look] a = Gather (embed__weight, words)
    [wide] b = Unsqueeze (a, one)
    [conv] c = Conv <kernel_shape = [2, 16]> (b, conv__weight)
    [act] d = Relu (c)
    [pool] e = GlobalMaxPool (d)
    [flat] f = Flatten (e)
    [head] scores = Gemm <transB = 1> (f, head__weight)
}
"""


def test_an_embedding_is_cut_with_the_width_of_its_kernels(tmp_path):
    shapes = {"embed.weight": (50, 16), "conv.weight": (8, 1, 2, 16), "head.weight": (5, 8)}
    file = model(WORDS, shapes)
    file.graph.initializer.append(numpy_helper.from_array(np.array([1]), "one"))
    path = saved(file, tmp_path)
    words = np.random.default_rng(0).integers(0, 50, (3, 12))
    made = prunella.prune_onnx(
        path, tmp_path / "small.onnx", {"words": words}, ratio=0.5, repair=False
    )
    assert weights(made.path)["embed.weight"].shape == (50, 8)
    masked = masked_by_hand(path, made.plan, tmp_path / "masked.onnx")
    (wanted,), (found,) = (run(p, words=words) for p in (masked, made.path))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
