"""What a caller says of one call: its priority, its time in the queue, its id, its metadata."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from convserve_client._checks import check_name, check_seconds, check_whole
from convserve_client._security import Metadata, check_metadata

Pairs = Iterable[tuple[str, str | bytes]]

_MAX = 2**63 - 1  # what the protocol's parameters hold


@dataclass(frozen=True)
class RequestOptions:
    """Holds for each of the requests that a call makes; made by `of`, which checks."""

    priority: int = 0
    queue_timeout: float | None = None
    request_id: str = ""
    metadata: Metadata = ()

    @classmethod
    def of(
        cls, priority: int, queue_timeout: float | None, request_id: str, metadata: Pairs
    ) -> RequestOptions:
        check_whole("priority", priority, 0, _MAX)
        if queue_timeout is not None:
            allowed = "at least 1e-06 s, or None for the server's own"
            check_seconds("queue_timeout", queue_timeout, allowed, 1e-6, math.inf)
            check_whole("queue_timeout in microseconds", round(queue_timeout * 1e6), 1, _MAX)
        check_name("request_id", request_id, "7f30a1c2")
        return cls(int(priority), queue_timeout, request_id, check_metadata(metadata))

    def fill(self, request: Any) -> None:
        """Writes it into a ModelInferRequest; what was not given leaves nothing there."""
        if self.request_id:
            request.id = self.request_id
        if self.priority:
            request.parameters["priority"].int64_param = self.priority
        if self.queue_timeout is not None:
            microseconds = round(self.queue_timeout * 1e6)
            request.parameters["timeout"].int64_param = microseconds


PLAIN = RequestOptions()
