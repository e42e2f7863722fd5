"""A checkpoint behind HTTP: uploads are bounded, decoded in processes that may be ended, and share forward passes."""
