"""Finetuning against the recorded original and plain NumPy; a run that learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import toy_backbone
from helpers.by_hand import upsampled_by_hand
from helpers.parity import close
from helpers.paths import DATA
from helpers.tiny import differs, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import finetune_camvid, finetune_cityscapes, finetune_voc, pretrain_r50_aspp
from cp2_jax.convert import names
from cp2_jax.data.labelled.examples import label_table
from cp2_jax.models import resize
from cp2_jax.models.backbones import BACKBONES
from cp2_jax.models.tops import Classifier
from cp2_jax.runs import checkpoints, mesh
from cp2_jax.segmentation import options as finetune_options
from cp2_jax.segmentation import predictor
from cp2_jax.segmentation import step as finetune_step

# Recorded arrays.


@pytest.mark.parametrize("run", ["A_resnet_aspp", "A_resnet_fcn", "A_vit_aspp"])
def test_upsampled_logits_loss_and_gradient_equal_the_original(reference, run):
    """Dropout off, training-mode batch norm, labels with ignored pixels: as recorded."""
    recorded = np.load(DATA / f"{run}.npz")
    config = finetune_voc.get_config()
    config.model = pretrain_r50_aspp.get_config().model
    config.model.update(backbone=run.split("_")[1], head=run.split("_")[2], dtype="float32")
    config.model.resnet.update(width=8, contract_dilation=True)
    config.model.vit.update(width=48, depth=3, heads=3)
    config.model.aspp.update(channels=16)
    config.model.fcn.update(channels=16)
    config.model.num_classes, config.model.dropout, config.image_size = 5, 0.0, 64
    state = {k[6:]: recorded[k] for k in recorded if k.startswith("state/") and "contrast_conv" not in k}
    variables = jax.tree.map(jnp.asarray, names.variables_from_torch(state))
    model = finetune_step.build_model(config)
    images = jnp.asarray(recorded["images"].transpose(0, 2, 3, 1))
    labels = jnp.asarray(recorded["seg/labels"][:, 0])
    assert (labels == 255).any()

    logits = jax.jit(lambda v: model.apply(v, images, train=False))(variables)
    whole = resize.bilinear(logits, (64, 64)).transpose(0, 3, 1, 2)
    close("float32 classifier logits", logits.transpose(0, 3, 1, 2), recorded["seg/logits_eval"], 2e-5, run)
    close("float32 upsampled logits", whole, recorded["seg/whole_eval"], 2e-5, run)

    def loss_of(params):
        logits, _ = model.apply(variables | {"params": params}, images, train=True, mutable=["batch_stats"])
        return finetune_step.cross_entropy(logits, labels, "all")

    (loss, _), gradients = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(variables["params"])
    close("float32 finetuning loss", loss, recorded["seg/loss_train_nodropout"], 2e-5, run)
    kernel = gradients["classifier"]["conv_seg"]["kernel"].transpose(3, 2, 0, 1)
    expected = recorded["seg/grad/decode_head.conv_seg.weight"]
    close("float32 finetuning gradient", kernel, expected, 2e-4, run)


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_bilinear_equals_the_definition(rows, columns, height, width, seed):
    """Enlarging, shrinking and a mixture."""
    x = np.random.default_rng(seed).normal(size=(2, rows, columns, 3)).astype(np.float32)
    ours = resize.bilinear(jnp.asarray(x), (height, width))
    for mine, one in zip(ours, x, strict=True):
        np.testing.assert_allclose(mine, upsampled_by_hand(one, height, width), atol=2e-6)


@pytest.mark.parametrize("average", ["all", "labelled"])
def test_cross_entropy_equals_numpy(average):
    rng = np.random.default_rng(0)
    logits, label = rng.normal(size=(2, 4, 5, 3)), rng.integers(0, 3, (2, 4, 5))
    label[rng.random(label.shape) < 0.3] = 255
    total = right = count = 0.0
    for values, truth in zip(logits.reshape(-1, 3), label.ravel(), strict=True):
        if truth != 255:
            total -= np.log(np.exp(values[truth]) / np.exp(values).sum())
            right, count = right + (values.argmax() == truth), count + 1
    loss, accuracy = finetune_step.cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(label, jnp.uint8), average)
    np.testing.assert_allclose(loss, total / (label.size if average == "all" else count), rtol=1e-5)
    np.testing.assert_allclose(accuracy, right / count, rtol=1e-6)


def test_batch_without_a_label_has_loss_zero_and_a_finite_gradient():
    label = jnp.full((1, 8, 8), 255, jnp.uint8)
    for average in ("all", "labelled"):
        loss, gradient = jax.value_and_grad(lambda x, a=average: finetune_step.cross_entropy(x, label, a)[0])(
            jnp.ones((1, 2, 2, 3))
        )
        assert loss == 0 and np.all(gradient == 0)
    with pytest.raises(KeyError):
        finetune_step.cross_entropy(jnp.ones((1, 2, 2, 3)), label, "some")


def test_padding_is_the_mean_after_normalising():
    images = np.random.default_rng(0).integers(0, 256, (2, 6, 7, 3)).astype(np.uint8)
    size = np.array([[4, 7], [6, 3]], np.int32)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    ours = np.asarray(finetune_step.normalize(jnp.asarray(images), jnp.asarray(size), mean, std))
    expected = (images / 255 - np.array(mean)) / np.array(std)
    expected[0, 4:] = 0
    expected[1, :, 3:] = 0
    np.testing.assert_allclose(ours, expected, atol=1e-6)


# Training.


def halves(seed, count=8):
    """Images whose left part is bright and right part dark, with a random border; padded on one side."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 60, (count, 32, 32, 3)).astype(np.uint8)
    label = np.ones((count, 32, 32), np.uint8)
    size = np.full((count, 2), 32, np.int32)
    for row in range(count):
        border = rng.integers(8, 24)
        image[row, :, :border] += 150
        label[row, :, :border] = 0
        label[row, 28:] = 255
        image[row, 28:] = 0
        size[row, 0] = 28
    return {"image": image, "label": label, "size": size}


