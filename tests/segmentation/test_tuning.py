"""Frozen backbones, rates by part and layer, class weights, Dice, patience: each against its definition; all are off."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import halves, toy
from helpers.permuted import variables_of
from helpers.tiny import choose_vit, differs, tiny_config

from cp2_jax.models.network import Network
from cp2_jax.options import ConfigError
from cp2_jax.runs import loop, mesh, optim
from cp2_jax.segmentation import hooks, options, run
from cp2_jax.segmentation import step as finetune_step
from cp2_jax.segmentation.tuning import TuningOptions


def vit_config(**changes):
    config = tiny_config(**changes)
    choose_vit(config.model, depth=3)
    config.data.path = "somewhere"
    return config


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"freeze_backbone": 1}, "tuning.freeze_backbone=1: must be True or False"),
        ({"head_rate": 0}, "tuning.head_rate=0: must be greater than 0"),
        ({"layer_decay": 1.2}, "tuning.layer_decay=1.2: must be above 0 and at most 1"),
        ({"class_weights": (1, -1, 1)}, "tuning.class_weights=.*0 or more for each class"),
        ({"class_weights": (0, 0)}, "not all 0"),
        ({"dice": -1}, "tuning.dice=-1"),
        ({"patience": 1.5}, "tuning.patience=1.5: must be a whole number"),
    ],
)
def test_impossible_values_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        TuningOptions(**changes)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"tuning.class_weights": (1.0, 2.0)}, "give a weight for each of the 3 classes"),
        ({"tuning.layer_decay": 0.5, "tuning.freeze_backbone": True}, "the backbone is frozen"),
        ({"tuning.layer_decay": 0.5, "model.backbone": "resnet"}, "a resnet has no order of layers"),
        ({"tuning.patience": 2, "eval_every": 0}, "set eval_every above 0"),
    ],
)
def test_values_that_do_not_fit_the_rest_are_refused(changes, message):
    config = vit_config()
    options.check(config)
    config.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=message):
        options.check(config)


def test_an_older_config_has_nothing_of_it():
    config = tiny_config()
    del config.tuning
    assert TuningOptions.from_config(config) == TuningOptions()
    assert TuningOptions().rates(Network.from_config(config.model)) is None


def test_rates_by_part_and_layer():
    network = Network.from_config(vit_config().model)
    rate = TuningOptions(head_rate=10.0, layer_decay=0.5).rates(network)
    # BEiT's LayerDecayOptimizerConstructor: rate ** (num_layers - layer - 1) with num_layers = depth + 2; embeddings are
    # layer 0, block n is layer n + 1, all else (last norm, head) is the last layer.
    beit = [0.5 ** (3 + 2 - layer - 1) for layer in range(5)]
    assert [rate(f"backbone/{p}") for p in ("pos_embed", "cls_token", "patch_embed/kernel")] == [beit[0]] * 3
    assert [rate(f"backbone/blocks_{n}/attn/qkv/kernel") for n in range(3)] == beit[1:4]
    assert rate("backbone/norm/scale") == beit[4] == 1
    # The layer above the last block is the head, which has no factor of this kind, but one of its own.
    assert rate("head/x") == rate("classifier/conv_seg/kernel") == 10.0
    frozen = TuningOptions(freeze_backbone=True).rates(network)
    assert frozen("backbone/norm/scale") == 0 and frozen("head/x") == 1


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_factor_is_another_learning_rate(name):
    """Each parameter moves as under an optimiser with its own rate; a frozen one keeps its value and has no state."""
    factors = {"a": 1.0, "b": 0.25, "c": 0.0}
    params = {key: jnp.arange(1.0, 4.0) for key in factors}
    settings = optim.OptimizerOptions(name=name, weight_decay=0.1)
    ours = optim.scaled(optim.make(settings, optax.constant_schedule(0.1)), factors.__getitem__)
    state, found = ours.init(params), params
    alone = {key: optim.make(settings, optax.constant_schedule(0.1 * by)) for key, by in factors.items()}
    states, expected = {key: alone[key].init(params[key]) for key in factors}, dict(params)
    for number in range(3):
        gradients = {key: jnp.sin(value + number) for key, value in found.items()}
        updates, state = ours.update(gradients, state, found)
        for key in ("a", "b"):
            update, states[key] = alone[key].update(jnp.sin(expected[key] + number), states[key], expected[key])
            expected[key] = expected[key] + update
        found = optax.apply_updates(found, updates)
    for key in factors:
        np.testing.assert_allclose(found[key], expected[key], rtol=1e-6)
    assert sum(x.size == 3 for x in jax.tree.leaves(state)) == {"sgd": 2, "adamw": 4}[name]


def by_hand(seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(2, 6, 5, 3)).astype(np.float32)
    label = rng.choice([0, 1, 2, 255], (2, 6, 5)).astype(np.uint8)
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return logits, label, probability


def test_class_weights_by_hand():
    logits, label, probability = by_hand()
    weights, losses, used = (0.5, 1.0, 3.0), 0.0, 0.0
    for index in np.ndindex(label.shape):
        if label[index] < 3:
            losses -= weights[label[index]] * np.log(probability[index][label[index]])
            used += weights[label[index]]
    for average, total in (("all", label.size), ("labelled", used)):
        loss, _ = finetune_step.cross_entropy(jnp.asarray(logits), jnp.asarray(label), average, weights)
        np.testing.assert_allclose(loss, losses / total, rtol=1e-5)
    same, _ = finetune_step.cross_entropy(jnp.asarray(logits), jnp.asarray(label), "labelled", (2.0, 2.0, 2.0))
    plain, _ = finetune_step.cross_entropy(jnp.asarray(logits), jnp.asarray(label), "labelled")
    np.testing.assert_allclose(same, plain, rtol=1e-6)


def test_dice_by_hand():
    logits, label, probability = by_hand()
    label[label == 1] = 255  # a class that the batch does not show counts nowhere
    expected = []
    for c in (0, 2):
        labelled = label < 3
        truth, found = (label == c) & labelled, probability[..., c] * labelled
        expected.append(1 - 2 * (truth * found).sum() / (truth.sum() + found.sum()))
    np.testing.assert_allclose(
        finetune_step.dice_loss(jnp.asarray(logits), jnp.asarray(label)), np.mean(expected), rtol=1e-5
    )
    nothing = np.full_like(label, 255)
    assert finetune_step.dice_loss(jnp.asarray(logits), jnp.asarray(nothing)) == 0
    sure = jnp.asarray(np.eye(3, dtype=np.float32)[np.where(label < 3, label, 0)] * 50)
    assert finetune_step.dice_loss(sure, jnp.asarray(label)) < 1e-6


def test_a_frozen_backbone_keeps_weights_and_averages():
    config = tiny_config()
    config.model.resnet.stage_sizes = (1, 1, 1, 1)
    config.tuning.update(freeze_backbone=True, dice=0.5, class_weights=(1.0, 2.0, 1.0))
    device_mesh = mesh.make_mesh(jax.devices()[:1])
    initial_state, step = finetune_step.make_step(config, 10, 10, device_mesh)
    variables = variables_of(config)
    state = initial_state(jax.tree.map(jnp.array, variables))
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (8, 32, 32, 3)).astype(np.uint8),
        "label": rng.integers(0, 3, (8, 32, 32)).astype(np.uint8),
        "size": np.full((8, 2), 32, np.int32),
    }
    for _ in range(2):
        state, metrics = step(state, mesh.place_batch(device_mesh, batch))
    for kind, now in (("params", state.params), ("batch_stats", state.batch_stats)):
        assert not differs(now["backbone"], variables[kind]["backbone"])
        assert differs(now["head"], variables[kind]["head"])
    assert differs(state.params["classifier"], variables["params"]["classifier"])
    # Momentum for what is trained alone.
    trained = sum(x.size for part in ("head", "classifier") for x in jax.tree.leaves(variables["params"][part]))
    assert sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim) == trained
    assert np.isfinite(metrics.compute()["loss"])


# Patience.


def test_when_patience_ends():
    assert hooks.ended(step=40, best=20, every=10, patience=2).startswith("ended after step 40: no better mean IoU in 2")
    assert not hooks.ended(40, 30, 10, 2) and not hooks.ended(39, 0, 10, 2) and not hooks.ended(1000, 0, 10, 0)


def test_a_hook_ends_the_loop_and_the_state_is_saved():
    saved = []

    class Saver:
        directory = "here"

        def save(self, number, state, meta):
            saved.append((number, meta["iterator"]["next_batch"]))

        def wait(self):
            pass

        def latest_step(self):
            return None

    class Quiet:
        def __getattr__(self, name):
            return lambda *_: 0.0

    def stop(number, state):
        if number == 3:
            raise loop.Finished("enough")

    state = loop.fit(
        toy.step,
        toy.State(step=jnp.int32(0), total=jnp.float32(0)),
        toy.batches(),
        total_steps=10,
        writer=Quiet(),
        checkpoints=Saver(),
        meta={},
        save_every=5,
        log_every=1,
        samples_per_step=1,
        on_step=[stop],
    )
    assert int(state.step) == 3 and saved == [(3, 3)]


def test_a_run_that_learns_nothing_ends_early_and_stays_ended(tmp_path, capsys, monkeypatch):
    halves.halves_on_disk(tmp_path / "data", "train", 4)
    halves.halves_on_disk(tmp_path / "data", "val", 2)
    changes = {"optimizer.learning_rate": 1e-30, "optimizer.min_learning_rate": 0.0, "tuning.patience": 2}
    config = halves.finetuned(tmp_path / "data", tmp_path / "run", monkeypatch, steps=9, **changes)
    assert "ended after step 3: no better mean IoU in 2 evaluations since step 1" in capsys.readouterr().out
    assert (tmp_path / "run/scores.json").exists()
    again = run.train(config, tmp_path / "run")
    assert again.steps == 3 and "ended after step 3" in capsys.readouterr().out
    config.tuning.patience = 0
    assert run.train(config, tmp_path / "run").steps == 9
