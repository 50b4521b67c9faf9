"""Set scores of several runs side by side: python scripts/compare.py --help; the same as `cp2 compare`."""

import _cp2

if __name__ == "__main__":
    _cp2.run("compare")
