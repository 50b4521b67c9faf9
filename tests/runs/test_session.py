"""What may happen around a run: other images, another process, disks, errors while a save is under way."""

import json
import shutil

import numpy as np
import pytest
from helpers import toy_backbone
from PIL import Image

from configs import pretrain_demo
from cp2_jax.models.backbones import BACKBONES
from cp2_jax.options import ConfigError
from cp2_jax.pretraining import run
from cp2_jax.runs import checkpoints, files, lock, session


def write_images(folder, count, start=0):
    folder.mkdir(exist_ok=True)
    for index in range(start, start + count):
        pixels = np.random.default_rng(index).integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")


def tiny(images, **changes):
    """A pretraining of three steps an epoch, small enough for a second."""
    config = pretrain_demo.get_config()
    toy_backbone.choose(config.model)
    config.update_from_flattened_dict(
        {
            "steps": 0,
            "epochs": 2,
            "batch_size": 4,
            "bn_groups": 1,
            "save_every": 2,
            "log_every": 1,
            "keep": 9,
            "picture_every": 0,
            "probe_every": 0,
            "image_size": 16,
            "data.source": "folder",
            "data.path": str(images),
            "data.workers": 0,
            "loss.queue_size": 8,
            "augment.blur": 0.0,
            "augment.jitter_probability": 0.0,
            "augment.grayscale": 0.0,
            "model.projection_dim": 8,
            "optimizer.warmup_steps": 1,
        }
        | changes
    )
    return config


@pytest.fixture(scope="module", autouse=True)
def toy_network():
    """What happens around a run does not depend on its network; a small one compiles quickly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "toy", toy_backbone.BACKBONE)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Six steps over twelve images."""
    folder = tmp_path_factory.mktemp("finished")
    write_images(folder / "images", 12)
    assert run.train(tiny(folder / "images"), folder / "run").steps == 6
    return folder


@pytest.fixture
def complete(finished, tmp_path):
    """A copy of it."""
    shutil.copytree(finished, tmp_path / "complete")
    return tmp_path / "complete"


@pytest.fixture
def cut_off(finished, tmp_path):
    """The same after four of its steps."""
    shutil.copytree(finished, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "run" / "checkpoints" / "6")
    return tmp_path / "copy"


def test_resumed_with_the_same_images_it_is_the_same_run(cut_off, finished, caplog):
    assert run.train(tiny(cut_off / "images"), cut_off / "run").steps == 6
    assert "contents" not in caplog.text
    ours, theirs = (checkpoints.read(folder / "run")[0]["params"] for folder in (cut_off, finished))
    np.testing.assert_array_equal(ours["backbone"]["first"]["kernel"], theirs["backbone"]["first"]["kernel"])


def test_images_that_are_away_are_not_passed_over(cut_off):
    for path in sorted((cut_off / "images").iterdir())[:4]:
        path.unlink()
    with pytest.raises(ConfigError, match="12 images when the run began, 8 now. Put back the images .*disk not mounted"):
        run.train(tiny(cut_off / "images"), cut_off / "run")
    assert checkpoints.Checkpoints(cut_off / "run" / "checkpoints").latest_step() == 4


def test_images_that_were_added_are_another_run(cut_off):
    write_images(cut_off / "images", 20, start=12)
    before = (cut_off / "run/config.json").read_text()
    with pytest.raises(ConfigError, match="12 images when the run began, 32 now.*--config.init.checkpoint="):
        run.train(tiny(cut_off / "images", log_every=2), cut_off / "run")
    assert (cut_off / "run/config.json").read_text() == before  # what was refused changes nothing


def test_shards_of_runs_that_had_no_names_for_them_go_on():
    before, now = {"number": 3, "names": "", "contents": 1}, {"number": 3, "names": "9a", "contents": 1}
    session._compare_images(before, now, "x.tar", "run")
    with pytest.raises(ConfigError, match="the 3 images have other names"):
        session._compare_images(now, now | {"names": "77"}, "x.tar", "run")
    with pytest.raises(ConfigError, match="3 images when the run began, 4 now"):
        session._compare_images(before, now | {"number": 4}, "x.tar", "run")


