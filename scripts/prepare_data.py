"""Make, check and pack data sets: python scripts/prepare_data.py --help; the same as `cp2 prepare`."""

import _cli

if __name__ == "__main__":
    _cli.run("prepare")
