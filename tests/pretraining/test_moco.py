"""MoCo v2 as a mode of the one training step: its network and loss against NumPy, its checkpoint as a start, its config."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import finetune_voc, pretrain_moco_v2, quick_tune_r50_aspp
from cp2_jax.augment import compose
from cp2_jax.convert import warm_start
from cp2_jax.options import ConfigError
from cp2_jax.pretraining import forward
from cp2_jax.pretraining import options as pretrain_options
from cp2_jax.pretraining import step as pretrain_step
from cp2_jax.runs import mesh, optim
from cp2_jax.segmentation import options as finetune_options


def shrink(config, **changes):
    config.model.resnet.update(depth=18, width=4, stem_width=4, stage_sizes=(1, 1, 1, 1))
    config.model.aspp.update(channels=8, dilations=(1, 2))
    config.model.dtype = "float32"
    config.update(dict(image_size=32, batch_size=4, bn_groups=2, steps=4) | changes)
    if "loss" in config and "queue_size" in config.loss:
        config.loss.queue_size = 8
    return config


@pytest.fixture(scope="module")
def trained():
    """(config, state before, batch, state after, metrics) of one step; and the step with the seed as an argument."""
    # 64 pixels, so that the last batch norms see 8 values a group: over 2 they would blow rounding up.
    config = shrink(pretrain_moco_v2.get_config(), image_size=64)
    config.data.path = "somewhere"
    pretrain_options.check(config)
    device_mesh = mesh.make_mesh(jax.devices()[:1])
    start, step = pretrain_step.make_step(config, 4, 2, device_mesh)
    crops = np.random.default_rng(0).integers(0, 256, (4, 2, 64, 64, 3), np.uint8)
    before = start()
    kept = jax.tree.map(np.array, before)  # copies: the step overwrites what it is given
    after, metrics = step(before, {"foreground": crops})
    return config, kept, crops, after, metrics.compute()


def test_the_network_is_backbone_pooling_and_a_two_layer_mlp(trained):
    config, state, *_ = trained
    model, _ = forward.build_models(config)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    assert set(state.params) == {"backbone", "projection"}
    width = 8 * config.model.resnet.width
    shapes = {name: layer["kernel"].shape[2:] for name, layer in state.params["projection"].items()}
    assert shapes == {"conv1": (width, width), "conv2": (width, 128)}
    images = np.random.default_rng(1).normal(size=(2, 64, 64, 3)).astype(np.float32)
    maps = np.asarray(jax.jit(lambda v, x: model.apply(v, x, method="stages")[-1])(variables, images))
    assert maps.shape == (2, 2, 2, width)  # output stride 32
    pooled, mlp = maps.mean((1, 2)), state.params["projection"]
    hidden = np.maximum(pooled @ mlp["conv1"]["kernel"][0, 0] + mlp["conv1"]["bias"], 0)
    expected = hidden @ mlp["conv2"]["kernel"][0, 0] + mlp["conv2"]["bias"]
    found = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    assert found.shape == (2, 1, 1, 128)
    np.testing.assert_allclose(found[:, 0, 0], expected, rtol=1e-4, atol=1e-5)


def test_the_steps_loss_is_info_nce_over_the_queue(trained):
    """Written out: -log of the positive's share among itself and the queue at temperature 0.2; nothing dense."""
    config, state, crops, after, metrics = trained
    options = compose.AugmentOptions.from_config(config)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 1), 0)
    pair = jax.jit(compose.compose_pairs, static_argnums=3)(key, crops, crops[::-1], options)
    query_model, key_model = forward.build_models(config)
    variables = {"params": state.params, "batch_stats": state.batch_stats}

    def unit_output(model, images):
        apply = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"])[0])
        x = np.asarray(apply(variables, images))[:, 0, 0]
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    query, positive = unit_output(query_model, pair.image_query), unit_output(key_model, pair.image_key)
    bank = state.queue.reshape(-1, 128)
    logits = np.concatenate([np.sum(query * positive, 1, keepdims=True), query @ bank.T], axis=1) / 0.2
    expected = np.mean(np.log(np.exp(logits).sum(1)) - logits[:, 0])
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4)
    assert metrics["loss"] == metrics["loss_instance"] and metrics["loss_dense"] == 0 and metrics["skipped_samples"] == 0
    np.testing.assert_allclose(after.queue[0], positive, rtol=1e-3, atol=1e-5)


