"""Backbones, segmentation heads and the model made of both (flax linen)."""
