"""Pairs of image and mask, matched by name in folders."""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
from pathlib import Path

from cp2_jax.data import files, notices, text, walking
from cp2_jax.data.errors import SegmentationError, UnreadableImage
from cp2_jax.data.images.formats import SUFFIXES
from cp2_jax.data.labelled import layouts, names
from cp2_jax.data.labelled.masks import header_size
from cp2_jax.data.labelled.names import Named

LIST_SUFFIXES = (".txt", ".lst", ".csv")
# What else people call the folders that the config calls `images` and `labels`.
_ALSO = {
    "images": ("image", "photos", "imgs", "img_dir", "JPEGImages"),
    "labels": ("masks", "annotations", "mask", "ann_dir", "SegmentationClass"),
}
# What photos are stored in, where photos and masks of the same name share a folder.
_PHOTOS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})


@dataclasses.dataclass(frozen=True)
class FolderPairs:
    """Encoded pairs from two lists of files; `names` are what image and mask have in common, without extension."""

    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[bytes, bytes]:
        """Return image and mask as they are stored.

        Raises:
          UnreadableImage: if the image's file cannot be read.
          SegmentationError: if the mask's cannot.
        """
        try:
            image = files.read(self.images[index])
        except OSError as error:
            raise UnreadableImage(self.places(index)[0], f"cannot be read: {error.strerror or error}") from error
        return image, self._mask(index)

    def _mask(self, index: int) -> bytes:
        try:
            return files.read(self.masks[index])
        except OSError as error:
            raise SegmentationError(f"mask {self.places(index)[1]} cannot be read: {error.strerror or error}") from error

    def places(self, index: int) -> tuple[str, str]:
        """Return where image and mask lie, for messages."""
        return files.as_text(self.images[index]), files.as_text(self.masks[index])

    @functools.cached_property
    def _ambiguous(self) -> frozenset[str]:
        counted = collections.Counter(Path(name).name for name in self.names)
        return frozenset(name for name, count in counted.items() if count > 1)

    def stem(self, index: int) -> str:
        """Return the name of files made from the image: its own, with its folders where another has the same."""
        name = self.names[index]
        return files.as_text(name if Path(name).name in self._ambiguous else Path(name).name)

    def size(self, index: int, turn: bool = True) -> tuple[int, int]:
        """Return (height, width) from the mask's header; see `masks.header_size`.

        Raises:
          SegmentationError: naming a mask that cannot be read.
        """
        return header_size(self._mask(index), self.places(index)[1], turn)


def match_pairs(
    root: str | Path,
    split: str,
    images: str = "images",
    labels: str = "labels",
    image_suffix: str = "",
    label_suffix: str = "",
) -> tuple[FolderPairs, list[str]]:
    """Match images and masks by name, whatever their extensions.

    Args:
      root: the data set.
      split: a sub-folder of both `images` and `labels` (at any depth below, as Cityscapes' cities), or a text file
        below `root` with one name a line (VOC's ImageSets/Segmentation/train.txt), relative to both. What else a line may
        hold (paths, pairs): `names.read_entry`.
      images, labels: folders below `root` ("" is `root` itself); with "{split}" in them, the split's name goes there
        (SegNet's CamVid has train and trainannot: "{split}" and "{split}annot"). If both are the same folder, masks are the
        files with `label_suffix`, or those that are no JPEGs where a JPEG has the same name.
      image_suffix, label_suffix: ends of the file names before the extension that are not part of the common name
        (Cityscapes: "_leftImg8bit", "_gtFine_labelIds"); files without them are passed over.

    Returns:
      The pairs, and a line for each image without a mask and each name in the split file without an image or given
      twice.

    Raises:
      SegmentationError: for a missing folder or split file, an empty split, a folder that may not be entered, or two files
        that only differ in their extension; the message names them.
    """
    root = files.place(root)
    listed = root / os.path.expanduser(split) if split.lower().endswith(LIST_SUFFIXES) else None
    folders = [root / _folder(part, "" if listed else split) for part in (images, labels)]
    own, others = _named_files(root, folders, (image_suffix, label_suffix))
    image_files = Named(folders[0], images, image_suffix, own)
    mask_files = Named(folders[1], labels, label_suffix, others)
    if listed:
        entries, problems = _listed(listed, image_files, mask_files)
    else:
        entries, problems = [(name, name) for name in image_files.files], []
        _remark_on_masks_alone(image_files, mask_files)
    if not entries and not problems:
        raise SegmentationError(f"no image in {listed or folders[0]}")
    paired = []
    for name, mask in dict.fromkeys(entries):
        if mask not in mask_files.files:
            problems.append(_no_mask(image_files.files[name], mask_files, mask))
        else:
            paired.append((name, mask))
    pairs = FolderPairs(
        tuple(image_files.files[name] for name, _ in paired),
        tuple(mask_files.files[mask] for _, mask in paired),
        tuple(name for name, _ in paired),
    )
    return pairs, problems


