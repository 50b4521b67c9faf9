"""Convert somebody else's checkpoint: python scripts/convert_checkpoint.py --help; the same as `cp2 convert`."""

import _cli

if __name__ == "__main__":
    _cli.run("convert")
