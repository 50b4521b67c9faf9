"""Make attention maps of a data set's images: python scripts/attention_maps.py --help; the same as `cp2 attention-maps`."""

import _cli

if __name__ == "__main__":
    _cli.run("attention-maps")
