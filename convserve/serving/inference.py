"""The inference calls, one by one and in streams, and the count of those under way.

A stream's requests are computed side by side and answered in their order. At most `WINDOW` of them
are read ahead of the answers; beyond that HTTP/2's flow control holds the sender back.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import grpc

from convserve.engine.repository import ModelRepository, ServedModel
from convserve.engine.request import Request
from convserve.errors import CancelledError, DeadlineExceededError, QueueFullError, StoppingError
from convserve.serving import codec, shared_tensors, status
from convserve.serving.calls import parse
from convserve.serving.images import ImageDecoder
from convserve.serving.observe import Observer
from convserve.serving.pool import CallPool
from convserve.serving.shared_memory import Regions
from convserve_client import protocol

__all__ = ["MAX_STREAMS", "Inferences"]

MAX_STREAMS = 128
WINDOW = 16
_NO_DEADLINE = 365 * 86400.0  # gRPC says "none" by a time far ahead


def _deadline(context: grpc.ServicerContext) -> float | None:
    remaining = context.time_remaining()
    has_deadline = remaining is not None and remaining < _NO_DEADLINE
    return time.monotonic() + remaining if has_deadline else None


class Inferences:
    """Answers ModelInfer and ModelStreamInfer for a repository's models."""

    def __init__(
        self,
        repository: ModelRepository,
        decoder: ImageDecoder,
        pool: CallPool,
        regions: Regions | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._regions = regions
        self._observer = observer
        self._repository = repository
        self._decoder = decoder
        self._pool = pool
        self._lock = threading.Lock()  # guards what is below, but for `_streams`
        self._idle = threading.Condition(self._lock)
        self._active = 0  # inferences that are not wholly answered
        self._stopping = False
        self._refused = 0  # inferences that came while stopping
        self._streams = threading.BoundedSemaphore(MAX_STREAMS)

    def drain(self, timeout: float) -> bool:
        """Take no more inferences and wait for the accepted ones; whether all ended in time."""
        with self._idle:
            self._stopping = True
            return self._idle.wait_for(lambda: not self._active, timeout)

    def wait_quiet(self, quiet: float, timeout: float) -> None:
        """Wait until for `quiet` seconds no inference had to be refused, at most `timeout`.

        gRPC cancels the calls that reach it at the instant when it shuts down; callers who were
        told UNAVAILABLE before, and have turned elsewhere, do not meet that.
        """
        deadline = time.monotonic() + timeout
        with self._idle:
            while time.monotonic() < deadline:
                seen = self._refused
                if not self._idle.wait_for(lambda: self._refused != seen, quiet):  # noqa: B023
                    return

    def enter(self) -> None:
        """Count an inference as under way; StoppingError if none is taken any more."""
        with self._lock:
            if self._stopping:
                self._refused += 1
                self._idle.notify_all()
                raise StoppingError("Server is stopping and takes no new inference requests")
            self._active += 1

    def leave(self) -> None:
        """Count an inference as wholly answered."""
        with self._lock:
            self._active -= 1
            if self._stopping and not self._active:
                self._idle.notify_all()

    def infer(self, message: Any, context: grpc.ServicerContext) -> Any:
        """ModelInfer."""
        return self._answer(message, _deadline(context), _Inference(self), context)

    def _answer(
        self,
        message: Any,
        deadline: float | None,
        inference: _Inference,
        context: grpc.ServicerContext | None = None,
    ) -> Any:
        """The ModelInferResponse; `context` is that of a call which is this one inference."""
        arrival = time.monotonic_ns()
        served = self._repository.acquire(message.model_name, message.model_version)
        try:
            inference.begin(context)
            answer = self._infer(served, message, deadline, inference)
        except Exception as error:
            served.statistics.failed(status.reason(error), time.monotonic_ns() - arrival)
            raise
        finally:
            self._repository.release(served)
        served.statistics.succeeded(time.monotonic_ns() - arrival)
        return answer

    def _infer(
        self, served: ServedModel, message: Any, deadline: float | None, inference: _Inference
    ) -> Any:
        places = None if self._regions is None else shared_tensors.take(self._regions, message)
        x = codec.read_input(served, message)
        wanted = codec.read_wanted(served, message)
        priority, timeout = codec.read_schedule(message)
        if isinstance(x, list):
            preprocessing = served.model.preprocessing
            assert preprocessing is not None  # else the codec takes no BYTES
            with self._pool.waiting():
                x = self._decoder.decode(x, preprocessing, lambda: inference.check_wanted(deadline))
        layers = codec.layers(served, wanted)
        request = Request(x, outputs=layers, deadline=deadline, priority=priority, timeout=timeout)
        if self._observer is not None:
            self._observer.computes(served, request)
        inference.cancels(request)
        outputs = served.scheduler.run(request, alone=self._active <= 1, waiting=self._pool.waiting)
        answer = codec.response(served, message.id, wanted, outputs)
        if places:
            shared_tensors.deliver(places, answer)
        return answer

    def stream(self, data: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """ModelStreamInfer, on bytes: an answer or an error message for each request, in order."""
        if not self._streams.acquire(blocking=False):
            self._refuse_stream(context, f"more than {MAX_STREAMS} streams are open")
        window = _Window()
        answer = self._answer_in_stream
        if self._observer is not None:
            answer = self._observer.each("ModelStreamInfer", context, answer)
        try:
            reader = threading.Thread(
                target=self._read, args=(data, window, _deadline(context), answer), name="stream"
            )
            reader.daemon = True
            if context.add_callback(window.close):
                try:
                    reader.start()
                except RuntimeError:
                    self._refuse_stream(context, "there can't be more threads")
                while (future := window.get()) is not None:
                    yield future.result()
        finally:
            window.close()
            self._streams.release()

    def _refuse_stream(self, context: grpc.ServicerContext, why: str) -> None:
        failure = status.of(QueueFullError(why))
        if self._observer is not None:
            self._observer.refuses("ModelStreamInfer", context, failure)
        context.abort(failure.code, failure.details)

    def _read(
        self,
        data: Iterator[bytes],
        window: _Window,
        deadline: float | None,
        answer: Callable[[bytes, float | None, _Inference], bytes],
    ) -> None:
        try:
            for request in data:
                inference = _Inference(self)
                if not window.has_room():
                    break
                future: Future[bytes] = Future()
                self._pool.submit(_fulfil, future, answer, request, deadline, inference)
                window.put(inference, future)
        except (grpc.RpcError, RuntimeError):  # the caller went away; the pool was shut down
            window.close()
        window.finish()

    def _answer_in_stream(
        self, data: bytes, deadline: float | None, inference: _Inference
    ) -> bytes:
        message = None
        try:
            message = parse(protocol.ModelInferRequest, data)
            if self._observer is not None:
                self._observer.reads(message)
            marks_final = codec.wants_final_response(message)
            response = self._answer(message, deadline, inference)
            if marks_final:
                response.parameters["triton_final_response"].bool_param = True
            answer = protocol.ModelStreamInferResponse(infer_response=response)
        except Exception as error:
            request_id = getattr(message, "id", "")
            failure = status.of(error, request_id)
            if self._observer is not None:
                self._observer.fails(failure)
            answer = protocol.ModelStreamInferResponse(error_message=failure.details)
            answer.infer_response.id = request_id
        serialized: bytes = answer.SerializeToString()
        return serialized


def _fulfil(future: Future[bytes], call: Callable[..., bytes], *args: Any) -> None:
    try:
        future.set_result(call(*args))
    except Exception as error:
        future.set_exception(error)


class _Inference:
    """One inference from `begin` to `end`: answered, cancelled, or timed out."""

    __slots__ = ("_begun", "_calls", "_lock", "_over", "_request")

    def __init__(self, calls: Inferences) -> None:
        self._calls = calls
        self._lock = threading.Lock()
        self._request: Request | None = None
        self._begun = False
        self._over = False

    def begin(self, context: grpc.ServicerContext | None) -> None:
        """Count it as under way; with the call's own `context`, until that is over."""
        with self._lock:
            if self._over:
                raise CancelledError("the request was cancelled")
            self._calls.enter()
            self._begun = True
        if context is not None and not context.add_callback(self.end):
            self.end()

    def end(self) -> None:
        """It is wholly answered, or nobody waits for it any more."""
        with self._lock:
            if self._over:
                return
            self._over = True
        if self._request is not None:
            self._request.cancel()
        if self._begun:
            self._calls.leave()

    def cancels(self, request: Request) -> None:
        """From now on the end cancels `request`, if it has not run by then."""
        self._request = request
        if self._over:
            request.cancel()

    def check_wanted(self, deadline: float | None) -> None:
        """Raise if nobody waits for an answer any more."""
        if deadline is not None and time.monotonic() >= deadline:
            raise DeadlineExceededError("the request's deadline passed before it was answered")
        if self._over:
            raise CancelledError("the request was cancelled")


class _Window:
    """The inferences of a stream that are under way, oldest first: one thread puts, one gets."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._items: deque[tuple[_Inference, Future[bytes]]] = deque()
        self._current: _Inference | None = None  # of the answer that was got last
        self._finished = False
        self._closed = False

    def has_room(self) -> bool:
        """Wait for room; False if the stream has been closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < WINDOW)
            return not self._closed

    def put(self, inference: _Inference, future: Future[bytes]) -> None:
        """Append an inference."""
        with self._changed:
            self._items.append((inference, future))
            closed = self._closed
            self._changed.notify_all()
        if closed:
            inference.end()

    def get(self) -> Future[bytes] | None:
        """Wait for the next answer; the one before has been sent. None when there is no more."""
        with self._changed:
            sent, self._current = self._current, None
        if sent is not None:
            sent.end()
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._finished or self._closed)
            if self._closed or not self._items:
                return None
            self._current, future = self._items.popleft()
            self._changed.notify_all()
            return future

    def finish(self) -> None:
        """Nothing more will be put."""
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def close(self) -> None:
        """The stream is over, whatever is under way."""
        with self._changed:
            self._closed = True
            under_way = [inference for inference, _ in self._items]
            if self._current is not None:
                under_way.append(self._current)
            self._changed.notify_all()
        for inference in under_way:
            inference.end()
