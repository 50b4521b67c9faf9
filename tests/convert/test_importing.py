"""Every format, detected by itself and converted to the same variables; what is missing or foreign is an error."""

import json
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from helpers import checkpoints as make
from helpers import networks
from helpers.checkpoints import RESNET, TORCH, VIT, some, under
from helpers.command_line import cp2
from helpers.paths import ROOT
from safetensors.numpy import save_file

from configs import pretrain_r50_aspp
from cp2_jax.convert import exporting, names
from cp2_jax.convert.containers.values import CheckpointFormatError
from cp2_jax.convert.importing import import_checkpoint
from cp2_jax.models import segmenter
from cp2_jax.runs import checkpoints


def leaves(tree, path=""):
    if not isinstance(tree, dict):
        return {path: tree}
    return {k: v for name, node in tree.items() for k, v in leaves(node, f"{path}/{name}").items()}


def same(found, expected):
    a, b = leaves(found), leaves(expected)
    assert a.keys() == b.keys(), sorted(a.keys() ^ b.keys())[:5]
    for name in a:
        assert a[name].dtype == np.float32
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def backbone_of(state):
    return names.variables_from_torch({f"backbone.{n}": a for n, a in state.items()})


def part(variables, name):
    return {kind: {name: tree[name]} for kind, tree in variables.items() if name in tree}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", TORCH)
def test_pytorch_formats(tmp_path, name, legacy):
    expected_format, tree, expected = TORCH[name]
    make.save_torch(tmp_path / "x.pth.tar", tree, legacy)
    imported = import_checkpoint(tmp_path / "x.pth.tar")
    assert imported.meta["format"] == expected_format
    found = part(imported.variables, "backbone")
    same(found, {kind: tree for kind, tree in backbone_of(expected).items() if tree})
    if expected is RESNET:
        # Written out, so that a mistake in `names` shows: OIHW to HWIO, and which batch norm is which.
        kernel = imported.variables["params"]["backbone"]["layer3_4"]["conv2"]["kernel"]
        np.testing.assert_array_equal(kernel, RESNET["layer3.4.conv2.weight"].transpose(2, 3, 1, 0))
        mean = imported.variables["batch_stats"]["backbone"]["layer2_0"]["downsample_bn"]["mean"]
        np.testing.assert_array_equal(mean, RESNET["layer2.0.downsample.1.running_mean"])
        kernels = [n for n in leaves(imported.variables["params"]["backbone"]) if n.endswith("kernel")]
        scales = [n for n in leaves(imported.variables["params"]["backbone"]) if n.endswith("scale")]
        assert len(kernels) == len(scales) == 53
        assert imported.meta["model"]["resnet"]["depth"] == 50


@pytest.mark.parametrize(
    ("name", "save"),
    [("byol", make.save_byol), ("detcon", make.save_detcon), ("simclr_tensorflow", make.save_tensorflow)],
)
def test_haiku_and_tensorflow_formats(tmp_path, name, save):
    path = tmp_path / {"byol": "byol.pkl", "detcon": "detcon.npy"}.get(name, "model.ckpt-7")
    save(path)
    imported = import_checkpoint(path)
    assert imported.meta["format"] == name
    same(imported.variables, backbone_of(RESNET))
    assert imported.meta["model"]["resnet"]["padding"] == ("same_pool" if name == "simclr_tensorflow" else "same")
    assert imported.meta["input"]["mean"] == ([0, 0, 0] if name == "simclr_tensorflow" else [0.485, 0.456, 0.406])


@pytest.mark.parametrize("modern", [False, True])
@pytest.mark.parametrize("prefix", ["", "vit."])
def test_hugging_face_fuses_query_key_value(tmp_path, prefix, modern):
    state = under(prefix, networks.hugging_face(VIT, modern)) | some("classifier.weight", f"{prefix}pooler.dense.weight")
    save_file(state, tmp_path / "model.safetensors")
    imported = import_checkpoint(tmp_path / "model.safetensors")
    assert imported.meta["format"] == "hugging_face"
    same(part(imported.variables, "backbone"), {"params": backbone_of(VIT)["params"]})
    state.pop(next(n for n in state if "key" in n or "k_proj" in n))
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointFormatError, match="of query, key and value only"):
        import_checkpoint(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["moco_v2", "torchvision", "timm", "densecl", "cp2", "mmseg"])
