"""Inference and evaluation against plain references written from the definitions."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers.by_hand import upsampled_by_hand
from helpers.halves import folder_config, halves_on_disk
from helpers.miniatures import write_pair
from helpers.tiny import tiny_config

from configs import finetune_voc
from cp2_jax.data.labelled import examples, masks, transforms
from cp2_jax.options import ConfigError
from cp2_jax.runs import checkpoints, mesh
from cp2_jax.segmentation import class_maps, evaluation, hooks, saved
from cp2_jax.segmentation import step as finetune_step
from cp2_jax.segmentation.inputs import windows
from cp2_jax.segmentation.options import EvaluationOptions
from cp2_jax.segmentation.predictor import build_predictor, check_variables

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class Strided(nn.Module):
    """A small network at output stride 4 whose result at a pixel depends on its neighbours and on the borders."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(6, (5, 5), strides=4, padding=2)(x)
        return nn.Conv(4, (3, 3), padding=1)(jnp.tanh(x) + jnp.mean(x, axis=(1, 2), keepdims=True))


@pytest.fixture(scope="module")
def network():
    model = Strided()
    return model, model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), train=False)


def random_images(count, height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3)).astype(np.uint8)


def logits_by_hand(network, image):
    model, variables = network
    normal = (image / 255 - np.array(MEAN)) / np.array(STD)
    return np.asarray(model.apply(variables, jnp.asarray(normal[None], jnp.float32), train=False)[0], np.float64)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def whole_by_hand(network, image):
    return upsampled_by_hand(logits_by_hand(network, image), *image.shape[:2])


def slide_by_hand(network, image, window, stride):
    height, width = image.shape[:2]
    total, count = np.zeros((height, width, 4)), np.zeros((height, width, 1))
    rows = max(height - window[0] + stride[0] - 1, 0) // stride[0] + 1
    columns = max(width - window[1] + stride[1] - 1, 0) // stride[1] + 1
    for i in range(rows):
        for j in range(columns):
            bottom, right = min(i * stride[0] + window[0], height), min(j * stride[1] + window[1], width)
            part = (slice(max(bottom - window[0], 0), bottom), slice(max(right - window[1], 0), right))
            total[part] += whole_by_hand(network, image[part])
            count[part] += 1
    assert count.min() > 0
    return total / count


def predict(network, image, options):
    predictor = build_predictor(network[0], MEAN, STD, options)
    (batch,) = predictor.plan([image.shape[:2]], 1)
    return np.asarray(predictor.probabilities(network[1], predictor.inputs([image], batch), batch)[0]), predictor


def test_whole_image(network):
    image = random_images(1, 19, 26)[0]
    ours, _ = predict(network, image, EvaluationOptions())
    np.testing.assert_allclose(ours, softmax(whole_by_hand(network, image)), atol=1e-5)


@pytest.mark.parametrize(
    "size, window, stride",
    [
        ((24, 30), (16, 16), (11, 11)),
        ((16, 40), (16, 16), (16, 8)),
        ((10, 33), (16, 16), (10, 10)),
        ((12, 12), (16, 16), (4, 4)),
    ],
)
def test_sliding_windows(network, size, window, stride):
    """Also images smaller than the window, in one direction or both."""
    image = random_images(1, *size)[0]
    ours, predictor = predict(network, image, EvaluationOptions(window=window, stride=stride))
    np.testing.assert_allclose(ours, softmax(slide_by_hand(network, image, window, stride)), atol=1e-5)
    assert predictor.compilations == 1


def test_several_scales_and_flips_after_resizing(network):
    image = random_images(1, 20, 30)[0]
    options = EvaluationOptions(resize=(60, 24), ratios=(0.5, 1.0, 1.25), flip=True)
    expected = np.zeros((20, 30, 4))
    for size in ((12, 18), (24, 36), (30, 45)):
        view = transforms.resize_image(image, size)
        expected += softmax(upsampled_by_hand(whole_by_hand(network, view), 20, 30))
        mirrored = upsampled_by_hand(whole_by_hand(network, view[:, ::-1]), 20, 30)
        expected += softmax(mirrored)[:, ::-1]
    ours, _ = predict(network, image, options)
    np.testing.assert_allclose(ours, expected, atol=3e-5)


def test_flipping_makes_the_result_symmetric(network):
    image = random_images(1, 16, 20)[0]
    one, _ = predict(network, image, EvaluationOptions(flip=True))
    other, _ = predict(network, np.ascontiguousarray(image[:, ::-1]), EvaluationOptions(flip=True))
    np.testing.assert_allclose(one[:, ::-1], other, atol=1e-6)


def test_windows_with_gaps_are_refused():
    with pytest.raises(ValueError, match="stride"):
        windows((20, 20), (8, 8), (9, 8))


