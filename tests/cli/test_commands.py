"""The command line: what is typed becomes one call, and what is typed wrongly one line that says what is right."""

import functools
import re
import subprocess
import sys

import pytest
from helpers import command_line
from helpers.paths import ROOT

from cp2_jax.cli import command, main


@pytest.fixture
def cp2(capsys):
    return functools.partial(command_line.cp2, capsys)


def test_the_list_of_commands(cp2):
    status, out, _ = cp2("--help")
    assert status == 0 and all(f"  {name} " in out for name in main.COMMANDS)
    assert max(map(len, out.splitlines())) <= 80
    assert cp2("--version")[1].startswith("cp2_jax 0.") and cp2("-V") == cp2("version") == cp2("--version")
    assert "cp2 --verbose: an option stands behind a command" in cp2("--verbose")[2]


def test_help_of_a_command_in_either_order(monkeypatch, capsys):
    shown = []
    for typed in (["help", "compare"], ["compare", "--help"]):
        monkeypatch.setattr(main.sys, "argv", ["cp2", *typed])
        with pytest.raises(SystemExit, match="0"):
            main.main()
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] and shown[0].startswith("usage: cp2 compare ")


@pytest.mark.parametrize("name", main.COMMANDS)
def test_help_shows_every_option_in_80_columns(cp2, name):
    status, out, _ = cp2(name, "--help")
    assert status == 0 and out.startswith(f"usage: cp2 {name} ")
    assert max(map(len, out.splitlines())) <= 80
    assert "absl" not in out and "helpfull" not in out and "==SUPPRESS==" not in out


@pytest.mark.parametrize("name, key", [("pretrain", "loss.queue_start"), ("finetune", "data.class_names")])
def test_help_shows_the_configs_keys_with_their_comments(cp2, name, key):
    _, out, _ = cp2(name, "--help")
    assert (
        f"  {key} = " in out and "  image_size = " in out and re.search("^  optimizer.momentum = .*  # of SGD$", out, re.M)
    )
    _, out, _ = cp2(name, "--help", "--config", "finetune_cityscapes")
    assert "keys of the config finetune_cityscapes" in out and "leftImg8bit" in out


def test_every_option_has_a_word_of_help():
    for name in main.COMMANDS:
        made = command.parser()
        module = __import__(f"cp2_jax.cli.commands.{name.replace('-', '_')}", fromlist=["COMMAND"])
        module.COMMAND.options(made)
        assert [a.dest for a in made._actions if not a.help and a.nargs != "A..."] == [], name


WRONG = {
    ("pretrian", "x"): "cp2 pretrian: there is no such command; did you mean pretrain?",
    ("pretrain", "a", "b", "--batch_size", "4"): "--batch_size: .*the key batch_size: type --config.batch_size=VALUE",
    ("pretrain", "a", "b", "--lr=1"): "--lr: .* type --config.optimizer.learning_rate=VALUE",
    ("pretrain", "a", "b", "--learning-rate=1"): "type --config.optimizer.learning_rate=VALUE",
    ("pretrain", "a", "b", "--config.optimizer.lr=1"): r"--config.optimizer.lr: .*mean optimizer.learning_rate\?",
    ("pretrain", "a", "b", "--config.optimzer.learning_rate=1"): r"did you mean optimizer.learning_rate\?",
    ("pretrain", "a", "b", "--config.batchsize=4", "--config.seed=1"): r"--config.batchsize: .*mean batch_size\?",
    ("pretrain", "a", "b", "--config.batch_size=abc"): "--config.batch_size=abc: batch_size takes a whole number",
    ("pretrain", "a", "b", "--config.batch_size", "1.5"): "--config.batch_size=1.5: batch_size takes a whole number",
    ("pretrain", "a", "b", "--config.optimizer.learning_rate=1e-2x"): "optimizer.learning_rate takes a number",
    ("pretrain", "a", "b", "--config.model.resnet.zero_init_residual=perhaps"): "takes True or False",
    ("pretrain", "a", "b", "--config.model=vit"): "--config.model=vit: model takes no value itself, but its keys do",
    ("pretrain", "a", "b", "--config.data.mean=1"): "--config.data.mean is now --config.model.mean",
    ("pretrain", "a", "b", "--confg.seed=3"): "--confg.seed: there is no such option",
    ("pretrain", "a", "b", "--pofile"): r"--pofile: .*did you mean --profile\?",
    ("pretrain", "a", "b", "optimizer.lr=3"): "'optimizer.lr=3': config keys are typed --config.optimizer.lr=3",
    ("pretrain", "a", "b", "c"): "unexpected argument 'c'",
    ("pretrain", "a", "b", "--num-processes=0"): "argument --num-processes: 0 is below 1",
    ("pretrain", "--workdir=a"): "say where the images are",
    ("pretrain", "--config", "pretrain"): "WORKDIR is missing",
    ("pretrain", "--workdir=a", "--config=nowhere"): "there is no config nowhere \\(known: finetune_ade20k",
    ("pretrain", "--workdir=a", "--config=pretrain:vti"): r"pretrain:vti: there is no variant 'vti' \(did you mean vit\?\)",
    ("study", "a"): "--config is missing: a path or one of finetune_ade20k",
    ("convert", "a", "b", "--config.seed=1"): "cp2 convert takes no --config.seed: it has no config",
    ("convert", "a"): "OUTPUT is missing",
    (
        "convert",
        "a",
        "b",
        "--stage-sizes=a",
    ): "argument --stage-sizes: invalid list of numbers, such as 3,4,6,3",
    ("export", "a", "b", "--layout=onx"): "argument --layout: invalid choice: 'onx'",
    ("compare", "runs/a"): "runs/a: give a name and a run, such as CP2=runs/a",
    ("prepare", "voc"): "the following arguments are required: --input",
    ("reproduce", "run"): "reproduce run: say which table",
}


