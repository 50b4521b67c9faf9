"""The communication of a compiled program, read from its HLO text."""

import dataclasses
import math
import re

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)

_LINE = re.compile(rf"^\s*(?:ROOT )?%?[\w.\-]+ = (.+?) ({'|'.join(KINDS)})(-start)?\(")
_SHAPE = re.compile(r"\b(pred|[subf]\w*?(\d+)\w*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation.

    Attributes:
      kind: one of `KINDS`.
      bytes: of its result on one device (of a `-start`, without its operands).
      group: devices that take part together.
      name: what it was compiled from.
      shapes: dimensions of its results.
    """

    kind: str
    bytes: int
    group: int
    name: str
    shapes: tuple[tuple[int, ...], ...]

    @property
    def moved(self) -> float:
        """Bytes that each device sends, at the least: a ring's."""
        share = (self.group - 1) / self.group
        factor = {"all-reduce": 2 * share, "reduce-scatter": self.group - 1, "collective-permute": 1.0}
        return self.bytes * factor.get(self.kind, share)


def find(hlo: str, devices: int) -> list[Collective]:
    """Return the collectives of a program, each once, even one in a loop.

    Args:
      hlo: `compiled.as_text()`.
      devices: that the program runs on.
    """
    found, seen = [], set()
    for line in hlo.splitlines():
        match = _LINE.match(line)
        if not match:
            continue
        # One that runs beside others stands, on some TPUs, in the fusion of each of them: one channel, one operation.
        channel = re.search(r"channel_id=(\d+)", line)
        if channel and (match[2], channel[1]) in seen:
            continue
        seen.add((match[2], channel and channel[1]))
        shapes = shapes_in(match[1])
        if match[3] and match[2] != "all-reduce":
            # (operands, results, numbers of the hardware's own)
            shapes = [shape for shape in shapes if shape[1] or shape[0] != 4] or shapes
            shapes = shapes[len(shapes) // 2 :]
        name = re.search(r'op_name="([^"]*)"', line)
        found.append(
            Collective(
                kind=match[2],
                bytes=int(sum(size * math.prod(shape) for size, shape in shapes)),
                group=_group_size(line, devices),
                name=name[1] if name else "",
                shapes=tuple(shape for _, shape in shapes),
            )
        )
    return found


def shapes_in(text: str) -> list[tuple[float, tuple[int, ...]]]:
    """Return (bytes of an item, dimensions) of each array type in a piece of a program's text, e.g. 'f32[8,3]{1,0}'."""
    return [(_item_bytes(m[1], m[2]), tuple(int(n) for n in m[3].split(",") if n)) for m in _SHAPE.finditer(text)]


def _item_bytes(dtype: str, bits: str | None) -> float:
    return 1 if dtype == "pred" else int(bits) / 8


def _group_size(line: str, devices: int) -> int:
    """Read replica_groups, which is written as {{0,1},{2,3}}, [groups,size]<=[…], or mesh['a'=4,'b'=2] {'b'}."""
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(match[1].split(","))
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", line):
        return int(match[2])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", match[1])}
        return math.prod(sizes[axis] for axis in re.findall(r"'(\w+)'", match[2]))
    return devices