@pytest.mark.parametrize(
    "options", [EvaluationOptions(), EvaluationOptions(window=(16, 16), stride=(8, 8)), EvaluationOptions(flip=True)]
)
def test_alone_equals_in_a_batch(network, options):
    predictor = build_predictor(network[0], MEAN, STD, options)
    images = random_images(4, 24, 28)
    (batch,) = predictor.plan([(24, 28)] * 4, 4, 0)
    together = np.asarray(predictor.predict(network[1], predictor.inputs(images, batch), batch))
    for image, expected in zip(images, together, strict=True):
        np.testing.assert_array_equal(predictor.predict_image(network[1], image), expected)


# A whole split.


def test_plan_holds_every_image_once_in_batches_of_one_size(network):
    sizes = [(4, 5), (6, 5), (4, 5), (4, 5), (6, 5), (9, 9)]
    batches = build_predictor(network[0], MEAN, STD, EvaluationOptions()).plan(sizes, 2, 1)  # this network cannot be masked
    assert sorted(i for batch in batches for i in batch.indices if i >= 0) == list(range(6))
    assert all({sizes[i] for i in batch.indices if i >= 0} == {batch.shape} for batch in batches)
    assert all(len(batch.indices) == 2 and batch.views == (batch.shape,) and not batch.padded for batch in batches)
    assert len(batches) == 4


@pytest.fixture
def split(tmp_path):
    """Seven images of three sizes, with ignored pixels; class 3 occurs in none."""
    rng = np.random.default_rng(0)
    for number in range(7):
        size = [(20, 24), (24, 20), (17, 19)][number % 3]
        mask = rng.integers(0, 3, size).astype(np.uint8)
        mask[rng.random(size) < 0.2] = 255
        write_pair(tmp_path, f"{number}", size=size, mask=mask, split="val")
    pairs = examples.find_pairs(tmp_path, "val")
    return examples.Examples(pairs, examples.label_table(4), np.arange(7))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_evaluation_equals_counting_images_one_by_one(network, split, batch_size):
    predictor = build_predictor(network[0], MEAN, STD, EvaluationOptions())
    result = evaluation.evaluate(
        split, predictor, network[1], num_classes=4, batch_size=batch_size, device_mesh=mesh.make_mesh(jax.devices()[:1])
    )
    expected = np.zeros((4, 4), np.int64)
    for index in range(7):
        image, label = split.load(index)
        predicted = whole_by_hand(network, image).argmax(-1)
        for truth, guess in zip(label.ravel(), predicted.ravel(), strict=True):
            if truth != 255:
                expected[truth, guess] += 1
    assert np.abs(result.matrix - expected).sum() <= 2  # a tie may fall the other way in float64
    assert result.matrix.sum() == expected.sum() and result.matrix.dtype == np.int64
    assert result.compilations == 3
    assert result.image_miou.shape == (7,) and not np.isnan(result.image_miou).any()
    if batch_size == 3:  # on devices that divide neither the batch nor the images, as after a move to another machine
        shared = evaluation.evaluate(
            split, predictor, network[1], num_classes=4, batch_size=3, device_mesh=mesh.make_mesh(jax.devices()[:2])
        )
        np.testing.assert_array_equal(shared.matrix, result.matrix)


def test_unreadable_image_is_an_error(network, split):
    split.pairs.images[4].write_bytes(b"broken")
    predictor = build_predictor(network[0], MEAN, STD, EvaluationOptions())
    with pytest.raises(Exception, match=r"4\.jpg"):
        evaluation.evaluate(
            split, predictor, network[1], num_classes=4, batch_size=1, device_mesh=mesh.make_mesh(jax.devices()[:1])
        )


def test_class_maps_keep_their_indices(tmp_path):
    predicted = np.arange(12, dtype=np.uint8).reshape(3, 4)
    class_maps.save_class_map(tmp_path / "a/b.png", predicted)
    mask = masks.read_mask((tmp_path / "a/b.png").read_bytes(), "b.png").values
    np.testing.assert_array_equal(mask, predicted)


def test_pictures_have_the_data_sets_colours_or_bright_ones():
    data = finetune_voc.get_config().data
    assert class_maps.overlay_colors(data) is None
    data.class_colors = ((1, 2, 3), (4, 5, 6))
    np.testing.assert_array_equal(class_maps.overlay_colors(data), [[1, 2, 3], [4, 5, 6]])


class Lines:
    """A writer that remembers."""

    def __init__(self):
        self.values, self.texts, self.pictures = [], [], []

    def scalars(self, step, values):
        self.values.append((step, values))

    def text(self, message):
        self.texts.append(message)

    def image(self, step, name, picture, numbered):
        self.pictures.append((step, name))