@pytest.mark.parametrize("typed", WRONG)
def test_what_is_typed_wrongly_is_one_line(cp2, typed):
    status, out, error = cp2(*typed)
    assert status == 2 and out == ""
    assert len(error.splitlines()) == 1 and re.match(f"error: .*{WRONG[typed]}", error), error


def read(name, *arguments):
    module = __import__(f"cp2_jax.cli.commands.{name}", fromlist=["COMMAND"])
    return command.read(module.COMMAND, f"cp2 {name}", arguments)


def test_paths_are_typed_by_themselves_or_as_options():
    for typed in (
        ["run", "photos", "out"],
        ["--checkpoint=run", "photos", "out"],
        ["run", "--images", "photos", "out"],
        ["--output=out", "--images=photos", "--checkpoint=run"],
        ["run", "--mask_values", "photos", "out"],
    ):
        found = read("predict", *typed)
        assert (found.checkpoint, found.images, found.output) == ("run", "photos", "out"), typed


def test_the_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    found = read("pretrain", "~/photos", "--workdir=~/runs/a", "--checkpoint", "~/moco.pth", "--config=~/my.py")
    assert (found.images, found.workdir) == ("/home/me/photos", "/home/me/runs/a")
    assert (found.checkpoint, found.config) == ("/home/me/moco.pth", "/home/me/my.py")


@pytest.mark.parametrize(
    "typed, value",
    [
        ([], True),
        (["--no-projection"], False),
        (["--noprojection"], False),
        (["--projection=False"], False),
        (["-projection=true"], True),
    ],
)
def test_switches_in_the_spellings_of_earlier_versions(typed, value):
    assert read("export", "a", "b.pth", *typed).projection is value


def test_changes_of_the_config():
    found = read(
        "pretrain", "a", "b", "--config.data.crop_scale=(0.2, 1.0)", "-config.seed", "5", "--config.remat", "--profile"
    )
    assert found.changes == [("data.crop_scale", "(0.2, 1.0)"), ("seed", "5"), ("remat", "True")]
    config = command.changed("pretrain:demo", found.changes)
    assert (config.data.crop_scale, config.seed, config.remat) == ((0.2, 1.0), 5, True)


def test_without_the_package_or_a_library_there_is_one_line(tmp_path):
    """The wrong Python: no traceback, but which one to take."""
    bare = [sys.executable, "-S", "-E", str(ROOT / "scripts" / "plan.py"), "--help"]
    done = subprocess.run(bare, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert re.match(r"error: .*python.* has no module cp2_jax: use \.venv/bin/python", done.stderr)
    bare = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from cp2_jax.cli import main; sys.argv[1:] = ['plan']; main.main()"
    )
    done = subprocess.run([sys.executable, "-S", "-E", "-c", bare], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    said = r"error: .*python.* has no module (absl|ml_collections|numpy): use the Python into which cp2_jax was installed"
    assert re.match(said, done.stderr)


@pytest.mark.parametrize(
    "typed",
    [
        "prepare imagenet --train photos --output gs://bucket/imagenet",
        "prepare folder --check --input s3://bucket/my_data",
        "study --config study_demo --workdir gs://bucket/study",
        "reproduce run table1 --workdir gs://bucket/reproduce",
        "plan --config pretrain --topology v4-8 --json gs://bucket/plan.json",
        "attention-maps photos converted gs://bucket/maps",
        "convert gs://bucket/somebody.pth converted",
    ],
)
def test_what_is_not_in_buckets_is_no_folder_called_gs(cp2, tmp_path, monkeypatch, typed):
    """A local path of this name would be made, and hours of work written there."""
    monkeypatch.chdir(tmp_path)
    status, _, said = cp2(*typed.split())
    assert status == 2 and re.fullmatch(
        r"error: (gs|s3)://bucket/\S+ is in a bucket, where a path on the disk .*", said.strip()
    )
    assert not list(tmp_path.iterdir())
