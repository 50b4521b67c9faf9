"""Make, check and pack data sets: python scripts/prepare_data.py --help; the same as `cp2 prepare`."""

import _cp2

if __name__ == "__main__":
    _cp2.run("prepare")
