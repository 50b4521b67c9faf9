"""Configs are found by name, variants compose in any order, and each key says what it means."""

import ast
import importlib
import itertools
import json
import os
import re
import subprocess
import sys

import pytest
from helpers.paths import ROOT
from hypothesis import given
from hypothesis import strategies as st

from cp2_jax import config_files
from cp2_jax.configs import finetune_voc, pretrain
from cp2_jax.options import ConfigError, flatten

TRAINING = [name for name in config_files.names() if not name.startswith("study_")]


def plain(name):
    return json.loads(config_files.load(name).to_json())


def test_the_configs_that_there_are():
    data_sets = ("ade20k", "camvid", "cityscapes", "demo", "folder", "voc")
    studies = ("study_cpu", "study_demo", "study_gpu")
    assert config_files.names() == [*(f"finetune_{name}" for name in data_sets), "pretrain", "quick_tune", *studies]


@pytest.mark.parametrize("name", config_files.names())
def test_each_opens_with_its_command_and_what_to_expect(name):
    text = importlib.import_module(f"cp2_jax.configs.{name}").__doc__
    assert re.search(rf"^    cp2 \w+ --config {name} ", text, re.M), text
    assert re.search(r"paper|Table \d|docs/results.md|scripts/quickstart.sh|no figure", text), name


@pytest.mark.parametrize("name", TRAINING)
def test_every_key_says_what_it_means(name):
    keys = config_files.keys_with_comments(name)
    assert {key.name: key.default for key in keys} == flatten(config_files.load(name))
    assert [key.name for key in keys if not key.comment] == []


def test_comments_are_those_of_the_nearest_file():
    comments = {key.name: key.comment for key in config_files.keys_with_comments("finetune_folder:vit")}
    assert comments["data.num_classes"] == "as many as classes.txt names"  # its own
    assert comments["data.limit_seed"] == "which ones"  # finetune_voc's
    assert comments["model.resnet.depth"] == "18, 34, 50, 101 or 152"  # pretrain's
    assert comments["loss.average"].startswith('"all" pixels') and comments["loss.average"].endswith("is ignored.")


def test_a_variant_that_a_table_lists_is_there_and_all_are_listed():
    for module in (pretrain, finetune_voc):
        cells = [row.split("|")[1] for row in module.__doc__.splitlines() if row.startswith("| `")]
        listed = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
        assert listed | {"paper"} == module.VARIANTS.keys()


@given(st.lists(st.sampled_from(sorted(pretrain.VARIANTS)), unique=True), st.randoms())
def test_the_order_of_variants_does_not_matter(names, random):
    check_orders("pretrain", names, random)


@given(st.lists(st.sampled_from(sorted(finetune_voc.VARIANTS)), unique=True), st.randoms())
def test_nor_in_finetuning(names, random):
    for file in ("finetune_camvid", "finetune_demo"):
        check_orders(file, names, random)


def check_orders(file, names, random):
    """All orders give the same config, or all are refused with the same words."""
    other = random.sample(names, len(names))
    results = []
    for order in (names, other):
        try:
            results.append(plain(f"{file}:{','.join(order)}"))
        except ConfigError as error:
            results.append(str(error).partition(": ")[2])
    assert results[0] == results[1]
    clash = [pair for pair in itertools.combinations(names, 2) if choices(file, pair[0]) & choices(file, pair[1])]
    assert bool(clash) == isinstance(results[0], str)


def choices(file, name):
    table = pretrain.VARIANTS if file == "pretrain" else finetune_voc.VARIANTS
    return set(table[name][0])


@pytest.mark.parametrize("earlier, now", config_files.EARLIER_NAMES.items())
def test_earlier_names_go_on_working(earlier, now):
    module = importlib.import_module(f"configs.{earlier}")
    assert module.get_config().to_dict() == config_files.load(now).to_dict()
    assert config_files.load(f"configs/{earlier}.py").to_dict() == config_files.load(now).to_dict()
    assert f"configs/{now.replace(':', '.py:')}" in module.__doc__


