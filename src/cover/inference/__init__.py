"""Use of a checkpoint: prediction, features, explanation and export."""
