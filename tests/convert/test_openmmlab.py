"""Config texts inside OpenMMLab's checkpoints: files of MMEngine 0.10.7, whose networks compute here what they do there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import checkpoints as make
from helpers.paths import DATA

from cp2_jax.convert import config_text, openmmlab
from cp2_jax.convert.containers.values import CheckpointFormatError, Refused
from cp2_jax.convert.importing import import_checkpoint
from cp2_jax.models import inputs, resize, segmenter
from cp2_jax.models.network import Network

STRIDE_8 = {"output_stride": 8, "contract_dilation": True}
STRIDE_16 = {"output_stride": 16, "contract_dilation": True}
BASIC = {"basic_dilation": "first"}
FCN = {"channels": 4, "num_convs": 2, "concat_input": True}
BGR = "made for BGR images: the channels of what reads the image were turned round to RGB"
# File → (settings of the backbone, of the head, notes).
FILES = {
    "deeplab_r50_d8": (STRIDE_8, {"channels": 4, "dilations": (1, 12, 24, 36)}, []),
    "deeplab_r18_d8": (STRIDE_8 | BASIC, {"channels": 4, "dilations": (1, 12, 24, 36)}, []),
    "deeplab_r18_d16": (STRIDE_16 | BASIC, {"channels": 4, "dilations": (1, 6, 12, 18)}, []),
    "fcn_r18_d8": (STRIDE_8 | BASIC, FCN | {"dilation": 1}, []),
    "fcn_d6_r18_d16_bgr": (STRIDE_16 | BASIC, FCN | {"dilation": 6}, [BGR]),
    "vit_fcn": ({"heads": 3, "remainder": "stretch"}, FCN | {"dilation": 1}, []),
    "vit_fcn_bgr": ({"heads": 3, "remainder": "stretch"}, FCN | {"dilation": 1}, [BGR]),
}


def imported(name, **options):
    return import_checkpoint(DATA / f"checkpoints/mmsegmentation_{name}.pth", **options)


@pytest.mark.parametrize("name", FILES)
def test_files_of_mmengine_compute_what_mmsegmentation_computes(name):
    """An image whose sides are multiples of nothing; helpers/make_mmsegmentation.py recorded the logits."""
    found, recorded = imported(name), np.load(DATA / "checkpoints/mmsegmentation_expected.npz")
    backbone, head, notes = FILES[name]
    model = found.meta["model"]
    assert backbone.items() <= model[model["backbone"]].items() and model[model["head"]] == head
    assert [note for note in found.meta["notes"] if "same as zero" not in note] == notes
    assert found.meta["input"] == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    network = Network.from_config(model | found.meta["input"])
    built = segmenter.build(network, top="classifier", image_size=model.get("image_size", 64))
    images = inputs.normalize(jnp.asarray(recorded["image"][None]), network.mean, network.std)
    logits = jax.jit(lambda v, x: built.apply(v, x, train=False))(found.variables, images)
    expected = recorded[f"{name}/logits"].transpose(0, 2, 3, 1)
    assert expected.std(axis=(1, 2)).min() > 1e-2 * np.abs(expected).max()  # the features do say something
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
    whole = recorded[f"{name}/whole"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(resize.bilinear(logits, (45, 70)), whole, atol=1e-5 * np.abs(whole).max())


def test_settings_of_another_network_are_told_apart_by_the_recorded_logits():
    """What the text says matters: without it the rates are guessed, and said to be."""
    found = imported("fcn_d6_r18_d16_bgr", config_text="ignore", heads=None)
    assert found.meta["model"]["fcn"]["dilation"] == 1 and any("is not stated" in note for note in found.meta["notes"])
    assert "dilation=1 is not stated" in found.report


MMCV = """model = dict(type='EncoderDecoder',
    backbone=dict(type='ResNet', depth=50, dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1)),
    decode_head=dict(type='FCNHead', in_channels=8, in_index=3, channels=4))
img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[57.375, 57.12, 58.395], to_rgb=False)"""


def read(text):
    return openmmlab.read({"meta": {"config": text}})


def test_texts_of_mmcv_and_the_classes_own_defaults():
    stated = read(MMCV)
    assert stated.backbone == {"output_stride": 8, "contract_dilation": False, "basic_dilation": "first"}
    assert stated.head == {"dilation": 1} and stated.bgr and stated.input[0] == (0.406, 0.456, 0.485)
    assert read(MMCV.replace("FCNHead", "ASPPHead")).head == {"dilations": (1, 6, 12, 18)}
    no_strides = MMCV.replace(", dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1)", "")
    assert read(no_strides).backbone["output_stride"] == 32
    vit = "model = dict(backbone=dict(type='VisionTransformer', depth=12), decode_head=dict(type='FCNHead', dilation=6))"
    stated = read(vit)
    assert stated.heads == 12 and stated.backbone == {"remainder": "drop"} and stated.head == {"dilation": 6}
    assert stated.input is None and openmmlab.read({"meta": {"epoch": 3}}) is None


def test_files_one_after_the_other_and_inheritance():
    """Older projects keep the config files themselves, with a line before each that says where it was."""
    text = """/home/me/configs/_base_/models/deeplabv3.py
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(backbone=dict(type='ResNet', norm_cfg=norm_cfg, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)),
             decode_head=dict(type='ASPPHead', dilations=(1, 2, 3)))

