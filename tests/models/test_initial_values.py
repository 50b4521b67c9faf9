"""The laws that fresh weights follow, beyond the spreads recorded from the original (test_models.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from configs import pretrain_r50_aspp
from cp2_jax.models import segmenter


@pytest.fixture(scope="module")
def fresh():
    """Variables of models wide enough for statistics, with a projection and a classifier."""

    def make(backbone, top, channels=256, **resnet):
        model = pretrain_r50_aspp.get_config().model
        model.update(backbone=backbone, dtype="float32")
        model.resnet.update(width=8, stage_sizes=(1, 1, 1, 1), **resnet)
        model.vit.update(width=192, depth=1, heads=3)
        model.aspp.update(channels=channels)
        model.num_classes, model.dropout = 64, 0.1
        built = segmenter.build(model, top=top, image_size=64)
        init = jax.jit(lambda key: built.init(key, jnp.zeros((1, 64, 64, 3)), train=False))
        return jax.tree.map(np.asarray, init(jax.random.key(7)))

    return (
        make("resnet", "projection"),
        make("resnet", "classifier", 128, zero_init_residual=True),
        make("vit", "projection", 8),
    )


def law_p(values, distribution):
    """Kolmogorov-Smirnov: how probable a departure as large as this one is under the law."""
    return stats.kstest(values.ravel()[:20_000], distribution.cdf).pvalue


def uniform(bound):
    return stats.uniform(-bound, 2 * bound)


def test_laws_of_fresh_weights(fresh):
    resnet, classifier, vit = (variables["params"] for variables in fresh)
    kernel = resnet["head"]["bottleneck"]["conv"]["kernel"]  # 3 x 3, fan_out = 9 * outputs
    laws = {
        "kaiming normal, fan out": (kernel, stats.norm(0, np.sqrt(2 / (9 * 256)))),
        "stem": (resnet["backbone"]["conv1"]["kernel"], stats.norm(0, np.sqrt(2 / (49 * 64)))),
        "projection weights": (resnet["projection"]["conv1"]["kernel"], uniform(1 / 16)),
        "projection biases": (resnet["projection"]["conv1"]["bias"], uniform(1 / 16)),
        "classifier": (classifier["classifier"]["conv_seg"]["kernel"], stats.norm(0, 0.01)),
        "qkv": (vit["backbone"]["blocks_0"]["attn"]["qkv"]["kernel"], uniform(1 / np.sqrt(192))),
        "patches": (vit["backbone"]["patch_embed"]["kernel"], uniform(1 / np.sqrt(16 * 16 * 3))),
        "attention's output": (vit["backbone"]["blocks_0"]["attn"]["proj"]["kernel"], stats.norm(0, 0.02)),
        "perceptron": (vit["backbone"]["blocks_0"]["mlp"]["fc1"]["kernel"], stats.norm(0, 0.02)),
        "perceptron's biases": (vit["backbone"]["blocks_0"]["mlp"]["fc2"]["bias"], uniform(1 / np.sqrt(768))),
        "positions": (vit["backbone"]["pos_embed"], stats.norm(0, 0.02)),
    }
    for name, (values, law) in laws.items():
        assert law_p(values, law) > 1e-4, name
    assert not classifier["classifier"]["conv_seg"]["bias"].any()


def test_last_scale_of_a_block_starts_at_zero_only_on_request(fresh):
    block, zeroed = (variables["params"]["backbone"]["layer2_0"] for variables in fresh[:2])
    for name in ("bn1", "bn2", "downsample_bn"):
        assert (block[name]["scale"] == 1).all() and (zeroed[name]["scale"] == 1).all()
    assert (block["bn3"]["scale"] == 1).all() and not zeroed["bn3"]["scale"].any()


def test_statistics_start_at_zero_and_one_and_parameters_are_float32(fresh):
    for variables in fresh:
        flat = jax.tree_util.tree_leaves_with_path(variables["batch_stats"])
        assert flat
        for path, value in flat:
            assert (value == (0 if path[-1].key == "mean" else 1)).all()
        assert {v.dtype for v in jax.tree.leaves(variables["params"])} == {np.dtype(np.float32)}
