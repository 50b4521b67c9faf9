"""Make the paper's ablations in small: python scripts/study.py --help; the same as `cp2 study`."""

import _cli

if __name__ == "__main__":
    _cli.run("study")