configs/mine.py
_base_ = ['_base_/models/deeplabv3.py']
model = dict(pretrained=None, decode_head=dict(num_classes=3), backbone=dict(contract_dilation=True))
"""
    stated = read(text)
    assert stated.backbone == {"output_stride": 16, "contract_dilation": True, "basic_dilation": "first"}
    assert stated.head == {"dilations": (1, 2, 3)}
    assert read(text.replace("dict(num_classes=3)", "dict(_delete_=True, type='FCNHead')")).head == {"dilation": 1}


@pytest.mark.parametrize(
    ("text", "mean", "bgr"),
    [
        ("img_norm_cfg = dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])", 0.485, False),  # OpenSelfSup
        ("train = [dict(type='Normalize', mean=[127.5] * 3, std=[1, 1, 1])]", None, None),
        ("p = [dict(type='A'), dict(type='Normalize', mean=[127.5, 127.5, 127.5], std=[51, 51, 51])]", 0.5, False),
        ("data_preprocessor = dict(mean=[51, 102, 153], std=[51, 51, 51])", 0.2, True),
        ("data_preprocessor = dict(mean=[51, 102, 153], std=[51, 51, 51], rgb_to_bgr=True)", 0.2, False),
    ],
)
def test_input_normalisations(text, mean, bgr):
    if mean is None:
        with pytest.raises(Refused, match="mean=.*UNKNOWN|mean=.* of the input"):
            read(text)
        return
    stated = read(text)
    assert stated.input[0][0] == pytest.approx(mean) and stated.bgr is bgr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = dict(", "it is no Python .*line 1"),
        ("model = dict(a=1)\nmodel.update(b=2)", "line 2 is no assignment"),
        ("model = dict(a=1)\nmodel['b'] = 2", "line 2 is no assignment"),
        ("for x in (1, 2):\n    model = x", "line 1 is no assignment"),
        ("model = build()", "`model` is no dict"),
        ("model = dict(backbone=dict(num_heads=int('4')))", "model.backbone.num_heads"),
        (MMCV.replace("(1, 2, 1, 1)", "4"), "model.backbone.strides is 4"),
        (MMCV.replace("(1, 2, 1, 1)", "(1, 1, 1, 1)"), r"strides \(1, 1, 1, 1\) with dilations \(1, 1, 2, 4\);"),
        (MMCV.replace("depth=50", "style='caffe'"), "style='caffe'"),
        (MMCV.replace("depth=50", "multi_grid=(1, 2, 4)"), "multi_grid"),
        (MMCV.replace("depth=50", "norm_cfg=dict(eps=1e-3)"), "norm_cfg.eps=0.001"),
        (MMCV.replace("in_index=3", "in_index=1, input_transform='multiple_select'"), "input_transform"),
        (MMCV.replace("depth=50", "out_indices=(0, 1, 2, 3)").replace("in_index=3", "in_index=2"), "in_index=2"),
        (MMCV.replace("in_index=3", "act_cfg=dict(type='GELU')"), "act_cfg"),
        ("model = dict(decode_head=[dict(type='FCNHead'), dict(type='ASPPHead')])", "cascade"),
        (MMCV + "\ntest = dict(type='Normalize', mean=[0.5, 0.5, 0.5], std=[2, 2, 2])", "2 input normalisations"),
        ("img_norm_cfg = dict(mean=[0, 0, 0], std=[1, 1, 1])", "mean 0 and std 1 go with"),
        ("img_norm_cfg = dict(mean=[1, 1, 1], std=[0, 1, 1])", "std="),
        ("x = " + "[" * 150 + "]" * 150, None),
        ("x = " + "-" * 3000 + "1", "nested too deep|it is no Python"),
        ("x = 1" + " + 1" * 50_000, "nested too deep"),
        ("x = '" + "a" * 300_000 + "'", "characters"),
        ("model = dict(backbone=dict(num_heads=4, interpolate_mode='nearest'))", "interpolate_mode='nearest'"),
        ("model = dict(backbone=dict(num_heads=4, with_cls_token=False))", "with_cls_token=False"),
    ],
)
def test_what_is_not_understood_or_cannot_be_computed_stops(text, message):
    if message is None:
        assert "x" in config_text.parse(text)
        return
    with pytest.raises(Refused, match=message):
        read(text)


def test_nothing_in_a_text_is_executed(tmp_path):
    canary = tmp_path / "canary"
    text = f"model = dict(backbone=dict(depth=open({str(canary)!r}, 'w')))\nx = __import__('os').mkdir({str(canary)!r})"
    assert config_text.parse(text)["x"] is config_text.UNKNOWN and not canary.exists()


def test_the_way_out_of_a_text_that_is_not_understood(tmp_path):
    state = make.TORCH["mmseg"][1]["state_dict"]
    make.save_torch(tmp_path / "x.pth", {"meta": {"config": MMCV + "\nmodel.update()"}, "state_dict": state})
    with pytest.raises(CheckpointFormatError, match="x.pth: the config text inside.*line 5.*--config-text ignore"):
        import_checkpoint(tmp_path / "x.pth")
    found = import_checkpoint(tmp_path / "x.pth", config_text="ignore")
    assert found.meta["model"]["resnet"]["output_stride"] == 16 and "taken as in CP²'s code" in found.report


def test_rates_that_do_not_go_with_the_branches(tmp_path):
    state = make.TORCH["mmseg"][1]["state_dict"]
    text = MMCV.replace("FCNHead'", "ASPPHead', dilations=(1, 2)")
    make.save_torch(tmp_path / "x.pth", {"meta": {"config": text}, "state_dict": state})
    with pytest.raises(CheckpointFormatError, match=r"the rates \(1, 2\), where the head's branches are 1x1, 3x3, 3x3"):
        import_checkpoint(tmp_path / "x.pth")