def train(config, steps, devices=None):
    device_mesh = mesh.make_mesh(devices)
    initial_state, step = finetune_step.make_step(config, config.steps, 10, device_mesh)
    state, losses, accuracies = initial_state(finetune_step.init_variables(config)), [], []
    for number in range(steps):
        state, metrics = step(state, mesh.place_batch(device_mesh, halves(number)))
        values = metrics.compute()
        losses.append(float(values["loss"]))
        accuracies.append(float(values["pixel_accuracy"]))
        assert np.isfinite(values["gradient_norm"])
    return state, losses, accuracies, float(values["learning_rate"])


def test_a_run_learns_and_repeats_exactly():
    config = tiny_config()
    state, losses, accuracies, rate = train(config, 40)
    assert losses[-1] < 0.4 * losses[0] and accuracies[-1] > 0.9
    assert int(state.step) == 40
    # Poly from 0.1 to 1e-4 in 40 steps, after 39 of them.
    np.testing.assert_allclose(rate, (0.1 - 1e-4) * (1 / 40) ** 0.9 + 1e-4, rtol=1e-5)
    again, losses_again, *_ = train(config, 3)
    assert losses_again == losses[:3]


def test_dropout_takes_whole_channels():
    """PyTorch's Dropout2d: of a channel all pixels or none, those that stay divided by what stays."""
    classifier, x = Classifier(1, dropout=0.5), jnp.ones((3, 4, 5, 64))
    params = {"conv_seg": {"kernel": jnp.ones((1, 1, 64, 1)), "bias": jnp.zeros(1)}}
    logits = classifier.apply({"params": params}, x, train=True, rngs={"dropout": jax.random.key(0)})[..., 0]
    assert (np.ptp(logits, axis=(1, 2)) == 0).all() and len(set(np.asarray(logits[:, 0, 0]))) == 3
    assert (logits % 2 == 0).all() and 40 < logits.mean() < 90
    np.testing.assert_array_equal(classifier.apply({"params": params}, x, train=False), 64)


