"""On-device augmentation and copy-paste composition, batched and keyed per sample."""
