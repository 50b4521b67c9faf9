"""Writing data sets: ImageNet re-encoded, VOC with SBD's masks, any labelled data set, as TFDS `array_record`."""