def test_dropout_differs_from_step_to_step(monkeypatch):
    """With a zero learning rate and one batch, only dropout changes the loss."""
    config = tiny_config()
    monkeypatch.setitem(BACKBONES, "toy", toy_backbone.BACKBONE)
    toy_backbone.choose(config.model)
    config.optimizer.update(learning_rate=1e-30, min_learning_rate=1e-30)
    device_mesh = mesh.make_mesh()
    losses = {}
    for rate in (0.0, 0.1):
        config.model.dropout = rate
        initial_state, step = finetune_step.make_step(config, 40, 10, device_mesh)
        variables = finetune_step.init_variables(config)
        kernel = variables["params"]["classifier"]["conv_seg"]["kernel"]
        variables["params"]["classifier"]["conv_seg"]["kernel"] = kernel * 50
        state, seen = initial_state(variables), set()
        for _ in range(3):
            state, metrics = step(state, mesh.place_batch(device_mesh, halves(0)))
            seen.add(float(metrics.compute()["loss"]))
        losses[rate] = seen
    assert len(losses[0.0]) == 1 and len(losses[0.1]) == 3


def test_configs_are_valid_and_decay_no_weights():
    """The paper's section 4.1 turns weight decay off for CP2 models."""
    assert finetune_voc.get_config().optimizer.weight_decay == 0
    cityscapes = finetune_cityscapes.get_config()
    table = label_table(19, cityscapes.data.label_map)
    assert (table[:34] >= 0).all() and table[7] == 0 and table[33] == 18
    assert sorted(table[(table >= 0) & (table < 255)]) == list(range(19))
    for config in (finetune_voc.get_config(), finetune_camvid.get_config(), cityscapes, tiny_config()):
        config.data.path = "somewhere"
        finetune_options.check(config, 1)


def test_auxiliary_head_adds_its_loss_and_serves_training_alone(tmp_path):
    config = tiny_config()
    config.model.resnet.stage_sizes = (1, 1, 1, 1)
    config.model.dropout = 0.0
    plain = finetune_step.init_variables(config)
    config.auxiliary.weight = 0.4
    config.auxiliary.channels = 6
    variables = finetune_step.init_variables(config)
    assert set(variables["params"]) == set(plain["params"]) | {"auxiliary_head", "auxiliary_classifier"}
    # Stage 2 of 0-3 has four times the width of 4; one 3x3 convolution, as MMSegmentation's.
    assert variables["params"]["auxiliary_head"]["convs_0"]["conv"]["kernel"].shape == (3, 3, 16, 6)
    assert not differs(plain["params"]["backbone"], variables["params"]["backbone"])

    model, batch = finetune_step.build_model(config), halves(0)
    images = finetune_step.normalize(batch["image"], jnp.asarray(batch["size"]), config.model.mean, config.model.std)
    (main, auxiliary), _ = jax.jit(
        lambda v: model.apply(v, images, train=True, mutable=["batch_stats"], method=model.with_auxiliary)
    )(variables)
    expected = sum(
        weight * finetune_step.cross_entropy(logits, jnp.asarray(batch["label"]), "all")[0]
        for weight, logits in ((1.0, main), (0.4, auxiliary))
    )
    device_mesh, start = mesh.make_mesh(jax.devices()[:1]), jax.tree.map(np.array, variables["params"]["auxiliary_head"])
    initial_state, step = finetune_step.make_step(config, 10, 10, device_mesh)
    state, metrics = step(initial_state(variables), mesh.place_batch(device_mesh, batch))
    np.testing.assert_allclose(metrics.compute()["loss"], expected, rtol=1e-5)
    assert differs(state.params["auxiliary_head"], start)

    saver = checkpoints.Checkpoints(tmp_path / "checkpoints")
    saver.save(1, state, {})
    saver.close()
    read, _ = checkpoints.read_variables(tmp_path)
    assert set(read["params"]) == {"backbone", "head", "classifier"}
    predictor.check_variables(config, read)