def test_as_many_other_images_are_noticed_too(cut_off):
    (cut_off / "images" / "000.png").rename(cut_off / "images" / "other.png")
    with pytest.raises(ConfigError, match="the 12 images have other names than when the run began"):
        run.train(tiny(cut_off / "images"), cut_off / "run")


def test_other_contents_under_the_same_names_are_told(cut_off, caplog):
    for index in range(12):
        shutil.copy(cut_off / "images" / f"{(index + 1) % 12:03d}.png", cut_off / "run" / f"{index:03d}.png")
    for path in (cut_off / "run").glob("*.png"):
        path.rename(cut_off / "images" / path.name)
    assert run.train(tiny(cut_off / "images"), cut_off / "run").steps == 6
    assert "images: the images have the names that they had, but not the contents" in caplog.text


def test_the_folder_itself_may_move(cut_off):
    (cut_off / "images").rename(cut_off / "elsewhere")
    assert run.train(tiny(cut_off / "elsewhere"), cut_off / "run").steps == 6


def test_a_shorter_run_than_was_made_is_not_finished(cut_off):
    with pytest.raises(ConfigError, match="is at step 4 already, beyond the 3 steps that are asked for"):
        run.train(tiny(cut_off / "images", steps=3), cut_off / "run")


def test_the_second_process_leaves_everything_as_it_is(cut_off):
    (cut_off / "run" / "checkpoints" / "5.orbax-checkpoint-tmp").mkdir()  # the first one is saving
    before = (cut_off / "run" / "metrics.jsonl").read_text()
    with lock.held(cut_off / "run"), pytest.raises(lock.Busy, match="is at work in .*copy/run"):
        run.train(tiny(cut_off / "images"), cut_off / "run")
    assert (cut_off / "run" / "metrics.jsonl").read_text() == before
    assert (cut_off / "run" / "checkpoints" / "5.orbax-checkpoint-tmp").exists()


def test_a_work_directory_that_is_a_file_or_cannot_be_made(finished, tmp_path):
    (tmp_path / "file").write_text("")
    for place in ("file", "file/run"):
        with pytest.raises(files.WriteError, match=f"{tmp_path / place}: there is a file where a folder is needed"):
            run.train(tiny(finished / "images"), tmp_path / place)


@pytest.mark.parametrize("name", ["caf\udce9", "a\0b"])
def test_a_work_directory_whose_name_is_no_text(finished, tmp_path, name):
    """The first checkpoint would fail, after hours."""
    with pytest.raises(ConfigError, match="has to be UTF-8 text; use another name"):
        run.train(tiny(finished / "images"), tmp_path / name)


@pytest.mark.parametrize("left", ['{"seed": ', "", "[]", "{}", None])
def test_a_config_that_was_broken_off_is_that_of_the_checkpoint(complete, left, caplog):
    path = complete / "run" / "config.json"
    path.unlink() if left is None else path.write_text(left)
    with pytest.raises(ConfigError, match="loss.alpha: was 0.2, now 0.5\nResume"):
        run.train(tiny(complete / "images", **{"loss.alpha": 0.5}), complete / "run")
    assert "the config of" in caplog.text and "checkpoints/6 is taken in its place" in caplog.text
    assert run.train(tiny(complete / "images"), complete / "run").steps == 6
    assert json.loads(path.read_text())["loss"]["alpha"] == 0.2


def test_without_its_config_a_run_that_was_cut_off_goes_on(cut_off, finished):
    (cut_off / "run" / "config.json").unlink()
    assert run.train(tiny(cut_off / "images"), cut_off / "run").steps == 6
    ours, theirs = (checkpoints.read(folder / "run")[0]["params"] for folder in (cut_off, finished))
    np.testing.assert_array_equal(ours["backbone"]["first"]["kernel"], theirs["backbone"]["first"]["kernel"])
