"""Every exception that convserve raises on purpose, in one tree.

ConvserveError
├── ShapeError (also ValueError)         an array, a size or a layer does not fit
├── ModelFileError (also ValueError)     an `.npz` is missing, malformed or of a newer format
├── ConfigError (also ValueError)        how a model is to be served is said wrongly
├── DatasetError (also ValueError)       training or test data is missing or inconsistent
├── ImageError (also ValueError)         an image can't be decoded or is over a limit
├── TrainingError (also ValueError)      a training setting is out of range, or the loss diverged
├── TrainingStoppedError                 a run was asked to stop, and can be resumed
├── ReportError                          a report can't be drawn or written
├── CheckpointError                      a checkpoint can't be written, read or resumed
├── UnknownNameError (also ValueError)   no such layer, architecture, model …
├── ConversionError                      a model of another format can't be converted
│   └── UnsupportedOperatorError
└── InferenceError                       a request to a served model failed
    ├── InvalidRequestError              the request itself is wrong
    ├── ModelNotFoundError
    ├── ModelNotReadyError
    ├── ModelLoadError                   a model can't be loaded into the server
    ├── RepositoryControlError           loading and unloading is not open to callers
    ├── RegionNotFoundError              no shared memory region of that name
    ├── AlreadyExistsError               a shared memory region of that name is registered
    ├── SwitchedOffError                 a call that the server was not started with
    ├── QueueFullError
    ├── QueueTimeoutError
    ├── DeadlineExceededError
    ├── CancelledError
    ├── StoppingError                    the server has begun to stop
    └── WorkerGoneError                  a process of the server died, or does not answer

A wrong dtype or type of argument raises the built-in TypeError.
"""

from __future__ import annotations

__all__ = [
    "AlreadyExistsError",
    "CancelledError",
    "CheckpointError",
    "ConfigError",
    "ConversionError",
    "ConvserveError",
    "DatasetError",
    "DeadlineExceededError",
    "ImageError",
    "InferenceError",
    "InvalidRequestError",
    "ModelFileError",
    "ModelLoadError",
    "ModelNotFoundError",
    "ModelNotReadyError",
    "QueueFullError",
    "QueueTimeoutError",
    "RegionNotFoundError",
    "ReportError",
    "RepositoryControlError",
    "ShapeError",
    "StoppingError",
    "SwitchedOffError",
    "TrainingError",
    "TrainingStoppedError",
    "UnknownNameError",
    "UnsupportedOperatorError",
    "WorkerGoneError",
]


class ConvserveError(Exception):
    """Base of every error that convserve raises on purpose."""


class ShapeError(ConvserveError, ValueError):
    """An array, a size or a layer does not fit; the message names the parameter and the rule."""


class ModelFileError(ConvserveError, ValueError):
    """A model file is missing, malformed, or of a newer format; names the file and the fault."""


class ConfigError(ConvserveError, ValueError):
    """A model's configuration has an unknown key or a wrong value; names the key and the rule."""


class DatasetError(ConvserveError, ValueError):
    """A data set is missing, malformed or inconsistent."""


class ImageError(ConvserveError, ValueError):
    """An image can't be decoded, or is over the pixel limit."""


class TrainingError(ConvserveError, ValueError):
    """A training setting is out of range, or training can't go on because the loss diverged."""


class TrainingStoppedError(ConvserveError):
    """A run was asked to stop, and did after a whole step; its checkpoint holds all up to then."""


class ReportError(ConvserveError):
    """A report can't be drawn, for want of a package, or can't be written."""


class CheckpointError(ConvserveError):
    """A training checkpoint can't be written, read, or does not belong to this run."""


class UnknownNameError(ConvserveError, ValueError):
    """A name (layer, architecture, output) that does not exist; lists the ones that do."""


class ConversionError(ConvserveError):
    """A model of another format can't be converted."""


class UnsupportedOperatorError(ConversionError):
    """A model holds operators that convserve does not have; the message lists all of them."""


class InferenceError(ConvserveError):
    """A request to a served model failed."""


class InvalidRequestError(InferenceError):
    """A request is malformed or does not fit the model; says what was expected and what came."""


class ModelNotFoundError(InferenceError):
    """No model, or no version, of that name."""


class ModelNotReadyError(InferenceError):
    """The model exists and is not ready to serve."""


class ModelLoadError(InferenceError):
    """A model can't be loaded; what was served before is served still."""


class RepositoryControlError(InferenceError):
    """The server does not load and unload models on a caller's word."""


class RegionNotFoundError(InferenceError):
    """No shared memory region of that name is registered."""


class AlreadyExistsError(InferenceError):
    """A shared memory region of that name is registered already."""


class SwitchedOffError(InferenceError):
    """The server was started without what the call needs."""


class QueueFullError(InferenceError):
    """The model's request queue is at its bound."""

    retry_after: float = 0.1
    """Seconds after which trying again makes sense."""


class QueueTimeoutError(InferenceError):
    """The request has waited for as long as its queue's policy allows."""


class DeadlineExceededError(InferenceError):
    """The request's deadline passed before its work began."""


class CancelledError(InferenceError):
    """The caller went away before its work began."""


class StoppingError(InferenceError):
    """The server has begun to stop and takes no new requests."""


class WorkerGoneError(InferenceError):
    """A process of the server died while it was asked for something, or does not answer."""
