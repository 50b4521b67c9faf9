"""CP2: copy-paste contrastive pretraining for semantic segmentation, in JAX and Flax."""
