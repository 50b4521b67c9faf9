"""Placements: what is split, along which axis; and which rows of a batch each process has, in whatever order devices come.

`tests/data/tpu_process_orders.json` holds, for slices by name, the processes in the order in which `mesh.make_mesh` puts
their devices, as libtpu 0.0.42.1 describes them: `PYTHONPATH=tests python tests/runs/test_mesh.py` writes it anew.
"""

import json
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import compiling, permuted, toy_backbone
from helpers.halves import halves_on_disk
from helpers.paths import DATA, ROOT
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec

from cp2_jax.data.labelled.examples import SegmentationError
from cp2_jax.models.backbones import BACKBONES
from cp2_jax.runs import mesh

FOUR = AbstractMesh((4,), (mesh.DATA,), axis_types=(AxisType.Auto,))


def spec_of(*shape, split=True):
    return mesh.split_largest(FOUR, jax.ShapeDtypeStruct(shape, jnp.float32), split).spec


def test_arrays_are_split_along_their_largest_axis_that_divides():
    assert spec_of(3, 3, 8, 16) == PartitionSpec(None, None, None, "data")
    assert spec_of(3, 3, 16, 8) == PartitionSpec(None, None, "data")
    assert spec_of(64, 126) == PartitionSpec("data")  # 126 is larger, but 4 does not divide it
    for shape in [(), (3,), (7, 7, 3, 2), (0,)]:
        assert spec_of(*shape) == PartitionSpec()
    assert spec_of(16, 16, split=False) == PartitionSpec()


def test_a_split_array_takes_a_share_of_the_bytes():
    assert mesh.split_largest(FOUR, jax.ShapeDtypeStruct((3, 8, 6), jnp.float32)).shard_shape((3, 8, 6)) == (3, 2, 6)
    assert mesh.batch_sharding(FOUR, axis=1).shard_shape((5, 8, 6)) == (5, 2, 6)


def test_local_copies_hold_the_values():
    device_mesh = mesh.make_mesh()
    tree = {"a": jax.device_put(np.arange(6.0), mesh.replicated(device_mesh)), "b": jnp.ones((2, 2))}
    copied = mesh.local_copy(device_mesh, tree)
    np.testing.assert_array_equal(copied["a"], np.arange(6.0))
    assert all(len(x.devices()) == 1 for x in jax.tree.leaves(copied))


SLICES = ("v4-16", "v4-32", "v4-128", "v5e-16", "v5p-32", "v6e-16", "v3-8", "v3-32")
ORDERS = json.loads((DATA / "tpu_process_orders.json").read_text())


class Described:
    """A device of which only its number and its process are known."""

    platform, device_kind, client = "tpu", "described", None

    def __init__(self, number, process):
        self.id, self.process_index = number, process


def described(order):
    """Return a mesh of such devices, whose processes come in the given order."""
    return Mesh(np.array([Described(*numbered) for numbered in enumerate(order)]), (mesh.DATA,))


