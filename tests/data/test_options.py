"""The section `data` of a config: checked by its owners; older configs, which lack keys, are read as they were."""

import dataclasses
import functools

import ml_collections
import pytest

from configs import finetune_voc, pretrain
from cp2_jax.data.errors import SegmentationError
from cp2_jax.data.images import sources
from cp2_jax.data.images.options import ImageOptions
from cp2_jax.data.labelled import examples
from cp2_jax.data.labelled.options import LabelledOptions, limited
from cp2_jax.options import ConfigError
from cp2_jax.runs import settings
from cp2_jax.runs.options import RunOptions


def pretraining(**changes):
    config = pretrain.get_config()
    config.data.path = "images"
    config.data.update(changes)
    return config


def finetuning(**changes):
    config = finetune_voc.get_config()
    config.data.path = "images"
    config.data.update(changes)
    return config


def test_the_options_have_the_configs_keys_and_defaults():
    for options, config in ((ImageOptions, pretraining()), (LabelledOptions, finetuning())):
        assert {field.name for field in dataclasses.fields(options)} == set(config.data)
        assert options.from_config(config).path == "images"
    assert ImageOptions.from_config(pretraining()) == ImageOptions("images")


@pytest.mark.parametrize(
    "config, message",
    [
        (pretraining(source="folders"), r"data.source=folders: must be one of .*\(did you mean folder\?\)$"),
        (pretraining(path=""), "data.path='': say where the images are"),
        (pretraining(value_range=(3000, 0)), r"data.value_range=\(3000, 0\): give the values that become black and white"),
        (pretraining(crop_scale=(0.5, 0.2)), "data.crop_scale=.*0 < low <= high <= 1"),
        (pretraining(backgrounds="in_bach"), "did you mean in_batch"),
        (pretraining(prefetch=0), "data.prefetch=0: must be greater than 0"),
        (finetuning(limit=2.5), "data.limit=2.5: give 0 for all images, a share up to 1, or a whole number"),
        (finetuning(ignore_label=20), "data.ignore_label=20: must lie above the 21 classes"),
        (finetuning(value_range=(0.0,)), "data.value_range="),
        (finetuning(class_colors=((0, 0, 256),) * 21), "give 21 triples of whole numbers from 0 to 255"),
        (finetuning(flip=1.5), "data.flip=1.5: must lie between 0 and 1"),
    ],
)
def test_bad_values_are_refused_with_what_would_work(config, message):
    options = ImageOptions if config.kind == "pretrain" else LabelledOptions
    with pytest.raises(ConfigError, match=message):
        options.from_config(config)


def test_an_unknown_key_names_the_nearest():
    config = {"data": {"path": "images", "crop_scal": (0.2, 1.0)}}
    with pytest.raises(ConfigError, match=r"data.crop_scal: there is no such key \(did you mean crop_scale\?\)"):
        ImageOptions.from_config(config)


@pytest.mark.parametrize("make", [pretraining, finetuning])
def test_a_config_of_an_older_version_gets_what_was_done_then(make):
    new = settings.as_plain(make())
    old = settings.as_plain(make())
    for key in settings.ADDED[new["kind"]]:
        *sections, name = key.split(".")
        del functools.reduce(dict.__getitem__, sections, old)[name]
    assert old != new and settings.upgrade(old) == new
    options = ImageOptions if new["kind"] == "pretrain" else LabelledOptions
    assert options.from_config(old) == options.from_config(new)


@pytest.mark.parametrize("limit, count", [(0, 6), (1.0, 6), (0.5, 3), (0.01, 1), (2, 2), (6.0, 6)])
def test_a_limit_up_to_1_is_a_share(limit, count):
    assert limited(limit, 6, "train") == count


def test_a_limit_beyond_the_split_is_refused():
    with pytest.raises(SegmentationError, match="data.limit asks for 7 images, but train has 6; 0 takes all"):
        limited(7, 6, "train")


class Numbers:
    """A source that somebody adds: its own file, and a line in `SOURCES`."""

    def __init__(self, where):
        self.count = int(where.path)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return str(index).encode()

    def name(self, index):
        return f"number {index}"


def test_a_new_source_is_one_class_and_one_line(monkeypatch):
    monkeypatch.setitem(sources.SOURCES, "numbers", Numbers)
    config = pretraining(source="numbers", path="3", probe_path="2")
    assert ImageOptions.from_config(config).source == "numbers"
    source = sources.open_source(config.data)
    assert [sources.read_image(source, index) for index in range(len(source))] == [b"0", b"1", b"2"]
    assert len(sources.open_held_out(config.data)) == 2


def test_open_source_takes_options_and_sections(tmp_path):
    (tmp_path / "a.png").write_bytes(b"a")
    section = ml_collections.ConfigDict({"source": "folder", "path": str(tmp_path)})
    for data in (section, ImageOptions(str(tmp_path))):
        assert sources.open_source(data)[0] == b"a"


@pytest.mark.parametrize("make", [pretraining, finetuning])
def test_a_hundred_thousand_processes_are_not_started(make):
    options = ImageOptions if make is pretraining else LabelledOptions
    options.from_config(make(workers=512))
    with pytest.raises(ConfigError, match="data.workers=100000: each is a process, at most 512 of them"):
        options.from_config(make(workers=100_000))


@pytest.mark.parametrize("label_map", [5, (255, 1), ((255,),), (("255", "1"),), ((0.5, 1),)])
def test_a_label_map_that_is_no_pairs_is_told_what_one_looks_like(label_map):
    with pytest.raises(SegmentationError, match=r"data.label_map.* pairs .*such as \(\(255, 1\),\)"):
        examples.label_table(3, label_map, 255)


def test_a_seed_of_more_than_64_bits_is_refused():
    with pytest.raises(ConfigError, match="seed=99999999999999999999: must lie below"):
        RunOptions.from_config(pretrain.get_config().to_dict() | {"seed": 99999999999999999999})
