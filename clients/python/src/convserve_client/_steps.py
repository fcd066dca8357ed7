"""What a flow asks to be done: a flow is a generator that does no I/O itself.

It yields steps (make this call, sleep) and gets their results back, or has their errors thrown in;
its return value is the result. The sync and the async client differ only in how they perform the
steps.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from convserve_client._requests import Answer, Request
from convserve_client._security import Metadata

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """Make one call; the result is the response message."""

    method: str
    request: Any
    wait_for_ready: bool = False
    metadata: Metadata = ()


@dataclass(frozen=True)
class Infer:
    """Make ModelInfer calls, several in flight; the result is what `read` makes of each answer.

    An answer is read before another request is pulled, and so before its memory is used again.
    """

    requests: Iterable[Request]
    read: Callable[[Request, Any], Answer]


@dataclass(frozen=True)
class Sleep:
    """Wait, at most until the deadline."""

    seconds: float


Flow = Generator[Call | Infer | Sleep, Any, T]