def test_safetensors_in_any_of_the_layouts(tmp_path, name):
    form, tree, expected = TORCH[name]
    state = tree.get("state_dict", tree)
    save_file(dict(state), tmp_path / "x.safetensors")
    imported = import_checkpoint(tmp_path / "x.safetensors")
    assert imported.meta["format"] == form
    same(part(imported.variables, "backbone"), {k: v for k, v in backbone_of(expected).items() if v})


@pytest.mark.parametrize(("name", "heads"), [("A_resnet_aspp", None), ("A_resnet_fcn", None), ("A_vit_aspp", 3)])
def test_the_originals_own_names_and_features(tmp_path, reference, name, heads):
    # state/ holds the state_dict of the original's model, out_eval what it computed.
    recorded = reference(name)
    state = {key.removeprefix("state/"): recorded[key] for key in recorded.files if key.startswith("state/")}
    make.save_torch(tmp_path / "x.pth.tar", {"epoch": 1, "state_dict": under("module.encoder_q.", state)})
    imported = import_checkpoint(tmp_path / "x.pth.tar", heads=heads)
    assert imported.meta["format"] == "cp2"
    model = pretrain_r50_aspp.get_config().model
    found = imported.meta["model"]
    model.update(backbone=found["backbone"], head=found["head"], dtype="float32")
    model[found["head"]].channels = found[found["head"]]["channels"]
    for key in model[found["backbone"]]:
        if key in found[found["backbone"]]:
            model[found["backbone"]][key] = found[found["backbone"]][key]
    model.resnet.contract_dilation = True
    images = recorded["images"].transpose(0, 2, 3, 1)
    network = segmenter.build(model, top="projection", image_size=found.get("image_size", 64))
    features = jax.jit(lambda v, x: network.apply(v, x, train=False))(imported.variables, images)
    np.testing.assert_allclose(features, recorded["out_eval"].transpose(0, 2, 3, 1), atol=1e-4)
    if heads:
        with pytest.raises(CheckpointFormatError, match="do not divide 48"):
            import_checkpoint(tmp_path / "x.pth.tar", heads=7)
    exported = exporting.state_dict(imported.variables, imported.meta, "mmseg")
    for key, array in exported.items():
        np.testing.assert_array_equal(array, state[key], err_msg=key)
    assert {key for key in state if "conv_seg" not in key} == exported.keys()


