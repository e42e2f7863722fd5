"""A Pack as logits per data set: TimeSformer, heads, presets, weights."""
