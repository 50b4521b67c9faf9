"""Miniature data sets in the layouts that users have on disk: the folders, names, lists and file kinds of the real ones."""

import json

import numpy as np
import scipy.io
from ml_collections import ConfigDict
from PIL import Image

from configs.finetune_cityscapes import IDS
from cp2_jax.pictures import class_colors


def scene(seed, values, size=(40, 48), border=None):
    """Return an RGB image of two to three blocks, and their mask with the given values; `border` lies between them."""
    rng = np.random.default_rng(seed)
    mask = np.full(size, rng.choice(values), np.uint8)
    mask[:, int(rng.integers(10, 20)) :] = rng.choice(values)
    mask[int(rng.integers(15, 30)) :, 24:] = rng.choice(values)
    image = np.clip(mask[..., None] * np.array([7, 3, 11]) % 200 + rng.integers(0, 40, (*size, 3)), 0, 255)
    if border is not None:
        mask[:, 24] = border
    return image.astype(np.uint8), mask


def save(path, array, palette=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(array)
    if palette:
        picture.putpalette(class_colors(256).tobytes())
    picture.save(path)
    return path


def voc(root):
    """VOC2012 with 3 training and 2 validation images, and SBD with 5, of which one is in each of VOC's lists.

    Returns:
      The folders VOCdevkit/VOC2012 and benchmark_RELEASE/dataset, and SBD's masks by name.
    """
    own, sbd = root / "VOCdevkit/VOC2012", root / "benchmark_RELEASE/dataset"
    train, val = ["2007_000001", "2007_000002", "2007_000003"], ["2007_000004", "2007_000005"]
    boundaries = {"train": ["2007_000002", "2008_000001", "2008_000002"], "val": ["2007_000005", "2008_000003"]}
    masks = {}
    names = dict.fromkeys([*train, *val, *boundaries["train"], *boundaries["val"]])
    for number, name in enumerate(names):
        size = [(40, 48), (48, 40), (38, 50)][number % 3]
        image, mask = scene(number, range(21), size, border=255)
        save(own / f"JPEGImages/{name}.jpg", image)
        if name in train + val:
            save(own / f"SegmentationClass/{name}.png", mask, palette=True)
    save(own / "JPEGImages/2010_000009.jpg", scene(99, range(21))[0])  # of detection, without a mask
    for split, listed in {"train": train, "val": val, "trainval": train + val}.items():
        path = own / f"ImageSets/Segmentation/{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{name}\n" for name in listed))
    (sbd / "cls").mkdir(parents=True)
    for split, listed in boundaries.items():
        (sbd / f"{split}.txt").write_text("".join(f"{name}\n" for name in listed))
        for name in listed:
            size = Image.open(own / f"JPEGImages/{name}.jpg").size[::-1]
            masks[name] = scene(1000 + int(name[-3:]), range(21), size)[1]
            present = np.unique(masks[name][masks[name] > 0])[:, None]
            structure = {"Boundaries": np.zeros(20), "Segmentation": masks[name], "CategoriesPresent": present}
            scipy.io.savemat(sbd / f"cls/{name}.mat", {"GTcls": structure}, do_compression=True)
    return own, sbd, masks


def cityscapes(root):
    """Two cities for training and one for validation, 4 and 2 images; with the files that lie beside the masks."""
    root = root / "cityscapes"
    for split, cities in {"train": ("aachen", "bochum"), "val": ("frankfurt",)}.items():
        for city in cities:
            for frame in (0, 1):
                stem = f"{city}_00000{frame}_000019"
                image, mask = scene(frame + len(city), [0, 3, *IDS])
                save(root / f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png", image)
                folder = root / f"gtFine/{split}/{city}"
                save(folder / f"{stem}_gtFine_labelIds.png", mask)
                save(folder / f"{stem}_gtFine_instanceIds.png", mask.astype(np.uint16) * 1000)
                save(folder / f"{stem}_gtFine_color.png", image)
                (folder / f"{stem}_gtFine_polygons.json").write_text(json.dumps({"imgHeight": 40, "objects": []}))
    return root


def ade20k(root):
    """ADEChallengeData2016 with 4 and 2 images; 0 is "other"."""
    root = root / "ADEChallengeData2016"
    for split, short, count in (("training", "train", 4), ("validation", "val", 2)):
        for number in range(1, count + 1):
            size = (40, 48) if split == "training" else [(40, 48), (44, 42)][number % 2]
            image, mask = scene(number, [0, 1, 2, 75, 149, 150], size)
            save(root / f"images/{split}/ADE_{short}_{number:08d}.jpg", image)
            save(root / f"annotations/{split}/ADE_{short}_{number:08d}.png", mask)
    (root / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tStuff\tName\n")
    return root


def folder(root, classes="nothing 10 20 30\nred apple 200 0 0\npear, 0, 200, 0\n"):
    """Images and masks in sub-folders, and a class file."""
    root = root / "mine"
    for split, count in (("train", 3), ("val", 2)):
        for number in range(count):
            image, mask = scene(number, range(3))
            save(root / f"images/{split}/{number}.jpg", image)
            save(root / f"labels/{split}/{number}.png", mask)
    (root / "classes.txt").write_text(classes)
    return root


PALETTE = [int(v) for v in np.random.default_rng(0).integers(0, 256, 768)]


def write_pair(root, stem, size=(12, 16), mask=None, split="train", image_suffix="", label_suffix="", seed=0):
    """Write a JPEG and a palette PNG whose indices are `mask`, by default quarters of classes 0-3."""
    rng = np.random.default_rng([seed, *stem.encode()])
    image_path, label_path = root / "images" / split / f"{stem}{image_suffix}.jpg", None
    label_path = root / "labels" / split / f"{stem}{label_suffix}.png"
    for path in (image_path, label_path):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(image_path, quality=95)
    if mask is None:
        mask = np.add.outer(np.arange(size[0]) * 2 // size[0] * 2, np.arange(size[1]) * 2 // size[1]).astype(np.uint8)
    picture = Image.fromarray(mask)
    if mask.dtype == np.uint8:
        picture.putpalette(PALETTE)
    picture.save(label_path)
    return image_path, label_path


def folder_section(root, **changes):
    """Return `config.data` of pairs that `write_pair` wrote, with four classes."""
    return ConfigDict(
        dict(
            source="folder",
            path=str(root),
            images="images",
            labels="labels",
            image_suffix="",
            label_suffix="",
            classes="",
            num_classes=4,
            label_map=(),
            ignore_label=255,
        )
        | changes
    )
