"""libtpu that is installed for planning, on machines with and without a chip."""

import pytest

from cp2_jax.runs import no_tpu

DISK, NETWORK, CHIP = ("0x1ae0", "0x010802"), ("0x1ae0", "0x020000"), ("0x1ae0", "0x088000")
OTHER = ("0x10de", "0x030200")


def pci(folder, *devices):
    for number, (vendor, kind) in enumerate(devices):
        (folder / str(number)).mkdir()
        (folder / str(number) / "vendor").write_text(f"{vendor}\n")
        (folder / str(number) / "class").write_text(f"{kind}\n")
    return folder


@pytest.mark.parametrize(
    "devices, installed, before, quiet",
    [
        ((OTHER, DISK, NETWORK), True, {}, True),
        ((), True, {}, True),
        ((NETWORK, CHIP), True, {}, False),
        ((), False, {}, False),
        ((), True, {"TPU_WORKER_HOSTNAMES": "a,b"}, False),  # a pod of GKE
    ],
)
def test_libtpu_is_quiet_where_there_is_no_chip(tmp_path, monkeypatch, devices, installed, before, quiet):
    monkeypatch.setattr(no_tpu.importlib.util, "find_spec", lambda name: object() if installed else None)
    environment = dict(before)
    no_tpu.settle(environment, pci(tmp_path, *devices))
    assert environment == before | ({"TPU_SKIP_MDS_QUERY": "1"} | no_tpu._SILENCE if quiet else {})
