"""Media files: decoding to frames, clip sampling, and encoding."""
