"""Composition: equation 1, the frequencies of each operation, one draw per row, options and their errors."""

import dataclasses
import functools

import beartype
import jax
import jax.numpy as jnp
import jaxtyping
import ml_collections
import numpy as np
import pytest
from scipy import stats

from cp2_jax.augment import blur, color, compose
from cp2_jax.augment.compose import AugmentOptions
from cp2_jax.augment.masks import MASKS
from cp2_jax.models import inputs
from cp2_jax.options import ConfigError

USUAL = AugmentOptions()
PLAIN = AugmentOptions(jitter_probability=0.0, grayscale=0.0, blur=0.0, flip=0.0)


def crops(batch, size=32, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.integers(0, 256, (batch, 2, size, size, 3), dtype=np.uint8)) for _ in range(2))


compose_pairs = jax.jit(compose.compose_pairs, static_argnums=3)


def normalized(images, options=PLAIN):
    return (np.asarray(images) / 255.0 - np.array(options.mean)) / np.array(options.std)


@pytest.mark.parametrize("mask", MASKS)
def test_equation_1(mask):
    foreground, background = crops(3)
    options = dataclasses.replace(PLAIN, mask=mask)
    pair = compose_pairs(jax.random.key(0), foreground, background, options)
    for view, (image, mask) in enumerate([(pair.image_query, pair.mask_query), (pair.image_key, pair.mask_key)]):
        m = np.asarray(mask, np.float64)[..., None]
        assert set(np.unique(m)) <= {0.0, 1.0}
        want = normalized(foreground[:, view]) * m + normalized(background[:, view]) * (1 - m)
        np.testing.assert_allclose(image, want, atol=1e-5)
        assert image.dtype == mask.dtype == jnp.float32


def test_rounding_before_pasting_gives_the_bits_of_rounding_after():
    foreground, background = crops(2)
    composed = jax.jit(compose.compose_pairs, static_argnames=("options", "dtype"))
    wide, narrow = (
        composed(jax.random.key(0), foreground, background, options=PLAIN, dtype=dtype) for dtype in ("float32", "bfloat16")
    )
    assert narrow.image_query.dtype == jnp.bfloat16 and narrow.mask_query.dtype == jnp.float32
    for one, other in zip(jax.tree.leaves(wide), jax.tree.leaves(narrow), strict=True):
        np.testing.assert_array_equal(one.astype(other.dtype), other)


def test_query_and_key_get_different_masks_and_views():
    foreground, background = crops(6)
    foreground, background = foreground.at[:, 1].set(foreground[:, 0]), background.at[:, 1].set(background[:, 0])
    pair = compose_pairs(jax.random.key(0), foreground, background, AugmentOptions())
    for row in range(6):
        assert not np.array_equal(pair.mask_query[row], pair.mask_key[row])
        assert np.abs(pair.image_query[row] - pair.image_key[row]).max() > 0.1
    assert not np.array_equal(pair.mask_query[0], pair.mask_query[1])


def test_background_is_augmented_by_its_own_draw():
    """With the whole image once as foreground and once as background, the same picture comes out differently."""
    foreground, _ = crops(8)
    options = AugmentOptions(flip=0.0, blur=0.0, jitter_probability=1.0, mask_area=(0.5, 0.6))
    pair = compose_pairs(jax.random.key(0), foreground, foreground, options)
    draw = AugmentOptions(**{**dataclasses.asdict(options), "mask": "full"})
    whole = compose_pairs(jax.random.key(0), foreground, foreground, draw)
    outside = np.asarray(pair.mask_query) == 0
    assert np.abs(np.asarray(pair.image_query - whole.image_query))[outside].max() > 0.1
    # Two programs: what the compiler fuses decides how the last bits are rounded.
    np.testing.assert_allclose(np.asarray(pair.image_query)[~outside], np.asarray(whole.image_query)[~outside], atol=1e-5)


@pytest.mark.parametrize("mask", ["rectangle", "blocks"])
def test_a_row_does_not_depend_on_the_batch(mask):
    foreground, background = crops(6)
    options = AugmentOptions(mask=mask)
    key = jax.random.key(5)
    whole = compose_pairs(key, foreground, background, options)
    part = compose_pairs(key, foreground[:2], background[:2], options)
    np.testing.assert_array_equal(whole.mask_query[:2], part.mask_query)
    np.testing.assert_array_equal(whole.mask_key[:2], part.mask_key)
    np.testing.assert_allclose(whole.image_query[:2], part.image_query, atol=1e-5)
    np.testing.assert_allclose(whole.image_key[:2], part.image_key, atol=1e-5)


