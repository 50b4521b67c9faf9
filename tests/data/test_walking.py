"""What lies in users' folders beside images: links, hidden and thumbnail folders, pipes, folders that are closed."""

import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp2_jax.data import files, notices, walking
from cp2_jax.data.errors import SegmentationError, SourceError, UnreadableImage
from cp2_jax.data.images.sources import ImageFolder
from cp2_jax.data.labelled.pairs import find_pairs

SUFFIXES = {".png", ".jpg"}


pytestmark = pytest.mark.usefixtures("said")


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def test_files_are_sorted_by_the_parts_of_their_paths(tmp_path):
    names = ["a/z.png", "a/b/0.png", "a-b/0.png", "a.png", "A.JPG", "b.png"]
    random.Random(0).shuffle(names)
    found = walking.walk(touch(tmp_path, *names), SUFFIXES)
    assert found.files == ["A.JPG", "a/b/0.png", "a/z.png", "a-b/0.png", "a.png", "b.png"]
    assert found.files == sorted(found.files, key=lambda path: path.split("/"))


@given(st.lists(st.lists(st.sampled_from(["a", "a-", "a.", "B", "0", "ä"]), min_size=1, max_size=4), max_size=12))
def test_the_order_is_that_of_the_parts_whatever_the_names(tmp_path_factory, paths):
    root = tmp_path_factory.mktemp("walk")
    touch(root, *("/".join([f"{part}_" for part in parts[:-1]] + [f"{parts[-1]}.png"]) for parts in paths))
    files = walking.walk(root, SUFFIXES).files
    assert files == sorted(files, key=lambda path: path.split("/")) and len(files) == len(set(map(tuple, paths)))


def test_hidden_and_thumbnail_folders_are_left_out(tmp_path):
    touch(tmp_path, "s0.png", ".ipynb_checkpoints/s0-checkpoint.png", "@eaDir/s0.png/SYNOPHOTO_THUMB_XL.png", "._s0.png")
    touch(tmp_path, "__MACOSX/s0.png", "lost+found/1.png", "#recycle/2.png", "$RECYCLE.BIN/3.png", "sub/@eaDir/s.png")
    touch(tmp_path, "Thumbs.db", "desktop.ini", ".DS_Store")
    found = walking.walk(tmp_path, SUFFIXES)
    assert (found.files, found.passed_over, found.closed) == (["s0.png"], {}, [])


def test_what_was_predicted_among_the_images_is_no_image(tmp_path):
    """`cp2 predict runs/mine photos photos`; a folder called masks is passed over beside the note of its making only."""
    touch(tmp_path, "s0.png", "masks/s0.png", "overlays/s0.png", "sub/masks/s1.png")
    assert walking.walk(tmp_path, SUFFIXES).files == ["masks/s0.png", "overlays/s0.png", "s0.png", "sub/masks/s1.png"]
    found = walking.walk(touch(tmp_path, "predictions.json"), SUFFIXES)
    assert (found.files, found.passed_over) == (["s0.png", "sub/masks/s1.png"], {})


def test_a_folder_with_an_images_name_is_a_folder(tmp_path):
    assert walking.walk(touch(tmp_path, "x.png/y.png"), SUFFIXES).files == ["x.png/y.png"]


def test_links_are_followed_once_and_what_lies_in_its_own_place_comes_first(tmp_path):
    touch(tmp_path, "data/z/1.png", "elsewhere/2.png")
    os.symlink("z", tmp_path / "data/a_link")  # to a folder that is there anyway
    os.symlink("../elsewhere", tmp_path / "data/b_link")
    os.symlink("../elsewhere", tmp_path / "data/c_link")  # a second time
    os.symlink("..", tmp_path / "data/z/up")  # in a circle
    os.symlink("self", tmp_path / "data/self")
    found = walking.walk(tmp_path / "data", SUFFIXES)
    assert found.files == ["b_link/2.png", "z/1.png"]
    os.symlink("../data", tmp_path / "elsewhere/around")
    assert walking.walk(tmp_path / "data", SUFFIXES).files == ["b_link/2.png", "z/1.png"]


def test_a_broken_link_is_an_image_that_cannot_be_read(tmp_path):
    touch(tmp_path, "a.png")
    os.symlink("/nowhere/x.jpg", tmp_path / "m.jpg")
    folder = ImageFolder(tmp_path)
    assert len(folder) == 2
    with pytest.raises(UnreadableImage, match=r"m\.jpg: cannot be read: No such file"):
        folder[1]


def test_a_pipe_is_never_opened(tmp_path):
    touch(tmp_path, "a.png")
    os.mkfifo(tmp_path / "b.png")
    os.symlink("b.png", tmp_path / "c.png")
    found = walking.walk(tmp_path, SUFFIXES)
    assert found.files == ["a.png"] and found.passed_over == {"no ordinary file": 2}


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_in_the_place_of_an_image_is_not_waited_for(tmp_path, kind):
    """A list may name one, and a file may become one during a run; a device such as /dev/zero has no end."""
    touch(tmp_path, "a.png")
    (tmp_path / "list.txt").write_text("a.png\nb.png\n")
    os.mkfifo(tmp_path / "b.png") if kind == "pipe" else os.symlink("/dev/zero", tmp_path / "b.png")
    source = ImageFolder(tmp_path, tmp_path / "list.txt")
    assert source[0] == b"a.png"
    with pytest.raises(UnreadableImage, match="b.png: cannot be read: no ordinary file"):
        source[1]


