"""Recipes: networks with the settings that are known to go with them.

They are data: `convserve train --recipe NAME` takes them as defaults of its options. What each
reaches, and in what time, is in docs/recipes.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from convserve.training.config import TrainConfig
from convserve.training.groups import Group

__all__ = ["RECIPES", "RELIABLE", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    """An architecture, its options, and the fields of `TrainConfig` that differ from the defaults.

    Raises TrainingError or TypeError for a setting that does not exist or is out of range.
    """

    summary: str
    arch: str
    settings: Mapping[str, Any]
    arch_options: Mapping[str, Any] = field(default_factory=dict)

    def config(self, **options: Any) -> TrainConfig:
        """Its settings, with others in place of some."""
        return TrainConfig.from_dict({**self.settings, **options})


# By architecture, what `convserve train` takes unless it is told otherwise. Deep and without batch
# norm, they begin with gradients ten times those that follow, which with momentum throw all units
# of a layer to where ReLU gives 0, for good: of seeds 0 to 2 of deep_convnet two learnt nothing.
RELIABLE: Mapping[str, Mapping[str, Any]] = {
    "cifar_vgg": {"clip": 1.0},
    "deep_convnet": {"clip": 1.0},
}

# Jordan 2024 (arXiv:2404.00498), with Muon. Its loss is a sum over a batch of 2000, ours the mean,
# so rates are 2000 times those there and decays are divided by it; its logits are divided by 256,
# ours are not, so those of the last layer are divided by 256² (and its weights begin 256 times
# smaller). lr · weight_decay is 2e-6 · 2000 for all that decays there.
_BATCH = 2000
_DECAY = 2e-6 * _BATCH
_BIAS_LR = 0.053 * _BATCH
_HEAD_LR = 0.67 * _BATCH / 256**2

RECIPES = {
    "mnist-lenet": Recipe(
        "LeNet with SGD: the network of the textbooks",
        "lenet",
        {"epochs": 20, "batch_size": 128, "lr": 0.1, "shift": 2, "label_smoothing": 0.05},
    ),
    "mnist-fast": Recipe(
        "five convolutions with batch norm, in minutes",
        "bn_convnet",
        {
            "epochs": 12,
            "batch_size": 128,
            "lr": 0.2,
            "schedule": "one-cycle",
            "label_smoothing": 0.1,
            "shift": 2,
            "rotation": 10.0,
            "ema": 0.995,
        },
        {"widths": [8, 16, 32, 32, 64]},
    ),
    "mnist-best": Recipe(
        "twice as wide, and longer",
        "bn_convnet",
        {
            "epochs": 30,
            "batch_size": 128,
            "lr": 0.2,
            "schedule": "one-cycle",
            "label_smoothing": 0.1,
            "shift": 2,
            "rotation": 10.0,
            "zoom": 0.1,
            "ema": 0.998,
        },
        {"widths": [16, 32, 64, 64, 128]},
    ),
    "cifar10-resnet20": Recipe(
        "ResNet-20 (He et al. 2015), with a cosine",
        "resnet20",
        {
            "epochs": 40,
            "batch_size": 128,
            "lr": 0.1,
            "weight_decay": 5e-4,
            "shift": 4,
            "flip": "random",
        },
    ),
    "cifar10-fast": Recipe(
        "whitening first layer, Muon: the record's (Jordan 2024)",
        "airbench",
        {
            "epochs": 32,  # 8 there, on pixels that were never compressed
            "batch_size": _BATCH,
            "drop_last": True,
            "initialisation": "dirac",
            "whiten": True,
            "freeze": ("conv1.weight", "bn*.weight"),
            "optimiser": "muon",
            "lr": 0.24,
            "muon_momentum": 0.6,
            "momentum": 0.85,
            "sgd_lr": _BIAS_LR,
            "weight_decay": 0.0,
            "groups": (
                Group("conv1.bias", weight_decay=_DECAY / _BIAS_LR, until=3),
                Group("bn*.bias", weight_decay=_DECAY / _BIAS_LR),
                Group("affine1.weight", lr=_HEAD_LR / _BIAS_LR, weight_decay=_DECAY / _HEAD_LR),
            ),
            "schedule": "linear",
            "warmup": 0.0,
            "label_smoothing": 0.2,
            "shift": 3,
            "cutout": 8,
            "padding_mode": "reflect",
            "flip": "alternating",
        },
        {"widths": [64, 256, 256]},
    ),
}
