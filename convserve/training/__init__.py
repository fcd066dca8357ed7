"""From images and a graph to a trained model.

    train ─▶ loop         epochs, validation, export, provenance
               ├── TrainStep (step)        forward, backward, update of one batch
               │     ├── CompiledStep      tape, assemble: one call of compiled code a batch
               │     ├── LayerwiseStep     on the public kernels: rules, loss; its oracle
               │     └── optimisers, muon  in groups of parameters (groups)
               ├── Batches (batches)       shuffled, augmented by `augment`, made ahead
               ├── Averages (averaging)    EMA, lookahead
               ├── schedules
               ├── RunCheckpoint           of the RunState and all arrays: resumes bit for bit
               ├── Start (start)           fresh parameters (initialise), or a model's: fine-tuning
               └── evaluation              with the plan that serves

A run is a function of the graph, the data and a `TrainConfig`: the same bits each time.
"""

from convserve.training.compiled import CompiledStep
from convserve.training.config import TrainConfig
from convserve.training.groups import Group
from convserve.training.layerwise import LayerwiseStep
from convserve.training.loop import train
from convserve.training.muon import Muon
from convserve.training.optimisers import SGD, Adam
from convserve.training.progress import EpochRecord, Progress, TrainResult
from convserve.training.step import StepResult, TrainStep

__all__ = [
    "SGD",
    "Adam",
    "CompiledStep",
    "EpochRecord",
    "Group",
    "LayerwiseStep",
    "Muon",
    "Progress",
    "StepResult",
    "TrainConfig",
    "TrainResult",
    "TrainStep",
    "train",
]