def closed(monkeypatch, name):
    """Let a folder refuse to be listed, which the rights of a file system do not do to root."""
    real = os.scandir

    def scandir(path="."):
        if os.path.basename(path) == name:
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)


def test_a_closed_folder_is_named(tmp_path, monkeypatch, said):
    touch(tmp_path, "open/a.png", "closed/b.png")
    closed(monkeypatch, "closed")
    assert len(ImageFolder(tmp_path)) == 1
    assert f"may not be entered, its images are missing: {tmp_path}/closed: Permission denied" in said.text
    with pytest.raises(SourceError, match="no image found in .*closed: Permission denied"):
        ImageFolder(tmp_path / "closed")


def test_labelled_images_in_a_closed_folder_are_an_error(tmp_path, monkeypatch):
    touch(tmp_path, "images/train/a.png", "labels/train/a.png", "images/train/closed/b.png")
    closed(monkeypatch, "closed")
    with pytest.raises(SegmentationError, match=f"may not be entered: {tmp_path}/images/train/closed: Permission denied"):
        find_pairs(tmp_path, "train")


def test_what_is_passed_over_is_said_in_one_line(tmp_path, said):
    touch(tmp_path, "p.jpg", "a.heic", "b.heic", "c.txt", "hash_without_suffix")
    assert len(ImageFolder(tmp_path)) == len(ImageFolder(tmp_path)) == 1
    assert [record.getMessage() for record in said.records] == [
        f"{tmp_path}: 4 files passed over: .heic 2, .txt 1, no suffix 1"
    ]


def test_names_that_are_no_text_can_be_printed(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
    folder = ImageFolder(tmp_path)
    assert folder[0] == b"x" and folder.name(0).encode("utf-8").endswith(b"caf\\xe9.png")


def test_names_below_a_folder_whose_own_name_is_no_text(tmp_path):
    """What is made from an image keeps its place below the folder, and leads nowhere else."""
    (place := tmp_path / os.fsdecode(b"ph\xe9") / "a").mkdir(parents=True)
    (place / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
    folder = ImageFolder(place.parent)
    assert files.relative(folder.name(0), folder.root) == "a/caf\\xe9.png"


def test_remarks_on_a_folder_whose_name_is_no_text_can_be_printed(tmp_path, said):
    (place := tmp_path / os.fsdecode(b"ph\xe9")).mkdir()
    touch(place, "a.png", "b.txt")
    ImageFolder(place)
    notices.say_once("caf\udce9")
    assert [record.getMessage() for record in said.records] == [
        f"{tmp_path}/ph\\xe9: 1 file passed over: .txt 1",
        "caf\\udce9",
    ]


def test_names_of_new_files_in_a_locale_without_utf8(monkeypatch):
    """There Python reads `é` of a name as two bytes that are no text, and cannot write `é`."""
    monkeypatch.setattr(files.os, "fsdecode", lambda name: name.decode("ascii", "surrogateescape"))
    monkeypatch.setattr(files.os, "fsencode", lambda name: os.fspath(name).encode("ascii", "surrogateescape"))
    assert files.as_text("caf\udcc3\udca9.png") == "café.png"
    assert files.as_path("café.png") == "caf\udcc3\udca9.png"


def test_a_list_takes_some_images_in_its_order(tmp_path, said):
    touch(tmp_path, "a/1.png", "a/2.png", "b/3", "b/4.png")
    (tmp_path / "some.txt").write_bytes(f"\ufeffb/3\r\n./a/1.png\r\n\r\n# no image\r\n{tmp_path}/b/4.png\r\n".encode())
    folder = ImageFolder(tmp_path, "some.txt")
    assert [folder[index] for index in range(len(folder))] == [b"b/3", b"a/1.png", b"b/4.png"]
    (tmp_path / "twice.txt").write_text("a/1.png\na/1.png\n")
    assert len(ImageFolder(tmp_path, tmp_path / "twice.txt")) == 2 and "1 lines are there already" in said.text


@pytest.mark.parametrize(
    "text, message",
    [
        ("a.png\nb.png\nc.png\n", r"list.txt names b.png, but there is no such file in .* \(and 1 more\)"),
        ("\n", "list.txt names no image"),
        (None, "no such list: .*list.txt; set data.list"),
    ],
)
def test_a_wrong_list_is_refused(tmp_path, text, message):
    touch(tmp_path, "a.png")
    if text is not None:
        (tmp_path / "list.txt").write_text(text)
    with pytest.raises(SourceError, match=message):
        ImageFolder(tmp_path, "list.txt")
