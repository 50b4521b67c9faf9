"""Networks (flax linen): backbones and heads that describe themselves, and the segmenter made of one of each.

Images in, features out. May import `options` only: nothing here knows data, losses or training.
"""
