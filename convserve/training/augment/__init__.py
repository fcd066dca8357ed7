"""Augmentation: what each image becomes in each epoch.

    AugmentConfig (config)   the settings; TrainConfig has them too
    Draws (draws)            random numbers of (seed, epoch, image)
        │
    geometry ─▶ one affine map an image ┐
    brightness, contrast, cutout        ├─▶ kernels._augment ─▶ mixup ─▶ (x, targets)
    uint8 images                        ┘        batch

An image's augmentation depends on the seed, the epoch and its place in the data set, and on nothing
else: not on threads, on the batch that it is in, or on whether the run was interrupted.
"""

from convserve.training.augment.batch import Augmenter, batch
from convserve.training.augment.config import FLIPS, PADDING_MODES, AugmentConfig

__all__ = ["FLIPS", "PADDING_MODES", "AugmentConfig", "Augmenter", "batch"]