# Section 4.1 and Tables 5a and 5b; the augmentation is MoCo v2's (section 3.1), the masks' area that of section 4.3, the
# momentum MoCo's; the crops and the rectangle's aspect are the released code's (main.py).
_PRETRAINING = """
batch_size 256, epochs 200, image_size 224, bn_groups 4, key_shuffle "strided"
optimizer: name "sgd", learning_rate 0.03, momentum 0.9, weight_decay 1e-4, warmup_steps 0, schedule "cosine"
loss: queue_size 65536, momentum 0.999, temperature_instance 0.2, temperature_dense 1.0, alpha 0.2, alpha_instance 1.0
loss: dense_axis "key", skip_full_masks True, queue_start "random"
model: backbone "resnet", head "aspp", projection_dim 128, mean (0.485, 0.456, 0.406), std (0.229, 0.224, 0.225)
model.resnet: depth 50, output_stride 16, contract_dilation False, zero_init_residual False
model.aspp: channels 512, dilations (1, 6, 12, 18)
model.fcn: channels 256, num_convs 2, dilation 6, concat_input False
model.vit: patch 16, width 384, depth 12, heads 6, mlp_ratio 4, final_norm False
augment: brightness 0.4, contrast 0.4, saturation 0.4, hue 0.1, jitter_probability 0.8, grayscale 0.2, blur 0.5, flip 0.5
augment: blur_sigma (0.1, 2.0), mask "rectangle", mask_area (0.5, 0.8), mask_aspect (0.8, 1.25), mask_aspect_law "uniform"
data: crop_scale (0.2, 1.0), backgrounds "independent"
"""
_ADAMW = 'optimizer: name "adamw", learning_rate 5e-5'
# The released config_finetune.py, and MMSegmentation's pipelines for the other two data sets.
_FINETUNING = """
bn_groups 1
optimizer: name "sgd", momentum 0.9, schedule "poly", power 0.9, min_learning_rate 1e-4, warmup_steps 0, weight_decay 0.0
model.aspp: channels 512
model: dropout 0.1
auxiliary: weight 0.0
data: scale_range (0.5, 2.0), crop_max_ratio 0.75, flip 0.5, photometric True, ignore_label 255
evaluation: ratios (1.0,), flip False, window ()
"""
_ON = {
    "voc": """batch_size 16, steps 40_000
        optimizer: learning_rate 0.003
        data: crop_size (512, 512), resize (2048, 512), num_classes 21
        evaluation: resize (2048, 512)""",
    "cityscapes": """batch_size 8, steps 60_000
        optimizer: learning_rate 0.01
        data: crop_size (512, 1024), resize (2048, 1024), num_classes 19
        evaluation: resize (2048, 1024)""",
    "ade20k": """batch_size 16, steps 80_000
        optimizer: learning_rate 0.01
        data: crop_size (512, 512), resize (2048, 512), num_classes 150
        evaluation: resize (2048, 512)""",
}


@pytest.mark.parametrize(
    "name, text",
    [
        ("pretrain", _PRETRAINING),
        ("pretrain:vit", f'{_ADAMW}, weight_decay 0.01\nmodel: backbone "vit"\nbatch_size 256'),
        ("quick_tune", _PRETRAINING.replace("epochs 200", "epochs 20").replace('"random"', '"keys"')),
        ("finetune_voc:baseline", "optimizer: weight_decay 5e-4"),
        ("finetune_voc:vit", f'{_ADAMW}, min_learning_rate 0.0, schedule "poly"'),
        ("finetune_voc:vit,baseline", "optimizer: weight_decay 0.01"),
        *((f"finetune_{data}", _FINETUNING + more) for data, more in _ON.items()),
    ],
)
def test_values_are_the_papers(name, text):
    found = flatten(config_files.load(name))
    for line in text.strip().splitlines():
        section, _, values = line.strip().rpartition(": ")
        for key, value in re.findall(r"(\w+) (\([^)]*\)|[^ ,]+)", values):
            key = f"{section}.{key}" if section else key
            assert found[key] == ast.literal_eval(value), key


