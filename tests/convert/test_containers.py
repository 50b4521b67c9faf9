"""Readers of foreign containers, against files that PyTorch, dill, NumPy, Haiku and TensorFlow wrote themselves.

tests/data/checkpoints: torch_*.pth by torch.save (2.13.0), haiku_dill.pkl by dill 0.4.1 with Haiku's FlatMapping and a
named tuple, numpy_object.npy by numpy.save, mmengine.pth by torch.save with
MMEngine 0.10.7's message hub, tensorflow* by tf.compat.v1.train.Saver and tf.train.Checkpoint (2.21).
"""

import io
import pickle
import tempfile

import ml_dtypes
import numpy as np
import pytest
from helpers.paths import DATA
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from cp2_jax.convert import trees
from cp2_jax.convert.containers import allowlist, arrays, files
from cp2_jax.convert.containers.pickles import Machine
from cp2_jax.convert.containers.values import CheckpointFormatError, Inert, Refused

FOLDER = DATA / "checkpoints"


@pytest.mark.parametrize("name", ["torch_zip", "torch_legacy", "torch_zip_protocol5"])
def test_pytorch_files_of_every_dtype_and_stride(name):
    tree, container = files.read(FOLDER / f"{name}.pth")
    assert container == ("torch legacy" if "legacy" in name else "torch zip")
    expected = np.load(FOLDER / "torch_expected.npz")
    assert set(tree["state_dict"]) == set(expected.files)
    for key, tensor in tree["state_dict"].items():
        array = files.to_numpy(tensor)
        assert files.is_array(tensor) and array.shape == expected[key].shape == tensor.shape, key
        # `e` is bfloat16, which NumPy's own format cannot hold.
        assert array.dtype == (ml_dtypes.bfloat16 if key == "e" else expected[key].dtype), key
        np.testing.assert_array_equal(array.astype(expected[key].dtype), expected[key], err_msg=key)
    assert (tree["epoch"], tree["arch"], tree["best"]) == (3, "resnet50", float("inf"))
    assert isinstance(tree["args"], Inert) and tree["args"].state == {"a": 1, "b": "x"}
    assert tree["np"] == 2.5 and tree["size"] == (1, 2) and tree["set"] == {1, 2} and tree["dt"] == np.float16
    np.testing.assert_array_equal(files.to_numpy(tree["arr"]), [[0, 1, 2], [3, 4, 5]])  # stored big-endian
    assert tree["optimizer"]["param_groups"][0]["lr"] == 0.001
    assert tree["state_dict"]["a"].storage is tree["state_dict"]["b"].storage  # shared, as PyTorch shares it


def test_training_files_of_mmengine_with_their_logs():
    tree, _ = files.read(FOLDER / "mmengine.pth")
    assert files.to_numpy(tree["state_dict"]["weight"]).shape == (1, 1, 1, 1)
    history = tree["message_hub"]["log_scalars"]["a"]
    assert isinstance(history, Inert) and history.name == "mmengine.logging.history_buffer.HistoryBuffer"


def test_haiku_trees_through_dill():
    tree, container = files.read(FOLDER / "haiku_dill.pkl")
    expected = np.load(FOLDER / "small_expected.npz")
    assert container == "pickle" and tree["step"] == 300
    online, _, averages, *_ = tree["experiment_state"].args
    params = trees.flatten(online, files.is_array)
    np.testing.assert_array_equal(files.to_numpy(params["res_net50/~/initial_conv/w"]), expected["conv"])
    np.testing.assert_array_equal(files.to_numpy(params["res_net50/~/initial_batchnorm/scale"]), expected["scale"])
    found = trees.flatten(averages, files.is_array)["res_net50/~/initial_batchnorm/~/mean_ema/average"]
    np.testing.assert_array_equal(files.to_numpy(found), expected["average"])


def test_numpy_file_of_objects():
    tree, container = files.read(FOLDER / "numpy_object.npy")
    expected = np.load(FOLDER / "small_expected.npz")
    assert container == "numpy"
    np.testing.assert_array_equal(files.to_numpy(tree["params"]["res_net50/~/initial_conv"]["w"]), expected["conv"])


@pytest.mark.parametrize(
    "path", ["tensorflow1", "tensorflow1/model.ckpt-7", "tensorflow1/model.ckpt-7.index", "tensorflow2"]
)
def test_tensorflow_checkpoints_of_both_kinds(path):
    tree, container = files.read(FOLDER / path)
    expected = np.load(FOLDER / "small_expected.npz")
    assert container == "tensorflow"
    np.testing.assert_array_equal(tree["base_model/conv2d/kernel"], expected["kernel"])
    np.testing.assert_array_equal(tree["base_model/conv2d_2/kernel"], expected["kernel"] + 2)
    if path.startswith("tensorflow1"):
        assert len(tree) == 32 and tree["global_step"] == 7 and tree["global_step"].dtype == np.int64


