"""What a folder looks like whose `classes.txt` or images are not where they should be: for messages, reads nothing."""

from __future__ import annotations

from pathlib import Path

# What lies in a data set as it is downloaded; the config `finetune_NAME` reads it.
_DOWNLOADED = {
    "voc": ("JPEGImages", "ImageSets/Segmentation/train.txt", "Annotations"),
    "cityscapes": ("leftImg8bit", "gtFine"),
    "ade20k": ("images/training", "annotations/training"),
}
# Class files that other programs write, see `classes.read_classes`.
_CLASS_FILES = ("labelmap.txt", "class_names.txt", "labels.txt", "class_dict.csv", "label_colors.txt")
_DRAWN = "have to be drawn as masks once: docs/data.md shows how"


def instead_of_classes(root: Path) -> str:
    """Return what a data set without `classes.txt` probably is and what to type then, or "".

    Args:
      root: the data set, as it was typed.
    """
    for name, parts in _DOWNLOADED.items():
        for place in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
            if all((place / part).exists() for part in parts):
                return f"{place} looks like the data set {name}: --config finetune_{name} --config.data.path={place}"
    if any(photo.with_suffix(".json").is_file() for photo in root.glob("*.[jJpP]*") if photo.suffix != ".json"):
        return f"polygons of LabelMe {_DRAWN}"
    file = next((name for name in _CLASS_FILES if (root / name).is_file()), None)
    if file:
        more = "".join(
            f" --config.data.{key}={name}"
            for key, name in (("images", "JPEGImages"), ("labels", "SegmentationClass"))
            if (root / name).is_dir()
        )
        return f"is it {file}? then --config.data.classes={file}{more}"
    if any((root / "annotations").glob("instances_*.json")):
        return f"COCO's annotations {_DRAWN}"
    return ""


def below(root: Path, folder: Path) -> str:
    """Return in which folder of `root` a missing folder is there, as where an archive was unpacked once too deep, or ""."""
    if not root.is_dir() or not folder.is_relative_to(root):
        return ""
    inside = folder.relative_to(root)
    found = [path for path in sorted(root.iterdir()) if (path / inside).is_dir() and not path.name.startswith(".")]
    return f"{found[0] / inside} is there: is data.path={found[0]}?" if found and inside.parts else ""
