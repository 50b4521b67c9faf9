"""Make the paper's ablations in small: python scripts/study.py --help; the same as `cp2 study`."""

import _cp2

if __name__ == "__main__":
    _cp2.run("study")