def test_another_key_draws_another_pair():
    foreground, background = crops(2)
    a, b = (compose_pairs(jax.random.key(s), foreground, background, AugmentOptions()) for s in (0, 1))
    assert np.abs(a.image_query - b.image_query).max() > 0.1


def test_double_precision_draws_the_same():
    draw_view = jax.jit(compose.draw_view, static_argnums=1)
    draw = draw_view(jax.random.key(2), AugmentOptions())
    with jax.enable_x64(True):
        again = draw_view(jax.random.key(2), AugmentOptions())
    jax.tree.map(np.testing.assert_array_equal, draw, again)


@pytest.fixture(scope="module")
def draws():
    keys = jax.random.split(jax.random.key(0), 20_000)
    draw = jax.jit(jax.vmap(lambda k: compose.draw_view(k, AugmentOptions())))(keys)
    return jax.tree.map(np.asarray, draw)


def test_probabilities(draws):
    jittered = (draws.factors != [1, 1, 1, 0]).any(1)
    for happened, probability in ((jittered, 0.8), (draws.gray, 0.2), (draws.sigma > 0, 0.5), (draws.flip, 0.5)):
        assert stats.binomtest(int(happened.sum()), len(happened), probability).pvalue > 1e-3
    # independent of each other
    table = np.corrcoef(np.stack([jittered, draws.gray, draws.sigma > 0, draws.flip]).astype(float))
    assert np.abs(table - np.eye(4)).max() < 4 / np.sqrt(20_000)


