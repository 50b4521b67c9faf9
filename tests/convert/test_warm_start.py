"""How runs start from checkpoints: which parts are taken, what is refused, and Quick Tuning from file to finished run."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import checkpoints as make
from helpers import tiny
from helpers.command_line import cp2
from helpers.networks import STAGES
from helpers.tiny import differs
from PIL import Image

from configs import quick_tune_r50_fcn
from cp2_jax.convert import warm_start
from cp2_jax.convert.importing import import_checkpoint
from cp2_jax.models import segmenter
from cp2_jax.pretraining import step as pretrain_step
from cp2_jax.runs import checkpoints, mesh
from cp2_jax.runs.checkpoints import CheckpointError
from cp2_jax.segmentation import step as finetune_step

BLOCKS = (1, 1, 1, 1)


def tiny_config(**changes):
    config = tiny.finetune_config()
    config.update_from_flattened_dict(changes)
    return config


def pretrained(config):
    """Variables of a pretraining model, other than what seed 0 gives."""
    model = segmenter.build(config.model, top="projection", image_size=config.image_size)
    return jax.jit(lambda: model.init(jax.random.key(1), jnp.zeros((2, 32, 32, 3)), train=False))()


@pytest.mark.parametrize("head", ["checkpoint", "random"])
def test_merge_loads_what_is_wanted_and_says_so(head):
    config = tiny_config()
    initial, loaded = finetune_step.init_variables(config), pretrained(config)
    loaded = jax.tree.map(lambda x: np.asarray(x, np.float64) + 0.5, loaded)  # as read from disk, and unlike any start
    variables, table = warm_start.merge(initial, loaded, head)

    def same(tree, part, other):
        return not differs(tree["params"][part], other["params"][part])

    assert same(variables, "backbone", loaded) and same(variables, "classifier", initial)
    assert same(variables, "head", loaded if head == "checkpoint" else initial)
    assert not differs(variables["batch_stats"]["backbone"], loaded["batch_stats"]["backbone"])
    assert "projection" not in variables["params"]
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(variables))
    rows = {(line.split()[0], " ".join(line.split()[1:-2])) for line in table.splitlines()[1:]}
    expected = {("backbone", "loaded"), ("classifier", "initial"), ("projection", "left out")}
    expected |= {("head", "loaded")} if head == "checkpoint" else {("head", "initial"), ("head", "left out")}
    assert rows == expected


def test_merge_refuses_what_does_not_fit():
    config = tiny_config()
    initial, loaded = finetune_step.init_variables(config), pretrained(config)
    other = tiny_config(**{"model.aspp.channels": 16})
    with pytest.raises(warm_start.InitError, match=r"head/aspp_0/conv/kernel: checkpoint \(1, 1, 32, 16\), model .* 8\)"):
        warm_start.merge(initial, pretrained(other), "checkpoint")
    warm_start.merge(initial, pretrained(other), "random")  # its backbone fits
    without_head = {k: {p: v for p, v in tree.items() if p != "head"} for k, tree in loaded.items()}
    with pytest.raises(warm_start.InitError, match="head: not in the checkpoint.*init.head=random"):
        warm_start.merge(initial, without_head, "checkpoint")
    with pytest.raises(warm_start.InitError, match="backbone: not in the checkpoint"):
        warm_start.merge(initial, {"params": {"something": {"kernel": np.zeros(3)}}}, "random")
    part = jax.tree.map(lambda x: x, dict(loaded))
    del part["params"]["backbone"]["conv1"]
    with pytest.raises(warm_start.InitError, match="params/backbone/conv1/kernel: checkpoint absent"):
        warm_start.merge(initial, part, "checkpoint")


def quick_config(checkpoint, **changes):
    """Quick Tuning of a residual network two channels wide, as `converted` has one."""
    config = quick_tune_r50_fcn.get_config()
    config.update(image_size=32, batch_size=8, bn_groups=2, steps=2)
    config.init.checkpoint = str(checkpoint)
    config.model.dtype = "float32"
    config.model.resnet.update(depth=18, stage_sizes=BLOCKS, width=2, stem_width=2, output_stride=8)
    config.model.fcn.channels = 4
    config.augment.update(jitter_probability=0.0, grayscale=0.0, blur=0.0)
    config.loss.queue_size = 16
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A converted torchvision ResNet of one block a stage, and one of CP2's own models with head and projection."""
    folder = tmp_path_factory.mktemp("converted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(STAGES, 18, BLOCKS)
        backbone = make.resnet(18)
    cp2 = make.under("module.encoder_q.backbone.", backbone)
    cp2 |= make.under("module.encoder_q.decode_head.", make.head("fcn", 16))
    moco = make.under("module.encoder_q.", backbone | make.some("fc.0.weight"))
    make.save_torch(folder / "moco.pth.tar", {"state_dict": moco})
    make.save_torch(folder / "cp2.pth.tar", {"state_dict": cp2})
    for name in ("moco", "cp2"):
        imported = import_checkpoint(folder / f"{name}.pth.tar", stage_sizes=BLOCKS)
        checkpoints.write_variables(folder / name, imported.variables, imported.meta)
    return folder


@pytest.fixture(scope="module")
def fresh():
    return jax.jit(lambda: pretrain_step.init_variables(quick_config("")))()


def test_quick_tuning_takes_the_backbone_alone(converted, fresh):
    config = quick_config(converted / "moco")
    variables, table = warm_start.start(config, fresh)
    loaded, _ = checkpoints.read_variables(converted / "moco")
    for collection in ("params", "batch_stats"):
        assert not differs(variables[collection]["backbone"], loaded[collection]["backbone"])
    for part in ("head", "projection"):
        assert not differs(variables["params"][part], fresh["params"][part])
    rows = [line.split()[:2] for line in table.splitlines()[2:]]
    assert rows == [["backbone", "loaded"], ["head", "initial"], ["projection", "initial"]]
    # The state that follows: both encoders the same, queue of unit vectors, nothing counted yet.
    initial_state, step = pretrain_step.make_step(config, 2, 2, mesh.make_mesh())
    state = initial_state(variables)
    assert not differs(state.params, variables["params"]) and not differs(state.key_params, variables["params"])
    assert not differs(state.key_batch_stats, variables["batch_stats"])
    crops = np.random.default_rng(0).integers(0, 256, (8, 2, 32, 32, 3), dtype=np.uint8)
    batch = mesh.place_batch(mesh.make_mesh(), {"foreground": crops, "background": crops[::-1].copy()})
    state, metrics = step(state, batch)
    assert float(metrics.compute()["loss_instance"]) == 0  # no real key yet: nothing to tell apart
    state, metrics = step(state, batch)
    # Eight real keys of one row; sixteen with the random row, which would make the loss larger.
    assert 0 < float(metrics.compute()["loss_instance"])


def test_head_and_projection_come_from_the_checkpoint_if_wanted(converted, fresh):
    everything = {"init.head": "checkpoint", "init.projection": "checkpoint", "model.projection_dim": 8}
    stated = {"contract_dilation": True, "output_stride": 16, "basic_dilation": "first"}
    everything |= {f"model.resnet.{key}": value for key, value in stated.items()}
    config = quick_config(converted / "cp2", **everything)
    initial = jax.jit(lambda: pretrain_step.init_variables(config))()
    variables, table = warm_start.start(config, initial)
    loaded, _ = checkpoints.read_variables(converted / "cp2")
    assert not differs(variables["params"], loaded["params"]) and "mind" not in table
    config = quick_config(converted / "cp2", **{"init.head": "checkpoint"})
    variables, table = warm_start.start(config, fresh)
    assert not differs(variables["params"]["head"], loaded["params"]["head"])
    assert not differs(variables["params"]["projection"], fresh["params"]["projection"])
    # The same weights under another dilation are another network: said, not refused.
    assert "mind: the checkpoint was made with config.model.resnet.contract_dilation=True (is False)" in table
    assert "mind: the checkpoint was made with config.model.resnet.output_stride=16 (is 8)" in table


@pytest.mark.parametrize(
    "name,changes,message",
    [
        ("moco", {"init.head": "checkpoint"}, "head: not in the checkpoint, which has backbone; set init.head=random"),
        ("moco", {"init.projection": "checkpoint"}, "projection: not in the checkpoint.*set init.projection=random"),
        ("cp2", {"init.projection": "checkpoint"}, r"projection/conv2/bias: checkpoint \(8,\), model \(128,\)"),
        ("moco", {"model.resnet.width": 4}, r"moco.pth.tar \(moco_v2\) needs .*config.model.resnet.width=2 \(is 4\)"),
        ("moco", {"model.resnet.padding": "same"}, r"config.model.resnet.padding='torch' \(is 'same'\)"),
        ("moco", {"model.mean": (0.0, 0.0, 0.0)}, r"config.model.mean=\(0.485, 0.456, 0.406\) \(is \(0.0"),
        ("moco", {"model.backbone": "vit"}, "is a resnet: set config.model.backbone=resnet"),
        ("nowhere", {}, "no checkpoint at .*nowhere"),
        ("moco.pth.tar", {}, "moco.pth.tar is a file; .*cp2 convert .*moco.pth.tar OUTPUT"),
    ],
)
def test_what_cannot_be_started_from_is_an_error(converted, fresh, name, changes, message):
    with pytest.raises((warm_start.InitError, CheckpointError), match=message):
        warm_start.start(quick_config(converted / name, **changes), fresh)


def test_finetuning_compares_with_the_pretraining_run_and_its_input(tmp_path, converted):
    """Heads and input that weights do not tell are in the run's own config."""
    config = tiny_config(**{"model.head": "fcn", "model.fcn.channels": 4, "init.head": "random"})
    config.model.resnet.update(width=2, stem_width=2)
    config.init.checkpoint = str(tmp_path)
    loaded, _ = checkpoints.read_variables(converted / "moco")
    run = quick_config("", **{"model.std": (0.5, 0.5, 0.5)}).to_dict()
    checkpoints.write_variables(tmp_path, loaded, {"kind": "pretrain", "config": run})
    with pytest.raises(CheckpointError, match=r"pretrain run needs .*config.model.std=\(0.5, 0.5, 0.5\) \(is \(0.229,"):
        warm_start.start(config, finetune_step.init_variables(config))
    config.model.std = (0.5, 0.5, 0.5)
    variables, _ = warm_start.start(config, finetune_step.init_variables(config))
    assert not differs(variables["params"]["backbone"], loaded["params"]["backbone"])


def test_one_command_from_a_converted_file_to_a_finished_run(tmp_path, converted, capsys):
    """`cp2 pretrain`: the checkpoint is read once, at the start; a resumed run does not need it."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(16):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{index}.png")
    shutil.copytree(converted / "moco", tmp_path / "moco")
    options = dict(
        data__path=tmp_path / "images",
        init__checkpoint=tmp_path / "moco",
        image_size=32,
        batch_size=8,
        bn_groups=2,
        data__workers=0,
        picture_every=0,
        probe_every=0,
        log_every=1,
        augment__jitter_probability=0.0,
        augment__grayscale=0.0,
        augment__blur=0.0,
        model__dtype="float32",
        model__resnet__depth=18,
        model__resnet__stage_sizes=BLOCKS,
        model__resnet__width=2,
        model__resnet__stem_width=2,
        model__fcn__channels=4,
        loss__queue_size=16,
    )

    def run(steps):
        arguments = ["--config=quick_tune_r50_fcn:original", f"--workdir={tmp_path / 'run'}", f"--config.steps={steps}"]
        arguments += [f"--config.{key.replace('__', '.')}={value}" for key, value in options.items()]
        status, out, errors = cp2(capsys, "pretrain", *arguments)
        assert status == 0, errors
        return out

    out = run(1)
    assert f"backbone from {tmp_path / 'moco'}; head, projection at random" in out and "finished: 1 steps" in out
    overview = (tmp_path / "run" / "overview.txt").read_text()
    assert f"{tmp_path / 'moco'}:\npart " in overview and "backbone     loaded" in overview
    shutil.rmtree(tmp_path / "moco")
    out = run(2)
    assert "resuming after step 1" in out and "at random" not in out and "finished: 2 steps" in out
    _, meta = checkpoints.read(tmp_path / "run")
    assert meta["config"]["loss"] | {"dense_axis": "query", "queue_start": "random"} == meta["config"]["loss"]
