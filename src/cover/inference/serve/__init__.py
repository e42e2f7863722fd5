"""A checkpoint behind HTTP: uploads are bounded and decoded in processes that may be killed, then share forward passes."""
