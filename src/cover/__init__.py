"""CoVeR: one video transformer co-trained on several video and image data sets at once."""

__version__ = "0.1.0"
