"""Models against the recorded forward passes of the original, and the laws of grouped batch norm and initialisation."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers.parity import close, sample
from helpers.paths import DATA
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import pretrain_r50_aspp
from cp2_jax.convert import names
from cp2_jax.models import positions, segmenter
from cp2_jax.models.norm import BatchNorm


def model_config(backbone, head, dtype):
    model = pretrain_r50_aspp.get_config().model
    model.update(backbone=backbone, head=head, dtype=dtype)
    model.resnet.update(width=8, contract_dilation=True)
    model.vit.update(width=48, depth=3, heads=3)
    model.aspp.update(channels=16)
    model.fcn.update(channels=16)
    model.num_classes, model.dropout = 5, 0.1
    return model


RUNS = {"A_resnet_aspp": ("resnet", "aspp"), "A_resnet_fcn": ("resnet", "fcn"), "A_vit_aspp": ("vit", "aspp")}


def load(run, recorded, top, dtype):
    model = segmenter.build(model_config(*RUNS[run], np.dtype(dtype).name), top=top, image_size=64)
    unused = "conv_seg" if top == "projection" else "contrast_conv"
    state = {k[6:]: recorded[k] for k in recorded if k.startswith("state/") and unused not in k}
    return model, jax.tree.map(lambda x: jnp.asarray(x, dtype), names.variables_from_torch(state))


def nhwc(x, dtype):
    return jnp.asarray(x.transpose(0, 2, 3, 1), dtype)


def nchw(x):
    return np.asarray(x).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("run", RUNS)
def test_forward_equals_the_original_in_float64(x64, reference, run):
    recorded = reference(run)
    model, variables = load(run, recorded, "projection", jnp.float64)
    images = nhwc(recorded["images"], jnp.float64)
    out = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    close("float64 forward, eval", nchw(out), recorded["f64/out_eval"], 1e-9, run)
    out, _ = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))(variables, images)
    close("float64 forward, train", nchw(out), recorded["f64/out_train"], 1e-9, run)


@pytest.mark.parametrize("run", RUNS)
def test_stages_statistics_and_logits_equal_the_original_in_float32(reference, run):
    recorded = reference(run)
    images = nhwc(recorded["images"], jnp.float32)
    model, variables = load(run, recorded, "projection", jnp.float32)
    apply = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))
    out, changed = apply(variables, images)
    close("float32 forward, train", nchw(out), recorded["out_train"], 1e-4, run)
    stages = jax.jit(lambda v, x, t: model.apply(v, x, t, method="stages", mutable=["batch_stats"])[0], static_argnums=2)
    for mode in ("train", "eval"):
        found = stages(variables, images, mode == "train")
        assert len(found) == (4 if "resnet" in run else 1)
        for index, stage in enumerate(found):
            expected = recorded[f"backbone_{mode}/{index}"]
            assert expected.shape == (512,)  # evenly spread values of the recorded stage
            close(f"float32 backbone stages, {mode}", sample(nchw(stage), 512), expected, 1e-4, f"{run} stage {index + 1}")
    after = names.torch_from_variables({"batch_stats": changed["batch_stats"]})
    assert len(after) >= 12
    for name, value in after.items():
        close("float32 batch statistics after a pass", value, recorded[f"bn_after_train/{name}"], 1e-4, name)
    updated = {"params": variables["params"], **changed}
    evaluate = jax.jit(lambda v, x: model.apply(v, x, train=False))
    out = nchw(evaluate(updated, images))
    close("float32 forward, eval after train", out, recorded["out_eval_after_train"], 1e-4, run)
    close("float32 forward, eval", nchw(evaluate(variables, images)), recorded["out_eval"], 1e-4, run)

    classifier, variables = load(run, recorded, "classifier", jnp.float32)
    logits = jax.jit(lambda v, x: classifier.apply(v, x, train=False))(variables, images)
    close("float32 classifier logits", nchw(logits), recorded["seg/logits_eval"], 1e-4, run)


def test_vit_takes_other_sizes_by_bicubic_resizing(reference):
    recorded = reference("A_vit_aspp")
    model, variables = load("A_vit_aspp", recorded, "projection", jnp.float32)
    table = positions.resize_positions(variables["params"]["backbone"]["pos_embed"], (6, 5))
    close("float32 resized position table", table, recorded["pos_embed_6x5"], 1e-6, "6 x 5")
    out = model.apply(variables, nhwc(recorded["images_96x80"], jnp.float32), train=False)
    close("float32 ViT on an oblong image", nchw(out), recorded["out_eval_96x80"], 1e-4, "96 x 80")
    with pytest.raises(ValueError, match="96 x 72 pixels: a ViT needs multiples of its patch, 16"):
        model.apply(variables, jnp.zeros((1, 96, 72, 3)), train=False)


@pytest.mark.parametrize(
    "name,drawn", [("resnet_aspp", True), ("resnet_fcn", False), ("vit_aspp", False), ("vit_fcn", True)]
)
def test_full_size_shapes_and_initial_spread_equal_the_original(name, drawn):
    """Every parameter: its name, its shape, and the standard deviation that it starts with (each part drawn once)."""
    recorded = json.loads((DATA / "C_fullsize.json").read_text())[name]
    backbone, head = name.split("_")
    config = pretrain_r50_aspp.get_config().model
    config.update(backbone=backbone, head=head, dtype="float32")
    config.resnet.update(zero_init_residual=True)
    model = segmenter.build(config, top="projection")
    images = jnp.zeros((2, 224, 224, 3))
    out, variables = at_224 = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images, train=False))
    if drawn:
        variables = jax.jit(lambda k: model.init(k, jnp.zeros((1, 64, 64, 3)), train=False))(jax.random.key(0))
    nothing = np.zeros(())
    filled = variables if drawn else jax.tree.map(lambda x: np.broadcast_to(nothing, x.shape), variables)
    ours = names.torch_from_variables({"params": filled["params"]})
    expected = {k: v for k, v in recorded["params_shapes"].items() if "conv_seg" not in k}
    assert {k: list(v.shape) for k, v in ours.items()} == expected
    assert sum(v.size for v in ours.values()) == recorded["params_total_without_conv_seg"]
    assert sum(v.size for v in jax.tree.leaves(variables["batch_stats"])) == recorded["bn_running_stat_elements"]

    # What comes out of each stage and of the whole at 224 x 224.
    def shapes(out):
        return [[x.shape[i] for i in (0, 3, 1, 2)] for x in jax.tree.leaves(out)]

    assert shapes(out) == [recorded["out_shape"]]
    stages = jax.eval_shape(lambda v: model.apply(v, images, False, method="stages"), at_224[1])
    assert shapes(stages) == recorded["backbone_out_shapes"]
    config.num_classes, config.dropout = 21, 0.1
    full = segmenter.build(config, top="classifier")
    out, at_224 = jax.eval_shape(lambda: full.init_with_output(jax.random.key(0), images, train=False))
    assert sum(v.size for v in jax.tree.leaves(at_224["params"])) == recorded["finetune_params_total"]
    assert shapes(out)[0][:2] == recorded["finetune_whole_logits_shape_224"][:2]
    for parameter, value in ours.items() if drawn else ():
        std, count = recorded["init"][parameter], value.size
        # Three errors of a standard deviation estimated from so many numbers; the original's has an error of its own,
        # and a defect: its truncated normal can emit an exact -2.
        if count > 10_000 and std and "attn.proj" not in parameter:
            assert abs(value.std() / std - 1) < 0.03, f"{parameter}: {value.std():.4f}, original {std:.4f}"
        elif std == 0:
            assert value.std() == 0, parameter


@pytest.mark.parametrize("padding", ["torch", "same", "same_pool"])
def test_the_stem_pads_as_its_source_does(padding):
    """What reaches the first block, against PyTorch's symmetric and TensorFlow's SAME padding in plain NumPy."""
    config = pretrain_r50_aspp.get_config().model
    config.dtype = "float32"
    config.resnet.update(depth=18, width=2, stem_width=3, stage_sizes=(1, 1, 1, 1), padding=padding)
    model = segmenter.build(config, top="projection")
    images = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)
    variables = jax.jit(model.init, static_argnames="train")(jax.random.key(0), images, train=False)
    reached = []

    def record(call, args, kwargs, context):
        if context.module.name == "layer1_0":
            reached.append(np.asarray(args[0]))
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        model.apply(variables, images, train=False, method="stages")

    def windows(x, size, before, after, fill):
        x = np.pad(x, ((before, after), (before, after), (0, 0)), constant_values=fill)
        return np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(0, 1))[::2, ::2]

    # On even sizes SAME pads one pixel less in front: 2, 3 for 7 x 7 and 0, 1 for 3 x 3.
    conv, pool = ((2, 3) if padding == "same" else (3, 3)), ((1, 1) if padding == "torch" else (0, 1))
    kernel = np.asarray(variables["params"]["backbone"]["conv1"]["kernel"])
    x = np.einsum("rcijk,jkio->rco", windows(images[0], 7, *conv, 0), kernel) / np.sqrt(1 + 1e-5)
    expected = windows(np.maximum(x, 0), 3, *pool, -np.inf).max(axis=(3, 4))
    np.testing.assert_allclose(reached[0][0], expected, atol=1e-5)


def test_paper_dilates_every_3x3_convolution_of_the_last_stage():
    """Output stride 16 with rates 2, 2, 2 (paper) and 1, 2, 2 (released code): the first block tells them apart."""
    config = pretrain_r50_aspp.get_config().model
    config.dtype = "float32"
    config.resnet.update(width=4, stage_sizes=(1, 1, 1, 1))
    images = jax.random.normal(jax.random.key(1), (1, 64, 64, 3))
    outputs = []
    for contract in (False, True):
        config.resnet.contract_dilation = contract
        model = segmenter.build(config, top="projection")
        if not outputs:  # both have the same variables
            variables = jax.jit(model.init, static_argnames="train")(jax.random.key(0), images, train=False)
        outputs.append(jax.jit(lambda v, m=model: m.apply(v, images, method="stages"))(variables))
    assert [x.shape[1] for x in outputs[0]] == [16, 8, 4, 4]
    np.testing.assert_array_equal(outputs[0][2], outputs[1][2])
    assert not np.allclose(outputs[0][3], outputs[1][3])


def apply_norm(x, **options):
    norm = BatchNorm(**options)

    @jax.jit
    def run(x):
        return norm.apply(norm.init(jax.random.key(0), x, train=False), x, train=True, mutable=["batch_stats"])

    return run(x)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.booleans(), st.integers(0, 2**31))
def test_groups_are_separate_batches(groups, size, strided, seed):
    x = jnp.asarray(np.random.default_rng(seed).normal(2, 3, (groups * size, 3, 2, 4)), jnp.float32)
    y, changed = apply_norm(x, groups=groups, strided=strided)
    members = [
        np.arange(groups * size)[g::groups] if strided else np.arange(g * size, (g + 1) * size) for g in range(groups)
    ]
    for index in members:
        alone, _ = apply_norm(x[index])
        np.testing.assert_allclose(y[index], alone, atol=2e-4)
    part = np.asarray(x)
    mean = np.mean([part[i].mean((0, 1, 2)) for i in members], axis=0)
    var = np.mean([part[i].reshape(-1, 4).var(0, ddof=1) for i in members], axis=0)
    np.testing.assert_allclose(changed["batch_stats"]["mean"], 0.1 * mean, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(changed["batch_stats"]["var"], 0.9 + 0.1 * var, rtol=1e-3)


def test_groups_must_divide_the_batch():
    with pytest.raises(ValueError, match="batch of 5 cannot be split into 2 batch-norm groups"):
        apply_norm(jnp.zeros((5, 2, 2, 1)), groups=2)


@pytest.mark.parametrize("depth,blocks", [(18, (2, 2, 2, 2)), (101, (3, 4, 23, 3))])
def test_other_depths_need_no_new_code(depth, blocks):
    config = pretrain_r50_aspp.get_config().model
    config.resnet.update(depth=depth, width=4, stem_width=4)
    model = segmenter.build(config, top="projection")
    shapes = jax.eval_shape(lambda k: model.init(k, jnp.zeros((1, 32, 32, 3)), train=False), jax.random.key(0))
    names_found = [n for n in shapes["params"]["backbone"] if n.startswith("layer")]
    assert len(names_found) == sum(blocks)
