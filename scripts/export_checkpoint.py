"""Export a model of ours: python scripts/export_checkpoint.py --help; the same as `cp2 export`."""

import _cp2

if __name__ == "__main__":
    _cp2.run("export")
