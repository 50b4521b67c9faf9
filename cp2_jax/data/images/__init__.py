"""Images without labels: where the encoded bytes come from, decoding, crops, and the stream of host batches."""
