"""Files that are not taken, or not without being asked for: each refusal says what the file is and what to do."""

import fractions
import pickle

import numpy as np
import pytest
from helpers import checkpoints as make
from helpers.checkpoints import RESNET, VIT, some, under

from cp2_jax.convert import detection, formats
from cp2_jax.convert.containers.values import CheckpointFormatError, Refused
from cp2_jax.convert.importing import import_checkpoint


def changed(state, **changes):
    state = dict(state)
    for name, array in changes.items():
        name = name.replace("__", ".")
        if array is None:
            del state[name]
        else:
            state[name] = array
    return state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (changed(RESNET, layer4__1__conv2__weight=None), "backbone.layer4.1.conv2.weight is missing (nearest: layer4."),
        (changed(RESNET, layer4__1__bn2__running_var=None), "backbone.layer4.1.bn2.running_var is missing"),
        (changed(RESNET, conv1__weight=None), "backbone.conv1.weight is missing"),
        (changed(RESNET, bn1__bias=np.zeros(3, np.float32)), "bn1.bias is (3,), backbone.bn1.bias takes (2,)"),
        ({n: a for n, a in RESNET.items() if not n.startswith("layer3.5")}, "3-4-5-3 bottleneck blocks, as no known"),
        ({n: a for n, a in RESNET.items() if not n.startswith("layer3.2")}, "backbone.layer3.2.conv1.weight is missing"),
        (changed(RESNET, layer1__0__conv3__bias=np.zeros(8, np.float32)), "layer1.0.conv3.bias: no such tensor"),
        (changed(RESNET, layer2__1__se__fc1__weight=np.zeros((2, 2), np.float32)), "se.fc1.weight: no such tensor"),
        (changed(RESNET, stem__0__weight=np.zeros((2, 3, 3, 3), np.float32)), "ResNetV1c"),
        (changed(RESNET, conv1__weight=np.full((2, 3, 7, 7), np.nan, np.float32)), "not finite"),
        (changed(VIT, pos_embed=VIT["pos_embed"][:, 1:]), "without an entry for the class token"),
        (changed(VIT, pos_embed=VIT["pos_embed"][:, 2:]), "no square"),
        (changed(VIT, blocks__1__attn__qkv__bias=None), "backbone.blocks.1.attn.qkv.bias is missing"),
        (changed(VIT, norm__bias=None), "backbone.norm.bias is missing"),
        (changed(VIT, dist_token=np.zeros((1, 1, 64), np.float32)), "distilled DeiT"),
        (changed(VIT, blocks__0__ls1__gamma=np.zeros(64, np.float32)), "a ViT with layer scale"),
        ({"features.0.weight": np.zeros((2, 3, 3, 3), np.float32)}, "(1 tensors; it has features.0"),
        ({"layer1.0.conv1.weights": np.zeros(3, np.float32)}, "nearest: layer1.0.conv1.weights"),
        ({"epoch": 3}, "holds no named tensors (its entries: epoch)"),
    ],
)
def test_what_does_not_fit_is_an_error(tmp_path, state, message):
    make.save_torch(tmp_path / "x.pth", state)
    with pytest.raises(CheckpointFormatError) as caught:
        import_checkpoint(tmp_path / "x.pth")
    assert message in str(caught.value) and "x.pth" in str(caught.value)


def test_whole_prefixes_only(tmp_path):
    # `encoder_q` alone must not be taken from `encoder_query`, nor the key encoder for the query encoder.
    make.save_torch(tmp_path / "x.pth", {"state_dict": under("module.encoder_query.", RESNET)})
    with pytest.raises(CheckpointFormatError, match="no known format"):
        import_checkpoint(tmp_path / "x.pth")
    make.save_torch(tmp_path / "x.pth", {"state_dict": under("module.encoder_k.", RESNET)})
    with pytest.raises(CheckpointFormatError, match="no known format"):
        import_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "a Git LFS pointer.*git lfs pull"),
        (b'{"error": "Access denied"}', 'an error message of a server. It says {"error": "Access denied"}$'),
        (b"[1, 2]", "JSON, not a checkpoint"),
        (b"<!DOCTYPE html>", "a web page, not a checkpoint"),
        (
            pickle.dumps({"state_dict": RESNET, "hyper_parameters": fractions.Fraction(1, 3)}, 2),
            "save its state_dict alone",
        ),
    ],
)
def test_what_downloads_give_instead_says_the_way_out(tmp_path, content, message):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(CheckpointFormatError, match=f"x.pth: .*{message}"):
        import_checkpoint(tmp_path / "x.pth")


