"""Many seeds in one program: each computes what it computes alone, by the jobs' own steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from configs import study_demo
from cp2_jax.pretraining import step as pretrain_step
from cp2_jax.reproduce import seeds
from cp2_jax.runs import optim
from cp2_jax.segmentation import step as finetune_step

SEEDS = (3, 5, 11)


@pytest.fixture
def small(monkeypatch):
    """Return (precision) -> a pretraining and a finetuning config of a network that compiles quickly."""

    def configs(dtype):
        pretrain, finetune = tiny.toy_pretrain_config(monkeypatch), study_demo.get_config().finetune
        pretrain.update(batch_size=4, steps=3)
        pretrain.augment.blur, pretrain.data.backgrounds, pretrain.loss.queue_size = 0.0, "in_batch", 8
        pretrain.optimizer.update(name="adamw", learning_rate=2e-3)
        pretrain.model.update(dtype=dtype, projection_dim=8)
        finetune.update(batch_size=4, steps=3)
        finetune.model = pretrain.model.copy_and_resolve_references()
        finetune.model.num_classes = finetune.data.num_classes = 3
        finetune.model.dropout = 0.1
        return pretrain, finetune

    return configs


def wide(tree):
    """Float parameters as float64."""
    return jax.tree.map(lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def close(found, expected, tolerance):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), rtol=tolerance, atol=tolerance)


def crops(rng, count=3):
    return [{"foreground": rng.integers(0, 256, (4, 2, 32, 32, 3), np.uint8)} for _ in range(count)]


def test_pretraining_many_is_pretraining_each(x64, small, tmp_path):
    """In float64, over three whole steps, from augmentation to memory bank. Alone: the job's own step."""
    config, _ = small("float64")
    data = [crops(np.random.default_rng(seed)) for seed in SEEDS]
    start = wide(seeds.initial_variables(config, SEEDS))
    together, last = seeds.pretrain(config, SEEDS, start, map(seeds.stack, zip(*data, strict=True)), 1, tmp_path)
    assert np.isfinite(last["loss"])
    schedule = optim.schedule(config.optimizer, 3, 1)
    optimizer = optim.make(config.optimizer, schedule)
    train = jax.jit(pretrain_step.make_train(config, optimizer, schedule))
    for index, seed in enumerate(SEEDS[:2]):
        config.seed = seed
        close(seeds.of_seed(start, index), pretrain_step.init_variables(config), 1e-6)  # drawn in float32
        state = pretrain_step.init_state(config, optimizer, seeds.of_seed(start, index))
        for batch in data[index]:
            state, _ = train(state, batch, seed)
        close(seeds.of_seed(together, index), {"params": state.params, "batch_stats": state.batch_stats}, 1e-9)
    first, second = (jax.tree.leaves(seeds.of_seed(together, i))[0] for i in (0, 1))
    assert not np.allclose(first, second)


def labelled(rng):
    shapes = {"image": (4, 32, 32, 3), "label": (4, 32, 32)}
    batch = {name: rng.integers(0, 256 if name == "image" else 3, shape, np.uint8) for name, shape in shapes.items()}
    return batch | {"size": np.full((4, 2), 32, np.int32)}


def test_finetuning_many_is_finetuning_each(x64, small, tmp_path):
    _, config = small("float64")
    data = [[labelled(np.random.default_rng([seed, step])) for step in range(3)] for seed in SEEDS]
    start = wide(seeds.initial_segmenters(config, SEEDS))
    together, _ = seeds.finetune(config, SEEDS, start, map(seeds.stack, zip(*data, strict=True)), tmp_path)
    begin, train = finetune_step.make_train(config, 3, 1)
    train = jax.jit(train)
    state = begin(seeds.of_seed(start, 1))
    for batch in data[1]:
        state, _ = train(state, batch, SEEDS[1])
    close(seeds.of_seed(together, 1), {"params": state.params, "batch_stats": state.batch_stats}, 1e-9)
    alone, _ = seeds.finetune(
        config, SEEDS[1:2], jax.tree.map(lambda x: x[1:2], start), map(lambda b: seeds.stack([b]), data[1]), tmp_path / "1"
    )
    close(seeds.of_seed(alone, 0), {"params": state.params, "batch_stats": state.batch_stats}, 1e-12)


def test_frozen_evaluation_of_many_is_that_of_each(small):
    config, _ = small("float32")
    rng = np.random.default_rng(0)
    variables = seeds.initial_variables(config, SEEDS)
    train = rng.integers(0, 256, (3, 4, 32, 32, 3), np.uint8), rng.integers(0, 3, (3, 4, 32, 32)).astype(np.uint8)
    test = rng.integers(0, 256, (5, 32, 32, 3), np.uint8), rng.integers(0, 3, (5, 32, 32)).astype(np.uint8)
    together = seeds.frozen_scores(config, variables, train, test, 3)
    for index in range(3):
        one = jax.tree.map(lambda x, i=index: x[i : i + 1], variables)
        alone = seeds.frozen_scores(config, one, tuple(x[index : index + 1] for x in train), test, 3)
        np.testing.assert_allclose(together[index], alone[0], atol=5e-3)  # L-BFGS in float32


def test_groups():
    assert seeds.groups((0, 1, 2), 2) == [(0, 1), (2,)]
    assert seeds.groups((0, 1)) == ([(0,), (1,)] if jax.default_backend() == "cpu" else [(0, 1)])


def test_a_seed_that_fails_stops_its_group(small, tmp_path):
    _, config = small("float32")
    start = jax.tree.map(np.asarray, seeds.initial_segmenters(config, SEEDS[:2]))
    bad = jax.tree.map(lambda x: np.concatenate([x[:1], x[1:] * np.nan]), start)
    batches = iter([seeds.stack([labelled(np.random.default_rng(seed)) for seed in SEEDS[:2]])] * 3)
    with pytest.raises(seeds.loop.NonFiniteLoss, match="step 1 is not finite"):
        seeds.finetune(config, SEEDS[:2], bad, batches, tmp_path)
