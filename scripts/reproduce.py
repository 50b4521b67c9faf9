"""Make the paper's tables, cell by cell: python scripts/reproduce.py --help; the same as `cp2 reproduce`."""

import _cli

if __name__ == "__main__":
    _cli.run("reproduce")