def find_pairs(root: str | Path, split: str, **layout: str) -> FolderPairs:
    """Return the pairs of `match_pairs`, which has the same arguments, if all are complete.

    Raises:
      SegmentationError: as `match_pairs`, and for the first of the problems that it finds.
    """
    pairs, problems = match_pairs(root, split, **layout)
    if problems:
        more = f" (and {len(problems) - 1} more problems; cp2 prepare folder --check lists them)" if problems[1:] else ""
        raise SegmentationError(problems[0] + more)
    return pairs


def _folder(part: str, split: str) -> str:
    """Return the folder of a split; an empty `part` or `split` adds nothing, and never a slash of its own."""
    part = os.path.expanduser(part)
    if "{split}" in part:
        return part.replace("{split}", split)
    return os.path.join(part, split.lstrip("/")) if part else split.lstrip("/")


def _listed(listed: Path, images: Named, masks: Named) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the names of image and mask of each line of a list, and what is wrong with it."""
    if not listed.is_file():
        raise SegmentationError(f"no such split file: {listed}; set data.split or data.eval_split")
    found, problems = [], []
    for line in text.read_lines(listed, SegmentationError):
        line = line.strip()
        if not line:
            continue
        entry = names.read_entry(line, images, masks)
        if entry.image is None:
            if not line.startswith("#"):
                problems.append(f"{listed} names {line}, but there is no such image in {images.folder}")
        elif entry.mask is None:
            problems.append(f"{listed} has the line {line}, but there is no such mask in {masks.folder}")
        else:
            found.append((entry.image, entry.mask))
    for (name, _), count in collections.Counter(found).items():
        if count > 1:
            problems.append(f"{listed} names {name} {count} times")
    return found, problems


def _no_mask(image: Path, masks: Named, name: str) -> str:
    wanted = masks.folder / (name + masks.suffix)
    hint = _hint(masks, name)
    if not hint and any(path.with_suffix(".json").is_file() for path in (image, wanted.with_name(f"{wanted.name}.png"))):
        hint = " (there is a .json of that name: polygons are drawn as masks first, docs/data.md shows how)"
    return f"image {image} has no mask: {wanted}.png is missing{hint}"


def _hint(masks: Named, name: str) -> str:
    """Return which file is probably the mask, and what to set for it to be found; "" if there is none."""
    other = next((there for there in masks.files if there.casefold() == name.casefold()), None)
    if other:
        return f" ({masks.files[other]} is there: names have to agree in upper and lower case)"
    longer = [there for there in masks.files if there.startswith(name) and not there[len(name)].isalnum()]
    if len(longer) == 1:
        ending = longer[0][len(name) :] + masks.suffix
        return f" ({masks.files[longer[0]]} is there: set data.label_suffix={ending})"
    base, line, ending = name.rpartition("_")
    others = [there for there in masks.files if base and there.startswith(f"{base}_")]
    if len(others) == 1:
        other = line + others[0].removeprefix(f"{base}_") + masks.suffix
        return f" ({masks.files[others[0]]} is there: set data.image_suffix={line}{ending} and data.label_suffix={other})"
    return ""


def _remark_on_masks_alone(images: Named, masks: Named) -> None:
    alone = [name for name in masks.files if name not in images.files]
    if alone and images.files:
        notices.say_once(f"{len(alone)} masks have no image and are not used, such as {masks.files[alone[0]]}")


def _named_files(root: Path, folders: list[Path], suffixes: tuple[str, str]) -> tuple[dict[str, Path], dict[str, Path]]:
    """Return images and masks by name."""
    found = [_walked(root, folder) for folder in dict.fromkeys(folders)]
    if len(found) == 2:
        for remark in filter(None, [found[0].remark(folders[0])]):
            notices.say_once(remark)
        return tuple(by_name(f, w.files, s) for f, w, s in zip(folders, found, suffixes, strict=True))
    own, masks = share_folder(found[0].files, *suffixes)
    return by_name(folders[0], own, suffixes[0]), by_name(folders[0], masks, suffixes[1])


def _named(folder: Path, key: str, name: str) -> bool:
    """Say whether there is such a folder if its part `key` is called `name`."""
    return Path(*(name if part == key else part for part in folder.parts)).is_dir()


def _other_splits(folder: Path) -> str:
    """Return what to do where the folder of a split is missing, but the one that it should lie in is there."""
    above = folder.parent
    if not above.is_dir():
        return ""
    inside = sorted(path.name for path in above.iterdir() if path.is_dir() and not path.name.startswith("."))
    if any(path.suffix.lower() in SUFFIXES for path in above.iterdir()):
        return (
            f"; {above} is not divided: write two lists, with the name of an image on each line, and set "
            "data.split=train.txt and data.eval_split=val.txt (docs/data.md makes them)"
        )
    return f" ({above.name} has {', '.join(inside[:5])}: set data.split and data.eval_split)" if inside else ""


def _missing(root: Path, folder: Path) -> str:
    """Return what to do where a folder of images or masks is missing."""
    if folder.name == "SegmentationClassAug":
        return (
            f"; `cp2 prepare voc --input {root} --sbd benchmark_RELEASE/dataset` makes it of VOC's masks and SBD's; VOC's "
            "alone: data.labels=SegmentationClass and data.split=ImageSets/Segmentation/train.txt"
        )
    if there := layouts.below(root, folder):
        return f"; {there}"
    key = "labels" if "labels" in folder.parts else "images"
    name = next((name for name in _ALSO[key] if _named(folder, key, name)), None)
    there = f" (is it {name}? then --config.data.{key}={name})" if name else _other_splits(folder)
    return there if there.startswith(";") else f"; set data.path, data.images and data.labels{there}"


def _walked(root: Path, folder: Path) -> walking.Found:
    if not folder.is_dir():
        raise SegmentationError(f"no such folder: {folder}{_missing(root, folder)}")
    found = walking.walk(folder, SUFFIXES)
    if found.closed:
        more = f" (and {len(found.closed) - 1} more)" if found.closed[1:] else ""
        raise SegmentationError(
            f"this folder may not be entered: {found.closed[0]}{more}; give yourself the right to read it"
        )
    return found


def share_folder(paths: list[str], image_suffix: str, label_suffix: str) -> tuple[list[str], list[str]]:
    """Tell images from masks that lie in the same folder: by their suffixes, or else masks are what is no JPEG where there
    are two files of a name.

    Args:
      paths: relative to the folder.
      image_suffix, label_suffix: see `match_pairs`.

    Returns:
      The images' paths and the masks'.
    """
    stems = [os.path.splitext(path)[0] for path in paths]
    if image_suffix or label_suffix:
        # The longer suffix decides first: an empty one fits every name.
        longer = max(label_suffix, image_suffix, key=len)
        first = [path for path, stem in zip(paths, stems, strict=True) if stem.endswith(longer)]
        rest = [path for path, stem in zip(paths, stems, strict=True) if not stem.endswith(longer)]
        return (rest, first) if longer == label_suffix else (first, rest)
    counted = collections.Counter(map(names.key, stems))
    shared = [counted[names.key(stem)] > 1 for stem in stems]
    photo = [os.path.splitext(path)[1].lower() in _PHOTOS for path in paths]
    masks = [path for path, two, is_photo in zip(paths, shared, photo, strict=True) if two and not is_photo]
    chosen = set(masks)
    return [path for path in paths if path not in chosen], masks


def by_name(folder: Path, paths: list[str], suffix: str) -> dict[str, Path]:
    """Return paths by relative path without extension and without `suffix`; those without the suffix are left out.

    Args:
      folder: where they lie, part of the paths that are returned.
      paths: relative to it.

    Raises:
      SegmentationError: for two files that only differ in their extension, or in the form of their accents.
    """
    found: dict[str, Path] = {}
    for path in paths:
        stem = names.key(os.path.splitext(path)[0])
        if not stem.endswith(suffix):
            continue
        stem, file = stem.removesuffix(suffix), folder / path
        if stem in found:
            same = names.key(str(found[stem])) == names.key(str(file))
            what = "how accented letters are stored (Unicode)" if same else "their extension"
            raise SegmentationError(f"{found[stem]} and {file} differ only in {what}; keep one of them")
        found[stem] = file
    return found
