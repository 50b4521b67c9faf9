"""Attention masks: against a transformer in NumPy, laws of the maps, and that a map stays with its image."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.images import encode
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from PIL import Image

from cp2_jax.augment import compose
from cp2_jax.augment.masks import MaskLaw, from_attention
from cp2_jax.data.images.sources import ImageFolder
from cp2_jax.data.images.stream import pretrain_dataset
from cp2_jax.data.prepare import writing
from cp2_jax.models.vit import ViT, ViTOptions, class_attention
from cp2_jax.options import ConfigError
from cp2_jax.pretraining import attention_maps

VIT = ViT(ViTOptions(patch=4, width=12, depth=2, heads=3, mlp_ratio=2), image_size=16)


@pytest.fixture(scope="module")
def variables():
    found = jax.jit(VIT.init, static_argnums=2)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), False)
    # Large weights, so that attention is far from even.
    return {"params": jax.tree.map(lambda x: x + 0.5 * jax.random.normal(jax.random.key(x.size), x.shape), found["params"])}


def layer_norm(x, p):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-6) * p["scale"] + p["bias"]


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def attend(x, p):
    """Return (what the layer adds, weights [heads, tokens, tokens])."""
    query, key, value = dense(x, p["qkv"]).reshape(len(x), 3, 3, 4).transpose(1, 2, 0, 3)
    logits = query @ key.transpose(0, 2, 1) / 2
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return dense((weights @ value).transpose(1, 0, 2).reshape(len(x), 12), p["proj"]), weights


def test_class_attention_equals_a_transformer_written_out(variables):
    image = np.random.default_rng(0).normal(size=(16, 16, 3)).astype(np.float32)
    params = jax.tree.map(np.asarray, variables["params"])
    patches = image.reshape(4, 4, 4, 4, 3).transpose(0, 2, 1, 3, 4).reshape(16, 48)
    tokens = patches @ params["patch_embed"]["kernel"].reshape(48, 12) + params["patch_embed"]["bias"]
    x = np.concatenate([params["cls_token"][0], tokens]) + params["pos_embed"][0]
    erf = jax.scipy.special.erf
    for index in range(2):
        block = params[f"blocks_{index}"]
        added, weights = attend(layer_norm(x, block["norm1"]), block["attn"])
        x = x + added
        hidden = dense(layer_norm(x, block["norm2"]), block["mlp"]["fc1"])
        x = x + dense(hidden * (1 + np.asarray(erf(hidden / np.sqrt(2)))) / 2, block["mlp"]["fc2"])
    expected = weights[:, 0, 1:].mean(0).reshape(4, 4)
    found = np.asarray(class_attention(VIT, variables, image[None]))[0]
    assert expected.max() > 3 * expected.min()
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-6)


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.integers(20, 60), st.integers(20, 60))
def test_a_maps_values_are_shares_of_the_area(seed, height, width):
    weights = np.random.default_rng(seed).random((4, 5)).astype(np.float32)
    found = attention_maps.attention_map(weights, (height, width))
    assert found.shape == (height, width) and found.dtype == np.uint8
    for share in (0.2, 0.35, 0.5):
        assert abs(np.mean(found < 255 * share) - share) < 0.01 + 2 / found.size


def test_a_map_is_brightest_where_attention_is():
    weights = np.full((4, 4), 0.01, np.float32)
    weights[1, 2] = 1
    found = attention_maps.attention_map(weights, (80, 80))
    y, x = np.unravel_index(np.argmax(found), found.shape)
    assert 20 <= y < 40 and 40 <= x < 60


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.sampled_from(["random", "flat", "few values"]))
def test_masks_have_the_area_and_what_is_attended_most(seed, kind):
    rng = np.random.default_rng(seed)
    low, high = {"random": (0, 256), "flat": (9, 10), "few values": (0, 3)}[kind]
    crop = rng.integers(low, high, (24, 32)).astype(np.uint8)
    mask = np.asarray(from_attention(crop, MaskLaw(area=(0.5, 0.8))))
    assert set(np.unique(mask)) == {0, 1} and abs(mask.mean() - 0.65) < 2 / mask.size
    assert crop[mask > 0].min() >= crop[mask == 0].max()


def test_the_mask_is_flipped_with_its_image():
    rng = np.random.default_rng(0)
    foreground = rng.integers(0, 256, (16, 2, 16, 16, 3), np.uint8)
    background = np.zeros_like(foreground)
    maps = foreground[..., 0]
    still = dict(jitter_probability=0.0, grayscale=0.0, blur=0.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    options = compose.AugmentOptions(mask="attention", **still)
    pair = compose.compose_pairs(jax.random.key(0), foreground, background, options, maps)
    red, mask = np.rint(np.asarray(pair.image_query[..., 0]) * 255), np.asarray(pair.mask_query)
    flipped = [not np.array_equal(m, from_attention(a, options.mask_law)) for m, a in zip(mask, maps[:, 0], strict=True)]
    assert 0 < sum(flipped) < 16
    for row in range(16):
        seen = maps[row, 0, :, ::-1] if flipped[row] else maps[row, 0]
        np.testing.assert_array_equal(red[row], np.where(mask[row] > 0, seen, 0))
    with pytest.raises(ValueError, match="needs the attention maps"):
        compose.compose_pairs(jax.random.key(0), foreground, background, options)


def png(array):
    return encode(Image.fromarray(array))


@pytest.fixture
def images(tmp_path):
    """Images of several sizes whose red channel is what their map will be; one of them cannot be read."""
    rng = np.random.default_rng(1)
    (tmp_path / "images").mkdir()
    for number, size in enumerate([(40, 50), (64, 36), (30, 30), (48, 64)]):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "images" / "4.png").write_bytes(b"no image")
    return ImageFolder(tmp_path / "images")


class Red:
    """The images' red channels as maps."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return png(np.asarray(Image.open(io.BytesIO(self.images[index])))[..., 0])

    def name(self, index):
        return f"map {index}"


