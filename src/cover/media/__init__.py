"""A file as frames: decode, clip sampling, augmentation."""