def test_tensorflow_data_that_is_missing_or_short(tmp_path):
    for name in ("model.ckpt-7.index", "model.ckpt-7.data-00000-of-00001"):
        data = (FOLDER / "tensorflow1" / name).read_bytes()
        (tmp_path / name).write_bytes(data if name.endswith("index") else data[:-100])
    with pytest.raises(CheckpointFormatError, match="truncated"):
        files.read(tmp_path)
    (tmp_path / "model.ckpt-7.data-00000-of-00001").unlink()
    with pytest.raises(CheckpointFormatError, match="no such file"):
        files.read(tmp_path)
    (tmp_path / "other.index").write_bytes(b"x" * 100)
    with pytest.raises(CheckpointFormatError, match="2 TensorFlow checkpoints"):
        files.read(tmp_path)
    with pytest.raises(CheckpointFormatError, match="not the index"):
        files.read(tmp_path / "other.index")


def test_safetensors_of_several_dtypes(tmp_path):
    wrote = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.arange(3, dtype=np.float16),
        "c": np.array([1.5, -2], ml_dtypes.bfloat16),
        "d": np.array(7, np.int64),
    }
    save_file(wrote, tmp_path / "x.safetensors")
    tree, container = files.read(tmp_path / "x.safetensors")
    assert container == "safetensors" and set(tree) == set(wrote)
    for name, array in wrote.items():
        assert tree[name].dtype == array.dtype
        np.testing.assert_array_equal(tree[name], array)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(plain, st.integers(0, 5))
def test_plain_values_come_out_as_pickle_put_them_in(value, protocol):
    data = pickle.dumps(value, protocol)
    found = Machine(io.BytesIO(data), 1 << 20, allowlist.BUILDERS, allowlist.is_inert).run()
    assert found == pickle.loads(data) == value


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["f2", "f4", "f8", "i1", "i8", "u2", "?", ">f4", ">i2"]),
    st.lists(st.integers(0, 3), max_size=3),
    st.booleans(),
    st.integers(2, 5),
)
def test_numpy_arrays_come_out_as_pickle_put_them_in(dtype, shape, fortran, protocol):
    array = np.arange(np.prod(shape)).astype(dtype).reshape(shape, order="F" if fortran else "C")
    if fortran:
        array = np.asfortranarray(array)
    machine = Machine(
        io.BytesIO(pickle.dumps(array, protocol)), 1 << 20, allowlist.BUILDERS | arrays.BUILDERS, allowlist.is_inert
    )
    found = machine.run().numpy()
    assert found.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(found, array)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["torch_zip.pth", "torch_legacy.pth", "haiku_dill.pkl", "numpy_object.npy"]), st.data())
def test_damaged_files_give_one_clear_error_or_read_on(name, data):
    path = FOLDER / name
    damaged = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        damaged = damaged[: data.draw(st.integers(0, len(damaged) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.NamedTemporaryFile(suffix=path.suffix) as file:
        file.write(damaged)
        file.flush()
        try:
            files.read(file.name)
        except CheckpointFormatError as error:
            assert file.name in str(error) and "\n" not in str(error)


def test_every_truncation_of_a_pytorch_file_is_an_error(tmp_path):
    for name in ("torch_zip.pth", "torch_legacy.pth"):
        whole = (FOLDER / name).read_bytes()
        for length in range(0, len(whole) - 1, 97):
            (tmp_path / name).write_bytes(whole[:length])
            with pytest.raises(CheckpointFormatError):
                files.read(tmp_path / name)


def test_a_flipped_bit_in_a_tensor_is_noticed(tmp_path):
    whole = bytearray((FOLDER / "torch_zip.pth").read_bytes())
    place = whole.index(np.arange(24, dtype=np.float32).tobytes())
    whole[place + 5] ^= 1
    (tmp_path / "x.pth").write_bytes(whole)
    with pytest.raises(CheckpointFormatError, match="checksum"):
        files.read(tmp_path / "x.pth")


def test_flatten_stops_at_trees_that_contain_themselves():
    loop: dict = {}
    loop["a"] = loop["b"] = loop
    assert trees.flatten(loop, lambda node: False) == {}
    many = {str(i): {} for i in range(1000)}
    for level in many.values():
        level.update({str(i): {} for i in range(1000)})
    with pytest.raises(Refused, match="200,000"):
        trees.flatten(many, lambda node: False)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "empty"),
        (b"\x89HDF\r\n\x1a\n" + b"x" * 100, "HDF5"),
        (b"\x1f\x8b" + b"x" * 100, "gzip"),
        (b"<!DOCTYPE html>" + b"x" * 100, "web page"),
        (b"x" * 257 + b"ustar" + b"x" * 300, "tar archive"),
        (b"garbage" * 20, "starts with 67 61 72"),
    ],
)
def test_other_files_are_named(tmp_path, contents, message):
    (tmp_path / "x.pth").write_bytes(contents)
    with pytest.raises(CheckpointFormatError, match=message):
        files.read(tmp_path / "x.pth")
    with pytest.raises(CheckpointFormatError, match="no such file"):
        files.read(tmp_path / "absent.pth")
    with pytest.raises(CheckpointFormatError, match="directory"):
        files.read(tmp_path)