def test_two_networks_in_one_file_are_not_guessed_between(tmp_path):
    make.save_torch(tmp_path / "x.pth", {"net": RESNET, "ema": RESNET})
    with pytest.raises(CheckpointFormatError, match="x.pth: there are networks under net, ema: save the one"):
        import_checkpoint(tmp_path / "x.pth")


def test_directories_and_what_is_no_file(tmp_path):
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "config.json").write_text("{}")
    (tmp_path / "vit" / "model.safetensors").write_text("")
    (tmp_path / "ours" / "checkpoints").mkdir(parents=True)
    for path, message in {
        tmp_path / "vit": "a directory; name the file in it: model.safetensors$",
        tmp_path / "ours": "a checkpoint of this project already",
        tmp_path / "vit" / "model.safetensors": "an empty file",
        "/dev/null": "not a regular file",
        tmp_path / "nothing.pth": "no such file",
    }.items():
        with pytest.raises(CheckpointFormatError, match=message):
            import_checkpoint(path)


def test_detection_and_the_option_that_overrides_it(tmp_path):
    make.save_torch(tmp_path / "x.pth", {"state_dict": RESNET | some("fc.weight")})
    assert import_checkpoint(tmp_path / "x.pth").meta["format"] == "torchvision"
    imported = import_checkpoint(tmp_path / "x.pth", format="simclr")
    assert imported.meta["format"] == "simclr" and imported.meta["input"]["std"] == [1, 1, 1]
    with pytest.raises(CheckpointFormatError, match="no format is called 'mocov2' .nearest: moco_v2"):
        import_checkpoint(tmp_path / "x.pth", format="mocov2")
    with pytest.raises(CheckpointFormatError, match="not as moco_v2 would have it"):
        import_checkpoint(tmp_path / "x.pth", format="moco_v2")
    assert len({f.name for f in formats.FORMATS}) == len(formats.FORMATS)


def test_head_counts_are_known_or_asked_for(tmp_path):
    make.save_torch(tmp_path / "x.pth", {"state_dict": under("module.encoder_q.", VIT) | some("module.queue")})
    with pytest.raises(CheckpointFormatError, match="pass --heads N"):
        import_checkpoint(tmp_path / "x.pth")
    assert import_checkpoint(tmp_path / "x.pth", heads=4).meta["model"]["vit"]["heads"] == 4
    with pytest.raises(CheckpointFormatError, match="5 do not divide 64"):
        import_checkpoint(tmp_path / "x.pth", heads=5)
    small = make.vit(384, 1, 16, 2)
    for state, heads in ((small, 6), (under("module.base_encoder.", small), 12)):
        make.save_torch(tmp_path / "x.pth", {"state_dict": state})
        assert import_checkpoint(tmp_path / "x.pth").meta["model"]["vit"]["heads"] == heads


def test_unusual_depths_only_when_asked_for(tmp_path):
    few = {n: a for n, a in RESNET.items() if not n.startswith("layer") or n.split(".")[1] == "0"}
    make.save_torch(tmp_path / "x.pth", few)
    with pytest.raises(CheckpointFormatError, match="--stage_sizes 1,1,1,1"):
        import_checkpoint(tmp_path / "x.pth")
    meta = import_checkpoint(tmp_path / "x.pth", stage_sizes=(1, 1, 1, 1)).meta
    assert meta["model"]["resnet"]["stage_sizes"] == (1, 1, 1, 1)


def test_simclr_variants_that_are_other_networks_are_refused():
    tree = {f"base_model/conv2d_{i}/kernel": np.zeros((3, 3, 3, 2), np.float32) for i in range(90)}
    with pytest.raises(Refused, match="90 convolutions.*Selective-kernel"):
        detection.detect(tree, "tensorflow")
