"""Where a compiled program's memory traffic comes from, read from its HLO text."""

import math
import re
from collections import defaultdict

from cp2_jax.planning import collectives
from cp2_jax.runs import profiling

_LINE = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (.+?) ([\w\-]+)\((.*)")
# They name, take apart or finish what others have read and written, or fetch it ahead for those that count it.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "copy-start", "slice-start"}
_NAMES_ONLY = ('custom_call_target="ConcatBitcast"', 'custom_call_target="AllocateBuffer"')


def by_part(hlo: str) -> dict[str, float]:
    """Return the bytes that the operations of a program read and write, by part of the step (`profiling.PARTS`).

    Args:
      hlo: `compiled.as_text()`.

    Counted are operands and results of the operations in the program's entry, each fusion being one operation. Loops
    count once, with what goes into and out of them. XLA's own count differs: it looks into fusions, for what is read
    twice or in part, and on TPUs it counts arrays as they lie in memory, in tiles of 8 x 128, padding included.
    """
    scopes = profiling.scopes(hlo)
    sizes: dict[str, float] = {}
    parts: dict[str, float] = defaultdict(float)
    for line in hlo[hlo.index("ENTRY") :].splitlines()[1:]:
        match = _LINE.match(line)
        if not match:
            continue
        name, kind, operation, rest = match.groups()
        sizes[name] = sum(size * math.prod(shape) for size, shape in collectives.shapes_in(kind))
        if operation in _FREE or operation.endswith("-done") or any(target in rest for target in _NAMES_ONLY):
            continue
        operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
        part = profiling.part_of(scopes.get(name, ""))
        parts[part] += sizes[name] + sum(sizes.get(operand, 0) for operand in operands)
    return dict(parts)
