"""Convert somebody else's checkpoint: python scripts/convert_checkpoint.py --help; the same as `cp2 convert`."""

import _cp2

if __name__ == "__main__":
    _cp2.run("convert")
