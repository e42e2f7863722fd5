"""A file as frames: decode and clip sampling."""
