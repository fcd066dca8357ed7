"""A tape's operations in segments.

Operations of images follow each other in a segment until one needs something of the whole batch.
Convolutions whose weights are large beside their images are segments of their own, in which threads
share the filters of the whole batch. Gradients by weights that need the whole batch come last, if
what they read is still there then.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from convserve.training.tape import Op, Tape

__all__ = ["Segment", "recompute", "split"]

ONCE = {"statistics_done", "norm_sums_done"}
# What adds up the lanes' sums of the gradient by a parameter.
REDUCED = {"conv_dw": "conv_reduce", "prelu_slopes": "prelu_reduce"}


@dataclass
class Segment:
    """`ops` by images or, with `parts`, by parts of weights; then `once`, for the whole batch."""

    ops: list[Op] = field(default_factory=list)
    once: list[Op] = field(default_factory=list)
    parts: bool = False
    group: int = 1

    def reads(self, tensor: int) -> bool:
        return any(tensor in op.tensors.values() for op in [*self.ops, *self.once])

    def read_instead(self, tensor: int, other: int) -> None:
        for op in [*self.ops, *self.once]:
            op.tensors = {k: other if v == tensor else v for k, v in op.tensors.items()}


def split(
    tape: Tape,
    by_filters: Mapping[str, Collection[str]],
    packs: Callable[[str], tuple[bool, bool]],
) -> list[Segment]:
    """The tape's operations, those of packing before and those of adding up behind them.

    by_filters: by layer, the operations that share filters. packs: whether a layer's weights are
    packed once a step, for either direction.
    """
    head, tail, body = Segment(parts=True), Segment(parts=True), [Segment()]
    lasting = _lasting(tape)
    for number, op in enumerate(tape.ops):
        mine = by_filters.get(op.layer, ()) if op.kind.startswith("conv") else ()
        if op.kind == "affine" or (op.kind == "conv" and any(packs(op.layer))):
            head.ops.append(Op(f"{op.kind}_pack", {}, op.node, info=op.info))
        whole = replace(op, kind=f"{op.kind}_parts") if op.kind in mine else op
        if op.kind == "affine_dw" or (op.kind == "conv_dw" and set(mine) == {"conv_dw"}):
            if number not in lasting:
                body.append(Segment(parts=True))
            (tail if number in lasting else body[-1]).ops.append(whole)
        elif op.kind in mine:
            last = body[-1].ops[-1].node if body[-1].parts else None
            if op.kind != "conv_dx" or last is not op.node:  # both gradients share a segment
                body.append(Segment(parts=True))
            body[-1].ops.append(whole)
        elif op.kind in ONCE:
            body[-1].once.append(op)
        else:
            if body[-1].once or body[-1].parts:
                body.append(Segment())
            body[-1].ops.append(op)
            if op.kind in REDUCED:
                tail.ops.append(Op(REDUCED[op.kind], {}, op.node, info=op.info))
    return [s for s in (head, *body, tail) if s.ops]


def _lasting(tape: Tape) -> set[int]:
    """The operations by number whose `dy` no later one writes to: gradients share memory."""
    found, written = set[int](), set[int]()
    for number, op in reversed(list(enumerate(tape.ops))):
        if op.tensors.get("dy") not in written:
            found.add(number)
        written |= {op.tensors[role] for role in ("dx", "dr") if role in op.tensors}
    return found


def recompute(tape: Tape, segments: list[Segment]) -> None:
    """Computes batch norm's output again where only one segment of the backward pass needs it.

    That segment reads the normalisation's input anyway, for its sums, so there is less to
    write, to read and to hold.
    """
    for number, segment in enumerate(segments):
        for op in segment.ops:
            if op.kind != "norm" or "r" in op.tensors:
                continue
            y = op.tensors["y"]
            others = [s for n, s in enumerate(segments) if n != number and s.reads(y)]
            if len(others) != 1 or others[0].parts:
                continue
            again = len(tape.tensors)
            tape.tensors.append(replace(tape.tensors[y]))
            others[0].read_instead(y, again)
            others[0].ops.insert(
                next(i for i, o in enumerate(others[0].ops) if again in o.tensors.values()),
                replace(op, tensors={**op.tensors, "y": again}),
            )
