"""Make the paper's tables, cell by cell: python scripts/reproduce.py --help; the same as `cp2 reproduce`."""

import _cp2

if __name__ == "__main__":
    _cp2.run("reproduce")
