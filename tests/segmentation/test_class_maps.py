"""Class maps in files, and a user's folder with odd files in it."""

import os

import jax
import numpy as np
from helpers.tiny import tiny_config
from PIL import Image

from configs import finetune_ade20k, finetune_cityscapes
from cp2_jax.data.labelled import examples
from cp2_jax.segmentation import class_maps, folders
from cp2_jax.segmentation import step as finetune_step


def test_values_are_those_of_the_data_sets_masks():
    data = finetune_cityscapes.get_config().data
    values = class_maps.mask_values(data)
    np.testing.assert_array_equal(values[:19], finetune_cityscapes.IDS)
    table = examples.label_table(19, data.label_map)
    np.testing.assert_array_equal(table[values[:19]], np.arange(19))
    np.testing.assert_array_equal(class_maps.mask_values(finetune_ade20k.get_config().data)[:150], np.arange(1, 151))


def test_palette_belongs_to_the_written_values(tmp_path):
    colors = np.random.default_rng(0).integers(0, 256, (256, 3)).astype(np.uint8)
    values = np.arange(256, dtype=np.uint8)
    values[:3] = (7, 8, 11)
    predicted = np.array([[0, 1], [2, 2]], np.uint8)
    class_maps.save_class_map(tmp_path / "a.png", predicted, colors, values)
    with Image.open(tmp_path / "a.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), values[predicted])
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), colors[predicted])


def test_a_folder_with_odd_files(tmp_path):
    """Grey, 16-bit, transparent, turned, tiny, broken; equal names; other files; many sizes in few programs.

    The folder's own name is no text, which once led masks and overlays into one folder beside those of the output.
    """
    images = tmp_path / os.fsdecode(b"im\xe9ges")
    (images / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)

    def save(name, array, **options):
        Image.fromarray(array).save(images / name, **options)

    save("a.jpg", rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    save("a.png", rng.integers(0, 256, (21, 30), dtype=np.uint8))
    save("sub/deep.png", rng.integers(0, 65536, (19, 31), dtype=np.uint16))
    save("clear.webp", rng.integers(0, 256, (22, 29, 4), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    save("turned.jpg", rng.integers(0, 256, (18, 30, 3), dtype=np.uint8), exif=exif)
    save("tiny.png", np.zeros((1, 2, 3), np.uint8))
    (images / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    (images / "notes.txt").write_text("x")
    config = tiny_config()
    config.model.resnet.stage_sizes = (1, 1, 1, 1)
    config.evaluation.update(resize=(), programs=2)
    variables = jax.device_get(finetune_step.init_variables(config))
    out = tmp_path / "out"
    count, done = folders.predict_folder(config, variables, images, out)
    problems = [problem for problem in done if problem]
    assert count == 7
    assert len(problems) == 1 and "broken.jpg" in problems[0]
    sizes = {
        "a.jpg.png": (30, 20),
        "a.png.png": (30, 21),
        "sub/deep.png": (31, 19),
        "clear.png": (29, 22),
        "turned.png": (18, 30),
        "tiny.png": (2, 1),
    }
    for kind in ("masks", "overlays"):
        written = {p.relative_to(out / kind).as_posix(): Image.open(p).size for p in (out / kind).rglob("*.png")}
        assert written.keys() == sizes.keys() and (kind == "overlays" or written == sizes)
    assert Image.open(out / "masks/a.jpg.png").mode == "P"