def test_without_copy_paste_the_backgrounds_are_not_seen():
    rng = np.random.default_rng(2)
    foreground, background, other = rng.integers(0, 256, (3, 2, 2, 16, 16, 3), np.uint8)
    options = compose.AugmentOptions(mask="full")
    compose_pairs = jax.jit(compose.compose_pairs, static_argnums=3)
    one, two = (compose_pairs(jax.random.key(0), foreground, b, options) for b in (background, other))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert one.mask_query.all() and one.mask_key.all()
    # The foreground's views are those that copy-paste would have drawn.
    pasted = compose_pairs(jax.random.key(0), foreground, background, compose.AugmentOptions())
    inside = np.asarray(pasted.mask_query) > 0
    np.testing.assert_allclose(np.asarray(one.image_query)[inside], np.asarray(pasted.image_query)[inside], atol=1e-5)


def test_one_compiled_step_serves_other_seeds(trained):
    config, state, crops, after, metrics = trained
    schedule = optim.schedule(config.optimizer, 4, 2)
    optimizer = optim.make(config.optimizer, schedule)
    train = jax.jit(pretrain_step.make_train(config, optimizer, schedule))
    same, measured = train(state, {"foreground": crops}, config.seed)
    np.testing.assert_allclose(measured.compute()["loss"], metrics["loss"], rtol=1e-5)
    np.testing.assert_allclose(
        same.params["projection"]["conv1"]["kernel"], after.params["projection"]["conv1"]["kernel"], atol=1e-5
    )
    _, other = train(state, {"foreground": crops}, 7)
    assert abs(other.compute()["loss"] - metrics["loss"]) > 1e-4 and train._cache_size() == 1


def test_its_checkpoint_starts_quick_tuning_and_finetuning_by_its_backbone(trained):
    _, _, _, after, _ = trained
    loaded = jax.tree.map(np.asarray, {"params": after.params, "batch_stats": after.batch_stats})
    config = shrink(quick_tune_r50_aspp.get_config())
    initial = jax.eval_shape(lambda: pretrain_step.init_variables(config))
    initial = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), initial)
    variables, table = warm_start.merge(initial, loaded, "random")
    jax.tree.map(np.testing.assert_array_equal, variables["params"]["backbone"], loaded["params"]["backbone"])
    jax.tree.map(np.testing.assert_array_equal, variables["batch_stats"]["backbone"], loaded["batch_stats"]["backbone"])
    assert not any(np.any(x) for x in jax.tree.leaves(variables["params"]["head"])) and "left out" in table
    with pytest.raises(ConfigError, match="head: not in the checkpoint.*init.head=random"):
        warm_start.merge(initial, loaded, "checkpoint")


def test_config_is_moco_v2s():
    """main_moco.py --mlp --moco-t 0.2 --aug-plus --cos, and its defaults."""
    config = pretrain_moco_v2.get_config()
    assert (config.batch_size, config.epochs, config.model.resnet.depth) == (256, 200, 50)
    assert (config.loss.queue_size, config.loss.momentum, config.loss.temperature_instance) == (65536, 0.999, 0.2)
    assert (config.optimizer.name, config.optimizer.learning_rate, config.optimizer.weight_decay) == ("sgd", 0.03, 1e-4)
    assert config.optimizer.schedule == "cosine_by_epoch" and config.model.projection_dim == 128
    augment = config.augment
    assert (augment.brightness, augment.contrast, augment.saturation, augment.hue) == (0.4, 0.4, 0.4, 0.1)
    assert (augment.jitter_probability, augment.grayscale, augment.blur, augment.flip) == (0.8, 0.2, 0.5, 0.5)
    assert config.data.crop_scale == (0.2, 1.0) and augment.blur_sigma == (0.1, 2.0)


@pytest.mark.parametrize(
    "changes, key",
    [
        ({"augment.mask": "rectangle"}, "augment.mask"),
        ({"loss.alpha": 0.2}, "loss.alpha"),
        ({"loss.alpha_instance": 0.0}, "loss.alpha_instance"),
        ({"model.head": "mlp"}, "model.head"),
    ],
)
def test_modes_that_make_no_sense_are_refused(changes, key):
    config = pretrain_moco_v2.get_config()
    config.data.path = "somewhere"
    config.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=f"^{key}="):
        pretrain_options.check(config)


def test_a_pooled_model_is_not_finetuned_for_segmentation():
    config = finetune_voc.get_config()
    config.data.path, config.model.head = "somewhere", "pool"
    with pytest.raises(ConfigError, match="cannot be segmented"):
        finetune_options.check(config)


def test_image_sizes_need_not_be_multiples_of_the_output_stride():
    config = shrink(pretrain_moco_v2.get_config(), image_size=48)
    config.data.path = "somewhere"
    pretrain_options.check(config)
    model, _ = forward.build_models(config)
    images = jnp.zeros((2, 48, 48, 3))
    shape = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images, train=False)[0]).shape
    assert shape == (2, 1, 1, 128)
