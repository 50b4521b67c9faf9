"""TensorBoard's files, read without TensorBoard."""

import pathlib
import struct

from tensorboardX.proto import event_pb2


def events(folder: pathlib.Path) -> list[event_pb2.Event]:
    """Return the records of all files of a folder, read by hand: length, its checksum, a protobuf, its checksum."""
    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found