def test_heads_are_loaded_with_the_backbone(tmp_path):
    make.save_torch(tmp_path / "x.pth", TORCH["cp2"][1])
    imported = import_checkpoint(tmp_path / "x.pth")
    head = make.head("aspp", 64)
    params = imported.variables["params"]
    assert set(params) == {"backbone", "head", "projection"}  # conv_seg is untrained here
    kernel = head["aspp_modules.2.conv.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(params["head"]["aspp_2"]["conv"]["kernel"], kernel)
    np.testing.assert_array_equal(params["projection"]["conv2"]["bias"], head["contrast_conv.2.bias"])
    assert "the classifier, which pretraining leaves" in " ".join(imported.report.split())
    assert max(map(len, imported.report.splitlines()[1:])) <= 80
    make.save_torch(tmp_path / "x.pth", TORCH["mmseg"][1])
    imported = import_checkpoint(tmp_path / "x.pth")
    assert set(imported.variables["params"]) == {"backbone", "head", "classifier"}
    assert imported.meta["model"]["num_classes"] == 5 and imported.meta["model"]["aspp"] == {"channels": 4}


def test_the_report_says_what_went_where(tmp_path):
    make.save_torch(tmp_path / "x.pth.tar", TORCH["moco_v2"][1])
    report = import_checkpoint(tmp_path / "x.pth.tar").report
    loaded, _, rest = report.partition("left out")
    assert "MoCo v2 (ResNet) (moco_v2), torch zip" in loaded
    assert "module.encoder_q.layer3.* (95 tensors)  -> backbone/layer3_0 … 5" in loaded
    out, _, rest = rest.partition("keeps its initial value")
    for line in ("module.encoder_k.* (318 tensors)", "module.queue ", "module.encoder_q.fc.* (2 tensors)", "optimizer"):
        assert line in out, out
    assert "head, projection, classifier" in rest
    path, *lines = report.splitlines()
    assert path == str(tmp_path / "x.pth.tar")  # whole, however long
    assert max(map(len, lines)) <= 80 and len(lines) < 40


@pytest.mark.parametrize(
    ("tree", "form"),
    [
        (TORCH["moco_v2"][1] | {"state_dict": under("module.", TORCH["moco_v2"][1]["state_dict"])}, "moco_v2"),
        (under("module.module.", RESNET), "torchvision"),
        (under("_orig_mod.", RESNET), "torchvision"),
        ({"state_dict": under("module._orig_mod.encoder_q.", RESNET)}, "moco_v2"),
        ({"net": RESNET, "epoch": 3, "optimizer": {"state": {}}}, "torchvision"),
    ],
    ids=["DDP twice", "DataParallel twice", "compiled", "compiled DDP", "another entry"],
)
def test_wrapped_networks_and_entries_of_other_names(tmp_path, tree, form):
    make.save_torch(tmp_path / "x.pth", tree)
    imported = import_checkpoint(tmp_path / "x.pth")
    assert imported.meta["format"] == form
    same(imported.variables, backbone_of(RESNET))


@pytest.mark.parametrize(
    ("prefix", "state"),
    [("model.", RESNET), ("student.backbone.", VIT), ("net.trunk.", RESNET), ("lightning.encoder.", VIT)],
)
def test_prefixes_that_no_format_has_are_named_and_taken_off(tmp_path, prefix, state):
    others = {"loss.weight": np.zeros(3, np.float32)}
    make.save_torch(tmp_path / "x.pth", {"state_dict": under(prefix, state) | others, "epoch": 1})
    with pytest.raises(CheckpointFormatError, match=f"names that begin with {prefix}: .* --prefix {prefix}$"):
        import_checkpoint(tmp_path / "x.pth")
    imported = import_checkpoint(tmp_path / "x.pth", prefix=prefix)
    same(imported.variables, backbone_of(state))
    with pytest.raises(CheckpointFormatError, match="--prefix module.: no tensor's name begins so; it has"):
        import_checkpoint(tmp_path / "x.pth", prefix="module.")


def test_several_networks_under_prefixes_are_all_named(tmp_path):
    make.save_torch(tmp_path / "x.pth", {"state_dict": under("student.", RESNET) | under("teacher.", RESNET)})
    with pytest.raises(CheckpointFormatError, match="one of student., teacher.: take that off with --prefix student."):
        import_checkpoint(tmp_path / "x.pth")
    same(import_checkpoint(tmp_path / "x.pth", prefix="teacher.").variables, backbone_of(RESNET))


def children(state):
    """The names of torch.nn.Sequential(*resnet.children())."""
    numbers = dict(conv1="0", bn1="1", layer1="4", layer2="5", layer3="6", layer4="7")
    split = ((name.split(".", 1), array) for name, array in state.items())
    return {f"{numbers[first]}.{rest}": array for (first, rest), array in split}


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.encoder_q."])
def test_torchvisions_children_by_number(tmp_path, prefix):
    make.save_torch(tmp_path / "x.pth", {"state_dict": under(prefix, children(RESNET))})
    same(import_checkpoint(tmp_path / "x.pth").variables, backbone_of(RESNET))


def test_segmentation_models_state_their_strides_and_rates(tmp_path):
    """MMSegmentation's DeepLab v3 at output stride 8, as its config text has it; CP2's own has no such text."""
    text = """model = dict(type='EncoderDecoder',
    backbone=dict(type='ResNet', depth=50, dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1), contract_dilation=True),
    decode_head=dict(type='ASPPHead', in_channels=8, dilations=(1, 12, 24, 36)),
    auxiliary_head=dict(type='FCNHead', dilation=3))"""
    mmseg = TORCH["mmseg"][1]["state_dict"]
    make.save_torch(tmp_path / "x.pth", {"meta": {"config": text}, "state_dict": mmseg})
    model = import_checkpoint(tmp_path / "x.pth").meta["model"]
    assert model["resnet"]["output_stride"] == 8 and model["resnet"]["contract_dilation"] is True
    assert model["aspp"]["dilations"] == (1, 12, 24, 36)
    make.save_torch(tmp_path / "x.pth", {"state_dict": mmseg})
    model = import_checkpoint(tmp_path / "x.pth").meta["model"]
    assert model["resnet"]["output_stride"] == 16 and "dilations" not in model["aspp"]


def test_config_files_beside_a_file_tell_heads_and_input(tmp_path):
    save_file(networks.hugging_face(VIT, False), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 2}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    meta = import_checkpoint(tmp_path / "model.safetensors").meta
    assert meta["model"]["vit"]["heads"] == 2 and meta["input"] == {"mean": [0.5] * 3, "std": [0.5] * 3}
    assert import_checkpoint(tmp_path / "model.safetensors", input="imagenet").meta["input"]["mean"][0] == 0.485
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointFormatError, match="config.json beside it"):
        import_checkpoint(tmp_path / "model.safetensors")


