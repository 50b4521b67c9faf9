"""Images with masks: finding pairs, classes, decoding to training labels, transforms, checks, host batches."""