def check_rows(device_mesh, order, share=2):
    """Each process has the rows of its devices, wherever these are; all rows are taken, none twice."""
    batch, taken = share * len(order), []
    for process in sorted(set(order)):
        rows = mesh.local_rows(device_mesh, batch, process)
        assert rows == tuple(row for row in range(batch) if order[row // share] == process)
        taken += rows
    assert sorted(taken) == list(range(batch))


@pytest.mark.parametrize("name", SLICES)
def test_rows_on_every_named_slice_as_recorded(name):
    check_rows(described(ORDERS[name]), ORDERS[name])


def test_the_recorded_slices_are_such_as_go_wrong():
    """On most of them the devices of a process are apart, and one has processes in no regular order at all."""
    apart = {name for name in SLICES if ORDERS[name] != sorted(ORDERS[name])}
    assert apart == {"v4-16", "v4-32", "v4-128", "v5e-16", "v5p-32", "v6e-16"}
    assert ORDERS["v4-32"] == [0, 1, 2, 3] * 4 and ORDERS["v5e-16"][:8] == [0, 0, 1, 1, 1, 1, 0, 2]


def described_by_libtpu(name):
    pytest.importorskip("libtpu")
    from cp2_jax.planning import chips

    return mesh.make_mesh(chips.get(name).devices)


@pytest.mark.parametrize("name", SLICES)
def test_rows_on_every_named_slice_as_libtpu_describes_it(name):
    device_mesh = described_by_libtpu(name)
    order = [device.process_index for device in device_mesh.devices.flat]
    assert order == ORDERS[name]
    check_rows(device_mesh, order)


def test_gradients_are_held_whole_and_then_shared_out():
    for split, last in ((True, PartitionSpec(None, "data")), (False, PartitionSpec())):
        jaxpr = jax.make_jaxpr(lambda x, split=split: mesh.share_out(FOUR, x, split))(jnp.zeros((3, 8)))
        assert [equation.params["sharding"].spec for equation in jaxpr.eqns] == [PartitionSpec(), last]


def test_so_libtpu_passes_no_batch_round_for_a_kernel_s_gradient():
    device_mesh = described_by_libtpu("v5e-8")

    def gradient(place, kernel, images):
        def loss(kernel):
            return jax.lax.conv_general_dilated(
                images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            ).sum()

        return place(jax.grad(loss)(kernel))

    def rings(place):
        kernel = jax.ShapeDtypeStruct((3, 3, 256, 256), jnp.bfloat16, sharding=mesh.replicated(device_mesh))
        images = jax.ShapeDtypeStruct((256, 14, 14, 256), jnp.bfloat16, sharding=mesh.batch_sharding(device_mesh))
        compiled = jax.jit(gradient, static_argnums=0).lower(place, kernel, images).compile()
        return compiled.as_text().count(" collective-permute")

    assert rings(lambda x: mesh.constrain(x, mesh.split_largest(device_mesh, x))) > 0  # why `share_out` is there
    assert rings(lambda x: mesh.share_out(device_mesh, x)) == 0


def test_a_batch_that_cannot_be_split_is_refused():
    device_mesh = mesh.make_mesh(jax.devices()[:1])
    with pytest.raises(ValueError, match="a batch of 0 cannot be split over 1 devices"):
        mesh.local_rows(device_mesh, 0)
    with pytest.raises(ValueError, match="process 7 has none of the 1 devices"):
        mesh.local_rows(device_mesh, 4, process=7)


def test_sums_beyond_32_bits():
    values = np.array([[3 * 2**33 + 5, 7], [0, 2**31]])
    np.testing.assert_array_equal(mesh.sum_over_processes(values), values)


def run_processes(command, count, devices):
    """Run `command PORT COUNT INDEX` for each process, with so many CPU devices each; return what the first printed."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    options = dict(
        cwd=ROOT, env=compiling.environment(devices), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    processes = [
        subprocess.Popen([sys.executable, *command, str(port), str(count), str(index)], **options) for index in range(count)
    ]
    try:
        printed = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * count, "\n".join(text[-2000:] for text in printed)
    return printed[0]


def test_two_processes_in_any_order_are_one_to_the_last_pixel(tmp_path, monkeypatch):
    """Pretraining's and finetuning's input, losses, confusion matrix, scores per image, pictures and class maps.

    Two processes with two devices each, in the orders 0101, 0110 and 1001; seven images of three sizes in batches of
    four, so that sizes are mixed and the last batch has rows without an image.
    """
    monkeypatch.setitem(BACKBONES, "toy", toy_backbone.BACKBONE)
    data = tmp_path / "data"
    halves_on_disk(data, "train", 6)
    halves_on_disk(data, "val", 7, sizes=[(32, 40), (40, 32), (30, 37)])
    one = tmp_path / "one"
    permuted.work(data, one, mesh.make_mesh(jax.devices()[:1]))
    run_processes(["tests/helpers/permuted.py", str(data), str(tmp_path)], 2, 2)

    expected = dict(np.load(one / "numbers.npz"))
    assert expected["matrix"].sum() == 5 * 32 * 40 + 2 * 30 * 37
    for order in ("0101", "0110", "1001"):
        found = dict(np.load(tmp_path / order / "numbers.npz"))
        assert found.keys() == {key for key in expected if order == "0101" or key.startswith("pretraining")}
        for name, value in found.items():
            if name.startswith("loss"):  # sums over the batch in another order
                np.testing.assert_allclose(value, expected[name], rtol=1e-4)
            else:
                np.testing.assert_array_equal(value, expected[name], err_msg=f"{order}: {name}")
    for folder in ("predictions", "pictures"):
        files = sorted(path.name for path in (one / folder).iterdir())
        assert files == sorted(path.name for path in (tmp_path / "0101" / folder).iterdir())
        assert len(files) == {"predictions": 7, "pictures": 3}[folder]
        for name in files:
            assert (one / folder / name).read_bytes() == (tmp_path / "0101" / folder / name).read_bytes(), name


def test_pixels_lost_on_the_way_to_the_devices_are_an_error(tmp_path, monkeypatch):
    """Rows that change places, as with a wrong idea of which rows are whose, do not end in a score."""
    halves_on_disk(tmp_path, "val", 4, sizes=[(32, 40), (40, 32), (30, 37)])
    place = mesh.place_batch

    def swapped(device_mesh, batch):
        return jax.tree.map(lambda x: x[::-1], place(device_mesh, batch))

    monkeypatch.setattr(mesh, "place_batch", swapped)
    monkeypatch.setitem(BACKBONES, "toy", toy_backbone.BACKBONE)
    config = permuted.small_config(tmp_path)
    with pytest.raises(SegmentationError, match=r"holds \d+ pixels of image \d+, of which \d+ are labelled"):
        permuted.evaluate(tmp_path, tmp_path / "out", mesh.make_mesh(jax.devices()[:1]), permuted.variables_of(config))


if __name__ == "__main__":
    found = {name: [d.process_index for d in described_by_libtpu(name).devices.flat] for name in SLICES}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(order)}" for name, order in found.items())
    pathlib.Path(DATA / "tpu_process_orders.json").write_text(f"{{\n{lines}\n}}\n")
