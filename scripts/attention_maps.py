"""Make attention maps of a data set's images: python scripts/attention_maps.py --help; the same as `cp2 attention-maps`."""

import _cp2

if __name__ == "__main__":
    _cp2.run("attention-maps")