def test_bgr_models_have_their_first_convolution_turned_round(tmp_path):
    config = "img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[57.375, 57.12, 58.395], to_rgb=False)"
    make.save_torch(tmp_path / "x.pth", {"meta": {"config": config}, "state_dict": under("backbone.", RESNET)})
    imported = import_checkpoint(tmp_path / "x.pth")
    kernel = imported.variables["params"]["backbone"]["conv1"]["kernel"]
    np.testing.assert_array_equal(kernel, RESNET["conv1.weight"].transpose(2, 3, 1, 0)[:, :, ::-1])
    np.testing.assert_allclose(imported.meta["input"]["mean"], [0.485, 0.456, 0.406], atol=1e-3)
    rgb = "img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)"
    make.save_torch(tmp_path / "x.pth", {"meta": {"config": rgb}, "state_dict": under("backbone.", RESNET)})
    imported = import_checkpoint(tmp_path / "x.pth")
    assert imported.meta["input"]["mean"] == [0.485, 0.456, 0.406]
    same(imported.variables, backbone_of(RESNET))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_precisions_become_float32(tmp_path, dtype):
    stored = {n: a.astype(dtype) if a.dtype == np.float32 else a for n, a in RESNET.items()}
    save_file(stored, tmp_path / "x.safetensors")
    imported = import_checkpoint(tmp_path / "x.safetensors")
    exact = {n: a.astype(np.float32) for n, a in stored.items()}
    same(imported.variables, backbone_of(exact))
    assert np.dtype(dtype).name in imported.report


def test_the_commands_from_download_to_export(tmp_path, capsys):
    make.save_torch(tmp_path / "moco.pth.tar", TORCH["moco_v2"][1])
    command = [sys.executable, ROOT / "scripts/convert_checkpoint.py", tmp_path / "moco.pth.tar", tmp_path / "converted"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "module.encoder_q.layer1.* (50 tensors)" in done.stdout and "written to" in done.stdout
    variables, meta = checkpoints.read_variables(tmp_path / "converted")
    same(variables, backbone_of(RESNET))
    assert meta["kind"] == "converted" and meta["format"] == "moco_v2" and len(meta["sha256"]) == 64
    status, _, errors = cp2(capsys, "convert", tmp_path / "moco.pth.tar", tmp_path / "converted")
    assert status == 1 and "exists" in errors
    status, _, errors = cp2(capsys, "export", tmp_path / "converted", tmp_path / "out.pth", "--layout", "torchvision")
    assert status == 0, errors
    assert import_checkpoint(tmp_path / "out.pth").meta["format"] == "torchvision"
    (tmp_path / "bad.pth").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    status, _, errors = cp2(capsys, "convert", tmp_path / "bad.pth", tmp_path / "other")
    assert status == 1 and errors.count("\n") == 1 and "os.system" in errors
    assert not (tmp_path / "other").exists()
