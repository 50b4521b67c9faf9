"""Export a model of ours: python scripts/export_checkpoint.py --help; the same as `cp2 export`."""

import _cli

if __name__ == "__main__":
    _cli.run("export")
