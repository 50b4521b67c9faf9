"""Host input pipelines: sources, decoding, and batches (Grain)."""
