"""A Pack as logits per data set: backbones, heads, releases."""
