"""libtpu on a machine without TPU, where it is installed for `cp2 plan`: it is told not to look for one, and is quiet."""

import importlib.util
import os
import pathlib
from collections.abc import MutableMapping

_GOOGLE = "0x1ae0"
_NO_CHIPS = ("0x01", "0x02")  # classes of PCI devices: Google's disks and network cards
# JAX asks libtpu for chips wherever it is installed. Without these, libtpu prints five lines of errors when it finds
# neither chips nor the server that describes a Cloud TPU. The values fit any machine by itself; nothing is made of them.
_SILENCE = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v4-8", "TPU_WORKER_HOSTNAMES": "localhost"}


def settle(
    environment: MutableMapping[str, str] = os.environ, devices: pathlib.Path = pathlib.Path("/sys/bus/pci/devices")
) -> None:
    """Set what keeps libtpu quiet, if it is installed, there is no chip, and nobody has said where one would be.

    To be called before JAX is asked for its devices.

    Args:
      environment: changed in place.
      devices: the folder in which Linux shows PCI devices.
    """
    named = {"TPU_ACCELERATOR_TYPE", "TPU_WORKER_HOSTNAMES", "TPU_NAME"} & set(environment)
    if named or importlib.util.find_spec("libtpu") is None or has_chip(devices):
        return
    environment.update(_SILENCE)


def has_chip(devices: pathlib.Path) -> bool:
    """Say whether one of the PCI devices may be a TPU."""
    return any(
        vendor.read_text("utf-8").strip() == _GOOGLE
        and not (vendor.parent / "class").read_text("utf-8").startswith(_NO_CHIPS)
        for vendor in devices.glob("*/vendor")
    )
