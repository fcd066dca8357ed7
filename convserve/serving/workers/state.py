"""What all workers hold alike, for those that come later, and changes of it: all or nothing."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import NamedTuple

from convserve.errors import ConvserveError, WorkerGoneError
from convserve.serving.workers.peer import Descriptor, Peer

__all__ = ["SharedState"]

_log = logging.getLogger(__name__)


class _Piece(NamedTuple):
    """A model, the log's settings, or the shared memory regions; only workers read the data."""

    kind: str
    data: bytes
    files: tuple[Descriptor, ...]

    def send(self, peer: Peer, call: str) -> None:
        """Have a worker's handler `call` take it."""
        peer.call(call, self.kind, self.data, fds=[file.fd for file in self.files])


class SharedState:
    """All methods may be called from any thread. diverged: called with a worker that holds
    something else than the others; it has to be ended."""

    def __init__(self, diverged: Callable[[Peer], None]) -> None:
        self._diverged = diverged
        self._changing = threading.Lock()  # held for a whole change
        self._lock = threading.Lock()  # guards what follows, never for long
        self._pieces: dict[tuple[str, str], _Piece] = {}
        self._members: list[Peer] = []

    def begin(self, peer: Peer) -> None:
        """The first worker, whose changes are the beginning of everything."""
        with self._changing, self._lock:
            self._pieces.clear()
            self._members[:] = [peer]

    def bring_up(self, peer: Peer) -> None:
        """Give a worker all that the others hold; from then on it takes part in changes."""
        given: dict[tuple[str, str], _Piece] = {}
        while True:
            with self._changing, self._lock:
                missing = [
                    (key, piece)
                    for key, piece in self._pieces.items()
                    if given.get(key) is not piece
                ]
                if not missing:
                    self._members.append(peer)
                    return
            for key, piece in missing:
                piece.send(peer, "adopt")
                given[key] = piece

    def leave(self, peer: Peer) -> None:
        """A worker is gone."""
        with self._lock:
            if peer in self._members:
                self._members.remove(peer)

    def change(
        self, sender: Peer, kind: str, name: str, data: bytes, files: list[Descriptor]
    ) -> None:
        """Have all workers but the sender prepare a change, and then make it.

        Raises what any of them raised, and then nothing has changed.
        """
        piece = _Piece(kind, data, tuple(files))
        with self._changing:
            with self._lock:
                if sender not in self._members:
                    raise WorkerGoneError("the worker is not among those that serve")
                others = [peer for peer in self._members if peer is not sender]
            ready: list[Peer] = []
            try:
                for peer in others:
                    try:
                        piece.send(peer, "prepare")
                    except WorkerGoneError:
                        continue  # it is given the new state when it comes back
                    ready.append(peer)
            except ConvserveError:
                self._finish(ready, "discard")
                raise
            self._finish(ready, "commit")
            with self._lock:
                self._pieces[kind, name] = piece

    def _finish(self, peers: list[Peer], call: str) -> None:
        for peer in peers:
            try:
                peer.call(call)
            except WorkerGoneError:
                continue
            except ConvserveError as error:
                _log.error("a worker can't follow the others: %s", error)
                self._diverged(peer)