@pytest.mark.parametrize("name", ["pretrain", "pretrain:vit,fcn", "quick_tune", "quick_tune:fcn", "quick_tune:vit"])
def test_original_changes_what_the_table_says_and_nothing_else(name):
    """`:original` takes the released code's choices, which docs/paper_vs_code.md lists with key and value."""
    file, _, variants = name.partition(":")
    paper, default, original = (flatten(config_files.load(f"{file}:{variants},{v}")) for v in ("paper", "", "original"))
    assert paper == default and paper.keys() == original.keys()
    changed = {key: value for key, value in original.items() if value != paper[key]}
    listed = {}
    for row in (ROOT / "docs" / "paper_vs_code.md").read_text().splitlines():
        for key, value in re.findall(r"`([\w.]+) = ([^`]+)`", row) if row.startswith("|") else ():
            listed[key] = ast.literal_eval(value)
    assert pretrain.ORIGINAL == {key: listed[key] for key in pretrain.ORIGINAL}
    expected = {key: value for key, value in pretrain.ORIGINAL.items() if value != paper[key]}
    # The original's learning rate is that of SGD; its ViT runs must be given AdamW's 5e-5, as in the paper.
    assert changed == {k: v for k, v in expected.items() if k != "optimizer.learning_rate" or "vit" not in name}


def test_finetuning_has_the_originals_network():
    ours, paper = (flatten(config_files.load(f"finetune_voc:{variants}")) for variants in ("original", ""))
    pretraining = flatten(config_files.load("pretrain:original"))
    changed = {key: value for key, value in ours.items() if value != paper[key]}
    assert changed == {k: v for k, v in pretrain.ORIGINAL.items() if k.startswith("model.")}
    assert {k: v for k, v in pretraining.items() if k.startswith("model.")}.items() <= ours.items()


@pytest.mark.parametrize(
    "name, message",
    [
        ("pretrian", r"there is no config pretrian \(did you mean pretrain\?\)"),
        ("configs/finetune_vocs.py:vit", r"no file configs/finetune_vocs.py, .*did you mean finetune_voc\?"),
        ("elsewhere/pretrain.py", "there is no file elsewhere/pretrain.py"),
        ("_variants", "there is no config _variants"),
        ("pretrain:vit,fcm", r"pretrain:vit,fcm: there is no variant 'fcm' \(did you mean fcn\?\)"),
        ("pretrain:vit,r50", "'r50' and 'vit' exclude each other: both choose the backbone"),
        ("pretrain:demo,original", "'demo' and 'original' exclude each other"),
        ("study_demo:vit", "study_demo has no variants; leave out :vit"),
    ],
)
def test_a_name_that_leads_nowhere_is_told_the_nearest(name, message):
    with pytest.raises(ConfigError, match=message):
        config_files.load(name)


@pytest.mark.parametrize(
    "source, message",
    [
        ("def get_config():\n    return 1 / 0\n", "cannot be loaded: ZeroDivisionError"),
        ("import nowhere_at_all\n", "cannot be loaded: ModuleNotFoundError"),
        ("def get_config(:\n", "cannot be loaded: SyntaxError"),
        ("config = 1\n", "it has no function get_config"),
    ],
)
def test_a_users_file_that_is_broken(tmp_path, source, message):
    (tmp_path / "mine.py").write_text(source)
    with pytest.raises(ConfigError, match=message):
        config_files.load(str(tmp_path / "mine.py"))


def test_configs_are_found_from_any_directory(tmp_path):
    """Also by a user's file that builds on ours by the name that a checkout has, `configs`."""
    mine = "from configs import pretrain_demo\n\n\ndef get_config():\n    config = pretrain_demo.get_config()\n"
    (tmp_path / "mine.py").write_text(mine + "    config.seed = 7  # mine\n    return config\n")
    code = (
        "from cp2_jax import config_files as c\n"
        "print(c.load('mine.py').seed, c.load('pretrain:vit').model.backbone, c.load('configs/quick_tune.py').epochs)\n"
        "print({k.name: k.comment for k in c.keys_with_comments('mine.py')}['seed'])"
    )
    environment = os.environ | {"PYTHONPATH": ""}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "7 vit 20\nmine\n", done.stderr


def test_a_loaded_config_takes_no_new_keys():
    config = config_files.load("pretrain")
    with pytest.raises(AttributeError):
        config.optimizer.learning_rat = 1.0
    config.optimizer.learning_rate = 0.1
