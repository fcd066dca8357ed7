"""Client for convserve and other servers of the Open Inference Protocol."""

__version__ = "0.1.0"