def test_maps_are_cropped_with_their_images_even_when_one_is_replaced(images):
    batches = pretrain_dataset(images, batch_size=10, image_size=16, seed=3, attention=Red(images))
    for _ in range(3):
        batch = next(batches)
        assert batch["attention"].shape == (10, 2, 16, 16) and (batch["unreadable"][:, 0] >= 0).any()
        np.testing.assert_array_equal(batch["attention"], batch["foreground"][..., 0])
    without = next(pretrain_dataset(images, batch_size=10, image_size=16, seed=3))
    again = next(pretrain_dataset(images, batch_size=10, image_size=16, seed=3, attention=Red(images)))
    np.testing.assert_array_equal(without["foreground"], again["foreground"])


def test_maps_of_a_data_set_are_written_in_order_and_recognised(images, variables, tmp_path):
    import tensorflow_datasets as tfds

    attend_ = attention_maps.make_attend(class_attention, VIT, variables, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    found = list(attention_maps.make_maps(images, attend_, 16, 2))
    assert len(found) == 5
    sizes = [Image.open(io.BytesIO(one["image"])).size[::-1] for one in found]
    assert sizes == [(40, 50), (64, 36), (30, 30), (48, 64), (1, 1)]
    features = {"image": tfds.features.Image(shape=(None, None, 1), encoding_format="jpeg")}
    mark = attention_maps.fingerprint(images)
    writing.write_dataset(tmp_path / "maps", "attention", {"train": found}, features, mark, "Maps.")
    data = {"attention": str(tmp_path / "maps"), "path": "images"}
    config = ConfigDict({"data": data, "augment": {"mask": "attention"}})
    maps = attention_maps.open_maps(config, images)
    assert [maps[i] for i in range(5)] == [one["image"] for one in found]
    (tmp_path / "images" / "0.png").write_bytes(png(np.zeros((9, 9, 3), np.uint8)))
    with pytest.raises(ConfigError, match="was not made from the images"):
        attention_maps.open_maps(config, images)
    config.augment.mask = "rectangle"  # the maps are then not read, and the step gets no key that it does not know
    assert attention_maps.open_maps(config, images) is None


def test_only_a_converted_vit_makes_maps(variables):
    model = {"backbone": "vit", "vit": dict(patch=4, width=12, depth=2, heads=3, mlp_ratio=2, final_norm=True)}
    meta = {"model": model | {"image_size": 16}, "input": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    params = dict(variables["params"], norm={"scale": np.ones(12), "bias": np.zeros(12)})
    attend = attention_maps.attention_of({"params": {"backbone": params}, "batch_stats": {}}, meta)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    expected = class_attention(VIT, variables, (images / 255 - 0.5).astype(np.float32) / 0.25)
    np.testing.assert_allclose(attend(images), expected, rtol=1e-4, atol=1e-6)
    for wrong in ({}, {"model": {"backbone": "resnet", "resnet": {}}}):
        with pytest.raises(ConfigError, match="converted ViT"):
            attention_maps.attention_of({"params": {"backbone": {}}}, wrong)
