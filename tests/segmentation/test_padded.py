"""Images on a larger canvas: a network's results, resizing and mirroring are those of each image by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import toy_backbone
from helpers.images import Memory, images_of
from helpers.tiny import choose_vit, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from cp2_jax.models import inputs, resize
from cp2_jax.models.backbones import BACKBONES
from cp2_jax.models.network import Network
from cp2_jax.runs import mesh
from cp2_jax.segmentation import batching, padded
from cp2_jax.segmentation import step as finetune_step
from cp2_jax.segmentation.evaluation import evaluate
from cp2_jax.segmentation.inputs import normalize
from cp2_jax.segmentation.options import EvaluationOptions
from cp2_jax.segmentation.predictor import build_predictor, make_predictor

SIZES = [(40, 48), (33, 47), (21, 30), (48, 17), (9, 40)]
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
MASKING = Network.from_config(tiny_config().model).masking


def variables_of(config):
    """Weights, and running statistics under which batch norm moves every zero."""
    variables = finetune_step.init_variables(config)
    keys = iter(jax.random.split(jax.random.key(3), 1000))

    def noise(x, low, high):
        return jax.random.uniform(next(keys), x.shape, minval=low, maxval=high)

    variables["batch_stats"] = jax.tree.map(lambda x: x + noise(x, -0.3, 0.3), variables["batch_stats"])
    variables["params"] = jax.tree.map(lambda x: x * noise(x, 0.7, 1.5) + noise(x, -0.1, 0.1), variables["params"])
    return variables


@pytest.fixture(scope="module")
def network():
    """Stem, max pooling, strides, dilation, downsampling and image pooling: all that meets a border."""
    config = tiny_config()
    config.model.resnet.stage_sizes = (1, 1, 1, 1)
    return finetune_step.build_model(config), variables_of(config)


@pytest.fixture(scope="module")
def light():
    """(model, variables, masking) of two convolutions and ASPP, which compile in a fifth of the time."""
    config = tiny_config()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "toy", toy_backbone.BACKBONE)
        toy_backbone.choose(config.model)
        config.model.head = "aspp"
        yield finetune_step.build_model(config), variables_of(config), Network.from_config(config.model).masking


@pytest.fixture(scope="module")
def alone(network):
    """Each image's logits by itself."""
    model, variables = network
    run = jax.jit(lambda image: model.apply(variables, inputs.normalize(image[None], MEAN, STD), train=False)[0])
    return [np.asarray(run(image)) for image in images_of(SIZES)]


@pytest.mark.parametrize("canvas", [(48, 48), (64, 80)])
def test_network_gives_what_it_gives_without_padding(network, alone, canvas):
    model, variables = network
    sizes = jnp.array(SIZES)
    images = np.full((len(SIZES), *canvas, 3), 77, np.uint8)  # what lies outside must not matter
    for row, image in zip(images, images_of(SIZES), strict=True):
        row[: image.shape[0], : image.shape[1]] = image
    run = jax.jit(lambda x, s: padded.apply(model, variables, normalize(x, s, MEAN, STD), s, MASKING))
    logits = run(images, sizes)
    spread = max(np.ptp(one) for one in alone)
    assert all(one.std(axis=(0, 1)).max() > 1e-3 for one in alone)  # the images do say something
    for ours, one in zip(logits, alone, strict=True):
        height, width = one.shape[:2]
        np.testing.assert_allclose(ours[:height, :width], one, atol=2e-6 * spread)
    # Without the masks it is another result, so that the test above says something.
    plain = jax.jit(lambda x, s: model.apply(variables, normalize(x, s, MEAN, STD), train=False))(images, sizes)
    differences = [np.abs(p[: o.shape[0], : o.shape[1]] - o).max() for p, o in zip(plain, alone, strict=True)]
    assert max(differences) > 1e-2 * spread


def test_pooling_in_bfloat16_counts_every_pixel():
    """A mean over 1,036 of 1,050 pixels that are 1: in bfloat16, 1,036 is not a number, and 1,040 would give 0.996."""
    pixels = jnp.ones((1, 30, 35, 2), jnp.bfloat16)
    mask = (jnp.arange(30 * 35) < 1036).reshape(1, 30, 35, 1)
    assert padded._mean(pixels, mask).dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(padded._mean(pixels, mask), np.float32), 1.0)