def test_periodic_evaluation_keeps_the_best_and_goes_on_after_a_restart(tmp_path, monkeypatch):
    halves_on_disk(tmp_path, "val", 3)
    config = folder_config(tmp_path)
    evaluator = evaluation.Evaluator(config, mesh.make_mesh(jax.devices()[:1]))
    variables = finetune_step.init_variables(config)
    state = finetune_step.State(
        step=jnp.zeros((), jnp.int32), params=variables["params"], batch_stats=variables["batch_stats"], opt_state=()
    )
    classifier = state.params["classifier"]["conv_seg"]

    def always(index):
        """A model that says one class everywhere: 0 is right for less than 30 of 40 columns, 2 never."""
        bias = jnp.zeros(3).at[index].set(100.0)
        params = dict(state.params) | {"classifier": {"conv_seg": dict(classifier) | {"bias": bias}}}
        return state.replace(params=params)

    writer = Lines()
    hook = hooks.Periodic(evaluator, 2, 6, writer, tmp_path / "run", {"kind": "finetune"})
    hook(1, always(0))
    assert not writer.values
    hook(2, always(0))
    best = writer.values[-1][1]["miou"]
    hook(4, always(2))
    assert [step for step, _ in writer.values] == [2, 4] and writer.values[-1][1]["miou"] == 0 < best

    broken = always(0)
    hook(6, broken.replace(params=jax.tree.map(lambda x: x * jnp.nan, broken.params)))
    assert hook.best == best

    again = hooks.Periodic(evaluator, 2, 6, writer, tmp_path / "run", {"kind": "finetune"})
    assert again.best == best
    again(6, always(2))
    kept, meta = checkpoints.read_variables(tmp_path / "run/best")
    assert meta["step"] == 2 and meta["mean_iou"] == best
    np.testing.assert_array_equal(kept["params"]["classifier"]["conv_seg"]["bias"], [100, 0, 0])
    scores = json.loads((tmp_path / "run/scores.json").read_text())
    assert scores["step"] == 6 and scores["best_mean_iou"] == best and scores["images"] == 3
    halves_on_disk(tmp_path, "val", 4)  # an image was added: what was the best is scored by the same images as what follows
    other = evaluation.Evaluator(config, mesh.make_mesh(jax.devices()[:1]))
    scored = other({"params": always(0).params, "batch_stats": state.batch_stats}).scores.mean_iou
    assert hooks.Periodic(other, 2, 6, writer, tmp_path / "run", {"kind": "finetune"}).best == scored != best
    assert saved.best_of(tmp_path / "run") == {"best_mean_iou": scored, "best_step": 2}  # not the score by other images
    monkeypatch.setattr(hooks.Periodic, "_score_again", None)  # nor is it scored a second time
    assert hooks.Periodic(other, 2, 6, writer, tmp_path / "run", {"kind": "finetune"}).best == scored
    monkeypatch.undo()
    (tmp_path / "run/best/2/scored_anew.json").unlink()
    (tmp_path / "run/best/2/meta/metadata").write_text("{}")  # copied half, edited: the run goes on without it
    anew = hooks.Periodic(evaluator, 2, 6, writer, tmp_path / "run", {"kind": "finetune"})
    assert anew.best == -1 and [path.name for path in (tmp_path / "run/best").iterdir()] == ["2.damaged"]
    drawn = [f"evaluation_{name}" for name in ("best", "median", "worst")]
    assert writer.pictures[:3] == [(2, name) for name in drawn] and writer.pictures[-3:] == [(6, name) for name in drawn]
    evaluator({"params": always(1).params, "batch_stats": state.batch_stats}, tmp_path / "maps")
    stored = masks.read_mask((tmp_path / "maps/0.png").read_bytes(), "0.png").values
    assert (stored == 5).all()  # class 1 is value 5 in this data set's masks


def test_what_is_ignored_is_drawn_whatever_its_label(tmp_path):
    write_pair(tmp_path, "quarters", split="val")
    config = folder_config(tmp_path)
    config.data.update(label_map=((3, 200),), ignore_label=200)
    evaluator = evaluation.Evaluator(config, mesh.make_mesh(jax.devices()[:1]))
    variables = finetune_step.init_variables(config)
    assert evaluator.draw(evaluator(variables), variables).keys() == {"best", "median", "worst"}


def test_class_names_and_numbers_must_agree(tmp_path):
    halves_on_disk(tmp_path, "val", 1)
    config = folder_config(tmp_path)
    config.data.class_names = ("left", "right")
    with pytest.raises(examples.SegmentationError, match="2 names"):
        evaluation.Evaluator(config, mesh.make_mesh())


def test_checkpoint_of_another_model_is_refused():
    config = tiny_config()
    variables = finetune_step.init_variables(config)
    check_variables(config, variables)
    other = tiny_config()
    other.model.num_classes = 4
    with pytest.raises(ConfigError, match=r"conv_seg/bias: checkpoint \(3,\), model \(4,\)"):
        check_variables(other, variables)
    del variables["params"]["classifier"]
    with pytest.raises(ConfigError, match="classifier/conv_seg/kernel: checkpoint absent"):
        check_variables(config, variables)
