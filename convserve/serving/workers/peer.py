"""Requests and answers between two processes of a server, both ways, over a socket pair.

    frame: length and number of descriptors, a pickle, the descriptors one by one

Only processes that this server has started hold an end of the pair, so that pickles are safe here.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import pickle
import socket
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswer
from typing import Any

from convserve.errors import ConvserveError, WorkerGoneError

__all__ = ["Descriptor", "Peer"]

_log = logging.getLogger(__name__)
_FRAME = struct.Struct("=QI")
_CALL, _TELL, _ANSWER, _FAULT = range(4)


class Descriptor:
    """An open file, closed when nobody holds this any more."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def detach(self) -> int:
        """The descriptor, whose owner is now the caller."""
        fd, self.fd = self.fd, -1
        return fd

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class Peer:
    """One end of the pair. All methods may be called from any thread.

    handlers: what the other end may call, by name. A handler of calls runs in a thread of its own
    and gets a list of Descriptors after its arguments if some came with them; `told` are those of
    news, run one after another in the reading thread. gone: called when the other end has closed.
    """

    def __init__(
        self,
        end: socket.socket,
        handlers: Mapping[str, Callable[..., Any]],
        told: Mapping[str, Callable[..., None]],
        gone: Callable[[], None],
    ) -> None:
        self._socket = end
        self._handlers, self._told, self._on_gone = handlers, told, gone
        self._sending = threading.Lock()
        self._lock = threading.Lock()  # guards what follows
        self._waiting: dict[int, Future[Any]] | None = {}  # None: the other end is gone
        self._numbers = itertools.count()
        self._reader = threading.Thread(target=self._read, name="peer", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._reader.start()

    def call(
        self, name: str, *arguments: Any, fds: Sequence[int] = (), timeout: float | None = None
    ) -> Any:
        """What the other end's handler returns, or raises.

        Raises WorkerGoneError if the other end dies, or does not answer in `timeout` seconds.
        """
        answer: Future[Any] = Future()
        number = next(self._numbers)
        with self._lock:
            if self._waiting is None:
                raise WorkerGoneError("the process is gone")
            self._waiting[number] = answer
        try:
            self._send((_CALL, number, name, arguments), fds, timeout)
            return answer.result(timeout)
        except NoAnswer:
            raise WorkerGoneError(f"the process does not answer in {timeout:g} s") from None
        except OSError:
            raise WorkerGoneError("the process is gone") from None
        finally:
            with self._lock:
                if self._waiting is not None:
                    self._waiting.pop(number, None)

    def tell(self, name: str, *arguments: Any) -> None:
        """Send news; OSError if the other end is gone."""
        self._send((_TELL, 0, name, arguments), ())

    def close(self) -> None:
        """End the connection; both ends notice."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            _log.debug("the other end has closed first")

    def _send(
        self,
        message: tuple[int, int, str, Any],
        fds: Sequence[int],
        timeout: float | None = None,
    ) -> None:
        data = pickle.dumps(message)
        # Something large may be on its way to a process that is stuck.
        if not self._sending.acquire(timeout=-1 if timeout is None else timeout):
            raise NoAnswer
        try:
            self._socket.sendall(_FRAME.pack(len(data), len(fds)))
            self._socket.sendall(data)
            for fd in fds:
                socket.send_fds(self._socket, [b"f"], [fd])
        finally:
            self._sending.release()

    def _receive(self) -> tuple[tuple[int, int, str, Any], list[Descriptor], int]:
        """A message, its descriptors, and how many of them this process could not take."""
        length, count = _FRAME.unpack(self._bytes(_FRAME.size))
        message = pickle.loads(self._bytes(length))
        fds = []
        for _ in range(count):
            data, received, _, _ = socket.recv_fds(self._socket, 1, 1)
            if not data:
                raise EOFError
            for fd in received:  # none if as many files are open as may be
                os.set_inheritable(fd, False)
                fds.append(Descriptor(fd))
        return message, fds, count - len(fds)

    def _bytes(self, count: int) -> bytearray:
        data = bytearray(count)
        view = memoryview(data)
        while view:
            got = self._socket.recv_into(view)
            if not got:
                raise EOFError
            view = view[got:]
        return data

    def _read(self) -> None:
        try:
            while True:
                (kind, number, name, content), fds, lost = self._receive()
                if kind == _CALL:
                    self._called(number, name, content, fds, lost)
                elif kind == _TELL:
                    self._told[name](*content)
                else:
                    self._answered(kind, number, content)
        except (EOFError, OSError) as error:
            _log.debug("the other end has closed: %r", error)
        finally:
            self._end()

    def _called(
        self, number: int, name: str, arguments: Any, fds: list[Descriptor], lost: int
    ) -> None:
        thread = threading.Thread(
            target=self._handle, args=(number, name, arguments, fds), name=name, daemon=True
        )
        try:
            if lost:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            thread.start()
        except (OSError, RuntimeError) as error:  # RuntimeError: there can't be more threads
            reason = getattr(error, "strerror", None) or str(error)
            _log.error("%s failed: %s", name, reason)
            self._send((_FAULT, number, "", ConvserveError(f"{name} failed: {reason}")), ())

    def _handle(self, number: int, name: str, arguments: Any, fds: list[Descriptor]) -> None:
        try:
            result = self._handlers[name](*arguments, *([fds] if fds else []))
            answer = _ANSWER, number, "", result
        except ConvserveError as error:
            answer = _FAULT, number, "", error
        except Exception as error:
            _log.exception("%s failed", name)
            answer = _FAULT, number, "", ConvserveError(f"internal error: {error!r}")
        try:
            self._send(answer, ())
        except OSError:
            _log.debug("nobody waits for the answer to %s", name)

    def _answered(self, kind: int, number: int, content: Any) -> None:
        with self._lock:
            answer = self._waiting.pop(number, None) if self._waiting is not None else None
        if answer is None:
            return  # it came too late
        if kind == _FAULT:
            answer.set_exception(content)
        else:
            answer.set_result(content)

    def _end(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting or {}, None
        for answer in waiting.values():
            answer.set_exception(WorkerGoneError("the process died before it answered"))
        self._on_gone()
