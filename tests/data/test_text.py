"""Text files as Windows, macOS and Linux save them."""

import pytest
from ml_collections import ConfigDict

from cp2_jax.data.errors import SegmentationError, SourceError
from cp2_jax.data.labelled import classes
from cp2_jax.data.labelled.classes import read_classes
from cp2_jax.data.text import read_lines

LINES = ["background", "zebra crossing", "Straße", ""]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_encoding_with_a_mark_and_every_line_end(tmp_path, encoding, end):
    path = tmp_path / "list.txt"
    path.write_bytes((end.join(LINES) + end).encode(encoding))
    assert read_lines(path) == LINES
    path.write_bytes(end.join(LINES[:3]).encode(encoding))  # no end of the last line
    assert read_lines(path) == LINES[:3]


def test_big_endian_with_a_mark(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes("\ufeffa\nb\n".encode("utf-16-be"))
    assert read_lines(path) == ["a", "b"]


def test_an_empty_file_has_no_lines(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"")
    assert read_lines(tmp_path / "list.txt") == []


def test_only_line_ends_end_lines(tmp_path):
    """str.splitlines would also split at these, which are letters of file names."""
    (tmp_path / "list.txt").write_text("a\x0bb\x1c\x85c\u2028d\n", encoding="utf-8")
    assert read_lines(tmp_path / "list.txt") == ["a\x0bb\x1c\x85c\u2028d"]


@pytest.mark.parametrize(
    "data, message",
    [
        ("ok\nStraße".encode("latin-1"), r"list.txt is not UTF-8 text \(line 2\); save it as UTF-8"),
        ("a\nb".encode("utf-16-le"), "zero bytes.*save it as UTF-8"),
        (b"\xff\xfea", "is not UTF-16 text.*save it as UTF-8"),
    ],
)
def test_other_encodings_are_refused_by_name(tmp_path, data, message):
    (tmp_path / "list.txt").write_bytes(data)
    with pytest.raises(SegmentationError, match=message):
        read_lines(tmp_path / "list.txt", SegmentationError)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SourceError, match="absent.txt cannot be read: No such file"):
        read_lines(tmp_path / "absent.txt")


def test_classes_as_windows_saves_them(tmp_path):
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbf# classes of the survey\r\nbackground\r\nsquare\r\nbox\r\n")
    assert read_classes(tmp_path / "classes.txt") == (("background", "square", "box"), ())


@pytest.mark.parametrize("form", ["{} {}", "{}: {}", "{},{}", "{}\t{}", "{}. {} 1 2 3"])
def test_the_numbers_of_classes_are_no_part_of_their_names(form):
    lines = [form.format(number, name) for number, name in enumerate(("background", "2 wheeler", "box"))]
    assert classes.parse_classes(lines, "c.txt")[0] == ("background", "2 wheeler", "box")


@pytest.mark.parametrize("numbers", [(1, 2, 3), (0, 2, 5), (0, 1, 1)])
def test_other_numbers_than_those_of_the_lines_are_refused(numbers):
    """Label 2 of the masks would be counted as the class that the file calls 5."""
    with pytest.raises(SegmentationError, match=r"c.txt gives class '.*' the number \d, but .* data.label_map=\(\("):
        classes.parse_classes([f"{number} {name}" for number, name in zip(numbers, "abc", strict=True)], "c.txt")


@pytest.mark.parametrize(
    "lines",
    [
        ["# label:color_rgb:parts:actions", "sky:70,130,180::", "traffic light:250,170,30::"],  # CVAT
        ["70 130 180\tsky", "250 170 30\ttraffic light"],  # SegNet's label_colors.txt
        ["name,r,g,b", "sky,70,130,180", "traffic light,250,170,30"],
        ["name red green blue", "sky 70 130 180", "traffic light 250 170 30"],
        ["__ignore__", "sky, 70, 130, 180", "traffic light, 250, 170, 30"],  # LabelMe
    ],
)
def test_class_files_of_other_programs(lines):
    assert classes.parse_classes(lines, "c.txt") == (("sky", "traffic light"), ((70, 130, 180), (250, 170, 30)))


def test_names_that_look_like_other_programs_lines():
    assert classes.parse_classes(["a:1", "b:2"], "c.txt") == (("a:1", "b:2"), ())
    assert classes.parse_classes(["red green blue", "yellow"], "c.txt") == (("red green blue", "yellow"), ())
    with pytest.raises(SegmentationError, match=r"line 2: \(300, 0, 0\) is no colour"):
        classes.parse_classes(["70 130 180 sky", "300 0 0 road"], "c.txt")


def test_a_class_list_in_which_one_name_begins_with_a_number_is_as_it_was():
    assert classes.parse_classes(["background", "2 wheeler"], "c.txt")[0] == ("background", "2 wheeler")


def test_the_folder_of_the_data_is_named_before_the_class_file(tmp_path):
    (tmp_path / "file").touch()
    for name, what in (("file", "a file, not a folder"), ("away", "not there")):
        data = ConfigDict({"path": str(tmp_path / name), "classes": "classes.txt"})
        with pytest.raises(SegmentationError, match=f"data.path=.*{name} is {what}"):
            classes.resolve(ConfigDict({"data": data}))


@pytest.mark.parametrize("pattern", ["{split}.tar", "x-{00..03}.tar", "train.tar::val.tar", "?-*.tar", "train.tar", ""])
def test_the_class_file_beside_packed_files(tmp_path, pattern):
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    data = {"source": "tar", "path": f"{tmp_path}/{pattern}", "classes": "classes.txt", "num_classes": 0}
    config = ConfigDict({"data": data | {"class_names": (), "class_colors": ()}, "model": {"num_classes": 0}})
    classes.resolve(config)
    assert config.data.class_names == ("sky", "road") and config.model.num_classes == 2


def test_names_of_classes_without_a_file(tmp_path):
    data = {"path": str(tmp_path), "classes": "classes.txt", "class_names": ("sky", "road"), "class_colors": ()}
    config = ConfigDict({"data": data | {"num_classes": 0}, "model": {"num_classes": 0}})
    classes.resolve(config)
    assert config.data.num_classes == config.model.num_classes == 2
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
    config.data.num_classes = 0
    classes.resolve(config)
    assert config.data.class_names == ("sky", "road", "car")
