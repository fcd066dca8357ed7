"""The requests that wait, by priority and timeout: no threads here, the caller holds a lock.

level 1   a b c | d'          executed in this order: a b c d' e f
level 2   e f   |             behind the bar: delayed, since their timeout has passed
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain

from convserve.engine.config import DynamicBatching, QueuePolicy
from convserve.engine.request import Request
from convserve.errors import QueueFullError, QueueTimeoutError

__all__ = ["PriorityQueues"]


class _Level:
    """The queue of one priority level."""

    def __init__(self, policy: QueuePolicy) -> None:
        self.policy = policy
        self.waiting: deque[Request] = deque()
        self.delayed: deque[Request] = deque()
        self._timeout = policy.default_timeout_microseconds * 1e-6

    def __len__(self) -> int:
        return len(self.waiting) + len(self.delayed)

    def is_full(self) -> bool:
        bound = self.policy.max_queue_size
        if len(self) < bound:
            return False
        return sum(not request.at_once for request in chain(self.waiting, self.delayed)) >= bound

    def add(self, request: Request, now: float) -> None:
        timeout = self._timeout
        if self.policy.allow_timeout_override and request.timeout:
            timeout = min(timeout or request.timeout, request.timeout)
        request.expiry = now + timeout if timeout else None
        self.waiting.append(request)

    def expire(self, now: float) -> None:
        """Requests that have ended leave; those whose timeout has passed end or are delayed."""
        gone = False
        for request in self.waiting:
            if request.drop_if_expired(now):
                gone = True
            elif request.expiry is not None and now >= request.expiry:
                gone = True
                if self.policy.timeout_action == "DELAY":
                    request.expiry = None
                    self.delayed.append(request)
                else:
                    request.fail(QueueTimeoutError("Request timeout expired"))
        if gone:
            moved = set(map(id, self.delayed))
            self.waiting = deque(r for r in self.waiting if not r.done and id(r) not in moved)
        if self.delayed and any(request.drop_if_expired(now) for request in self.delayed):
            self.delayed = deque(request for request in self.delayed if not request.done)

    def remove(self, taken: set[int]) -> None:
        """Those of these ids leave."""
        self.waiting = deque(r for r in self.waiting if id(r) not in taken)
        if self.delayed:
            self.delayed = deque(r for r in self.delayed if id(r) not in taken)


class PriorityQueues:
    """All requests that wait for a model, the next one first; `len()` counts them."""

    def __init__(self, batching: DynamicBatching) -> None:
        count = max(batching.priority_levels, 1)
        self._levels = [_Level(batching.policy(level)) for level in range(1, count + 1)]
        self._default = max(batching.default_priority_level, 1)

    def __len__(self) -> int:
        return sum(map(len, self._levels))

    def __bool__(self) -> bool:
        return any(level.waiting or level.delayed for level in self._levels)

    def __iter__(self) -> Iterator[Request]:
        """In the order of execution."""
        return chain.from_iterable(chain(level.waiting, level.delayed) for level in self._levels)

    def _level(self, request: Request) -> _Level:
        named = request.priority
        return self._levels[(named if 1 <= named <= len(self._levels) else self._default) - 1]

    def add(self, request: Request, now: float) -> None:
        """Queue a request; QueueFullError if its level is at its bound."""
        level = self._level(request)
        if not request.at_once and level.is_full():
            level.expire(now)
            if level.is_full():
                raise QueueFullError("Exceeds maximum queue size")
        level.add(request, now)

    def expire(self, now: float) -> None:
        """Cancelled and expired requests leave, so that they take no live one's place."""
        for level in self._levels:
            level.expire(now)

    def remove(self, taken: Iterable[Request]) -> None:
        """The requests of a batch leave."""
        ids = set(map(id, taken))
        for level in self._levels:
            level.remove(ids)
