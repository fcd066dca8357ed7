"""From a graph to what the executor runs.

    graph, params ──lower──> steps ──compile──> Executor ──run──> arrays
                    fold        choose layout and kernel,
                    fuse        place tensors in one arena

The plan is a deterministic function of the model, the outputs asked for and the instruction set.
Each layer's kernel and the order of its sums are fixed when it is compiled, so an image gives the
same bits in any batch and with any number of threads.
"""

from convserve.plan.choose import Choice
from convserve.plan.compile import compile_plan
from convserve.plan.plan import Plan, PlanStep

__all__ = ["Choice", "Plan", "PlanStep", "compile_plan"]