def test_ranges(draws):
    factors = draws.factors[(draws.factors != [1, 1, 1, 0]).any(1)]
    for column in range(3):
        assert stats.kstest(factors[:, column], stats.uniform(0.6, 0.8).cdf).pvalue > 1e-3
    assert stats.kstest(factors[:, 3], stats.uniform(-0.1, 0.2).cdf).pvalue > 1e-3
    assert stats.kstest(draws.sigma[draws.sigma > 0], stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3
    assert np.abs(np.corrcoef(factors.T) - np.eye(4)).max() < 4 / np.sqrt(len(factors))


def test_all_orders_are_equally_likely(draws):
    _, counts = np.unique(draws.order, axis=0, return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-3


def test_a_large_reach_does_not_turn_colours_over():
    keys = jax.random.split(jax.random.key(0), 500)
    draw = jax.jit(jax.vmap(lambda k: compose.draw_view(k, AugmentOptions(brightness=2.5))))(keys)
    assert draw.factors[:, 0].min() >= 0 and draw.factors[:, 0].max() > 3


def single_draw(**changes):
    base = compose.ViewDraw(
        factors=jnp.array([[1.0, 1.0, 1.0, 0.0]]),
        order=jnp.arange(4)[None],
        gray=jnp.array([False]),
        sigma=jnp.zeros(1),
        flip=jnp.array([False]),
    )
    return base.replace(**changes)


@functools.partial(jax.jit, static_argnames="options")
def augmented(images, draw, options=USUAL):
    return compose.normalize(compose.augment(images, draw, options), options)


def test_nothing_drawn_is_only_normalised():
    images = crops(1)[0][:, 0]
    got = augmented(images, single_draw())
    np.testing.assert_allclose(got, normalized(images), atol=1e-5)


def test_flip_mirrors_left_and_right():
    images = crops(1)[0][:, 0]
    got = augmented(images, single_draw(flip=jnp.array([True])))
    np.testing.assert_allclose(got, normalized(images[:, :, ::-1]), atol=1e-5)
    # Without a blur, which turns images round as it writes them.
    got = augmented(images, single_draw(flip=jnp.array([True])), dataclasses.replace(USUAL, blur=0.0))
    np.testing.assert_allclose(got, normalized(images[:, :, ::-1]), atol=1e-5)


def test_grayscale_comes_after_the_jitter():
    """Jitter changes colours' luma; gray first would make hue and saturation idle."""
    images = crops(1)[0][:, 0]
    options = AugmentOptions(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    draw = single_draw(factors=jnp.array([[1.0, 1.0, 0.2, 0.1]]), gray=jnp.array([True]))
    gray = np.asarray(augmented(images, draw, options))
    np.testing.assert_allclose(gray[..., 0], gray[..., 2], atol=1e-6)
    coloured = np.asarray(augmented(images, draw.replace(gray=jnp.array([False])), options))
    np.testing.assert_allclose(gray[..., 0], coloured @ [0.299, 0.587, 0.114], atol=1e-5)
    plain = np.asarray(images) / 255 @ [0.299, 0.587, 0.114]
    assert np.abs(gray[..., 0] - plain).max() > 0.01


def test_documented_shapes_and_dtypes_hold():
    """The annotations are checked while JAX traces the functions; nothing is computed."""
    checked = jaxtyping.jaxtyped(typechecker=beartype.beartype)
    options, (foreground, background) = AugmentOptions(), crops(3)

    def call(foreground, background, key):
        pair = checked(compose.compose_pairs)(key, foreground, background, options)
        assert checked(compose.feature_mask)(pair.mask_query, 8).shape == (3, 4, 4)
        draw = jax.vmap(lambda k: checked(compose.draw_view)(k, options))(jax.random.split(key, 3))
        checked(compose.augment)(foreground[:, 0], draw, options)
        planes = jnp.transpose(pair.image_query, (0, 3, 1, 2))
        checked(compose.normalize)(planes, options)
        checked(color.jitter)(planes, draw.factors, draw.order)
        checked(inputs.to_float)(foreground)
        checked(color.shift_hue)(tuple(planes.swapaxes(0, 1)), draw.sigma)
        checked(color.grayscale)(planes)
        checked(blur.gaussian_blur)(planes, draw.sigma, 2.0)
        checked(inputs.normalize)(foreground, options.mean, options.std)
        return [checked(kind)(key, 32, 48, options.mask_law) for kind in MASKS.values()]

    jax.eval_shape(call, foreground, background, jax.random.key(0))
    with pytest.raises(jaxtyping.TypeCheckError):
        jax.eval_shape(call, foreground[:, :, 1:], background, jax.random.key(0))


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_feature_mask_takes_the_centre_of_each_cell(stride):
    mask = np.random.default_rng(0).integers(0, 2, (2, 32, 48)).astype(np.float32)
    got = compose.feature_mask(jnp.asarray(mask), stride)
    assert got.shape == (2, 32 // stride, 48 // stride)
    for i, j in np.ndindex(got.shape[1:]):
        np.testing.assert_array_equal(got[:, i, j], mask[:, i * stride + stride // 2, j * stride + stride // 2])


def test_feature_mask_refuses_a_stride_that_leaves_a_rest():
    with pytest.raises(ValueError, match="16 does not divide the mask's 32 x 40"):
        compose.feature_mask(jnp.zeros((1, 32, 40)), 16)


def test_bad_images():
    foreground, background = crops(2)
    with pytest.raises(ValueError, match=r"must both be \[batch, 2, height, width, 3\]"):
        compose.compose_pairs(jax.random.key(0), foreground, background[:1], PLAIN)
    with pytest.raises(ValueError, match="must both be"):
        compose.compose_pairs(jax.random.key(0), foreground[:, 0], background[:, 0], PLAIN)
    with pytest.raises(ValueError, match="uint8, not float32"):
        compose.compose_pairs(jax.random.key(0), foreground.astype(jnp.float32), background, PLAIN)


def as_config(options=None, **changes):
    values = dataclasses.asdict(options or AugmentOptions()) | changes
    model = {name: values.pop(name) for name in ("mean", "std")}
    return ml_collections.ConfigDict({"augment": values, "model": model})


def test_from_config():
    options = AugmentOptions(mask="polygon", hue=0.2, mask_area=(0.4, 0.6))
    assert AugmentOptions.from_config(as_config(options)) == options
    assert AugmentOptions.from_config(as_config(blur_sigma=[0.1, 3.0])).blur_sigma == (0.1, 3.0)
    assert hash(AugmentOptions.from_config(as_config(mean=[0.5, 0.5, 0.5])))


def test_from_config_names_missing_and_unknown_fields():
    config = as_config(blurr=0.5)
    del config.augment["flip"]
    with pytest.raises(ConfigError, match=r"missing \['flip'\], unknown \['blurr'\]"):
        AugmentOptions.from_config(config)


@pytest.mark.parametrize(
    "field, value",
    [
        ("jitter_probability", 1.2),
        ("grayscale", -0.1),
        ("blur", 2.0),
        ("flip", float("nan")),
        ("brightness", -0.4),
        ("hue", 0.6),
        ("mask", "circle"),
        ("mask_aspect_law", "log"),
        ("blur_sigma", (2.0, 0.1)),
        ("blur_sigma", 2.0),
        ("mask_area", (0.5, 1.0)),
        ("mask_area", (0.0, 0.5)),
        ("mask_aspect", (0.8,)),
    ],
)
def test_bad_options_are_named(field, value):
    with pytest.raises(ConfigError, match=f"augment.{field} is .*must be"):
        AugmentOptions(**{field: value})


@pytest.mark.parametrize("field, value", [("mean", (0.5,)), ("std", (0.2, 0.0, 0.2))])
def test_bad_statistics_are_named_by_the_models_key(field, value):
    with pytest.raises(ConfigError, match=f"^model.{field}=.*: give three numbers"):
        AugmentOptions(**{field: value})
