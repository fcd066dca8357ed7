"""The operators of a graph under their public name, also for `from convserve.layers import …`."""

from convserve.graph.layers import *  # noqa: F403
from convserve.graph.layers import __all__  # noqa: F401