@settings(deadline=None, max_examples=20)
@given(
    source=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    target=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 99),
)
def test_bilinear_and_mirror_of_the_part_inside(source, target, seed):
    x = np.random.default_rng(seed).normal(size=(1, 6, 6, 2)).astype(np.float32)
    ours = padded.bilinear(jnp.asarray(x), jnp.array([source]), jnp.array([target]), (9, 9))
    part = x[:, : source[0], : source[1]]
    expected = resize.bilinear(jnp.asarray(part), target)
    np.testing.assert_allclose(ours[:, : target[0], : target[1]], expected, atol=2e-6)
    mirrored = padded.mirror(jnp.asarray(x), jnp.array([source]))
    np.testing.assert_array_equal(mirrored[:, : source[0], : source[1]], part[:, :, ::-1])


@settings(deadline=None, max_examples=50)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 400), st.integers(1, 400)), min_size=1, max_size=25, unique=True),
    groups=st.integers(0, 6),
)
def test_groups_hold_every_size_once(sizes, groups):
    members = batching.group(sizes, [1] * len(sizes), groups, 16)
    assert sorted(index for group in members for index in group) == list(range(len(sizes)))
    assert len(members) == (min(groups, len(sizes)) if groups else len(sizes))


def test_alike_sizes_are_grouped():
    sizes = [(500, 375), (375, 500), (499, 375), (333, 500), (500, 370), (375, 499)]
    members = batching.group(sizes, [9, 400, 3, 50, 3, 7], 3, 16)
    assert sorted(map(sorted, members)) == [[0, 2, 4], [1, 5], [3]]


@pytest.mark.parametrize("options", [EvaluationOptions(), EvaluationOptions(resize=(64, 32), ratios=(0.5, 1.0), flip=True)])
def test_evaluation_of_many_sizes_takes_few_programs_and_gives_the_same(light, options):
    model, variables, masking = light
    sizes = [(20, 24), (21, 24), (24, 20), (20, 24), (9, 30)]
    examples, one_device = Memory(sizes), mesh.make_mesh(jax.devices()[:1])
    kept, results = {}, {}
    for programs in (0, 2):
        predictor = build_predictor(model, MEAN, STD, options, stride=4, masking=masking)
        maps = {}
        results[programs] = evaluate(
            examples,
            predictor,
            variables,
            num_classes=3,
            batch_size=2,
            device_mesh=one_device,
            programs=programs,
            keep=maps.__setitem__,
        )
        kept[programs] = maps
    shapes = {view for size in sizes for view in options.sizes(size)}
    assert results[0].compilations == len(shapes) and results[2].compilations <= 2 * len(options.ratios)
    assert sorted(kept[2]) == list(range(5))
    wrong = sum(int((kept[0][i] != kept[2][i]).sum()) for i in range(5))
    assert [kept[2][i].shape for i in range(5)] == sizes and wrong <= 1  # a tie may fall the other way
    assert len(np.unique(np.concatenate([kept[2][i].ravel() for i in range(5)]))) > 1
    assert np.abs(results[0].matrix - results[2].matrix).sum() <= 2
    assert results[2].matrix.sum() == sum((label < 3).sum() for label in examples.labels)
    alone = build_predictor(model, MEAN, STD, options, stride=4, masking=masking).predict_image(
        variables, examples.images[2]
    )
    assert (alone != kept[2][2]).sum() <= 1


def test_vit_takes_images_of_any_size():
    """Padded to whole patches with the mean; labels beyond the image are cut off."""
    config = tiny_config()
    choose_vit(config.model)
    model, variables = finetune_step.build_model(config), finetune_step.init_variables(config)
    config.evaluation.resize = ()
    predictor = make_predictor(config)
    (image,) = images_of([(19, 30)])
    (batch,) = predictor.plan([(19, 30)], 1)
    ours = predictor.probabilities(variables, predictor.inputs([image], batch), batch)
    whole = jnp.zeros((1, 24, 32, 3)).at[:, :19, :30].set(inputs.normalize(image, config.model.mean, config.model.std))
    logits = resize.bilinear(model.apply(variables, whole, train=False), (24, 32))[:, :19, :30]
    np.testing.assert_allclose(ours, jax.nn.softmax(logits), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_dtype_can_be_masked(dtype):
    """Conversions between types mix no pixels."""
    config = tiny_config()
    config.model.dtype = dtype
    assert make_predictor(config).masked.stride == 8
