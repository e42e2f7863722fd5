"""Augmentations of training samples. Each has one file, with its draw and its apply.

The draw chooses the parameters of one sample. It uses a generator that the reader seeds with the 64-bit seed of the
sample; nothing uses a global generator. The apply changes pixels and is not random. Crop and flip are applied in the
process that reads the file, all others on the device, over a whole Pack.

To add an augmentation:

1. Write `transforms/NAME.py` with a frozen dataclass that extends `Transform` (base.py): its fields are the settings,
   `stage` says which pixels it takes, `draw` returns the parameters of one sample, `apply` changes the frames of a
   Pack. `erasing.py` is a short example.
2. In `training/recipe.py` add the setting to `Augment` (and to `SetAugment`, if data sets may differ), its range to
   `RANGES`, and the dataclass to the tuple that `Augment._transforms` builds. Put it last: each transform draws after
   those before it, so a new one further up would change what they draw in every run.
3. Write `tests/transforms/test_NAME.py`, with the pixels checked against an independent computation.

Reading, packing, moving to the device, micro-batches and the training step need no change. Augmentations that mix two
samples are in `mixup.py`; the schedule chooses the pairs.
"""
