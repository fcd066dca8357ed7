"""From a graph to what the executor runs.

    graph, params ──lower──> steps ──compile──> Executor ──run──> arrays
                    fold        choose layout and kernel,
                    fuse        place tensors in one arena

The plan is a deterministic function of the model, the outputs asked for, the instruction set and
what `Choice` says: for which batch, and a tuning record's times.
Each layer's kernel and the order of its sums are fixed when it is compiled, so an image gives the
same bits in any batch and with any number of threads.
"""

from convserve.plan.choose import Choice, Times
from convserve.plan.compile import Packed, compile_plan
from convserve.plan.plan import Plan, PlanStep

__all__ = ["Choice", "Packed", "Plan", "PlanStep", "Times", "compile_plan"]
