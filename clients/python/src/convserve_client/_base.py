"""What the sync and the async client share beside the flows: options, deadlines, errors."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, SupportsIndex

import grpc

from convserve_client import protocol
from convserve_client._channel import MIB, Options
from convserve_client._checks import check_timeout
from convserve_client._flows import Flows
from convserve_client._request_options import Pairs
from convserve_client._security import Tls, Token
from convserve_client._shared_memory import Regions
from convserve_client.errors import (
    ClientClosedError,
    ConvserveClientError,
    RequestCancelledError,
    from_rpc_error,
)

CLOSE_SECONDS = 1.0  # for telling the server what it can give back

# An inference, and what has to be known of a model before one.
HEDGED = frozenset({"ModelInfer", "ModelMetadata", "ModelConfig", "RepositoryIndex"})

# Seconds that are left for a call, None for no limit.
Remaining = Callable[[], float | None]


class ClientBase:
    """See `Client` for the parameters."""

    _calls: dict[str, Any]
    _again: Sequence[Any] = ()
    _calls_again: Sequence[dict[str, Any]] = ()

    def __init__(
        self,
        address: str | Sequence[str],
        *,
        timeout: float | None = 30.0,
        connect_timeout: float = 5.0,
        retries: int = 3,
        retry_budget: int = 50,
        max_message_bytes: int = 64 * MIB,
        metadata: Pairs = (),
        token: Token | None = None,
        tls: Tls | bool = False,
        credentials: grpc.ChannelCredentials | None = None,
        load_balancing: str | None = None,
        compression: str | None = None,
        keepalive: float | None = None,
        shared_memory: bool = False,
        hedge_after: float | None = None,
    ) -> None:
        self._options = Options(
            address=address,
            timeout=timeout,
            connect_timeout=connect_timeout,
            retries=retries,
            retry_budget=retry_budget,
            max_message_bytes=max_message_bytes,
            metadata=metadata,
            token=token,
            tls=tls,
            credentials=credentials,
            load_balancing=load_balancing,
            compression=compression,
            keepalive=keepalive,
            shared_memory=shared_memory,
            hedge_after=hedge_after,
        )
        self._hedging = self._options.hedging()
        self._flows = Flows(
            self._options.shown_address, max_message_bytes, Regions() if shared_memory else None
        )
        self._closed = False
        self._open()

    def _open(self) -> None:
        """Makes the channel, where that can be done before the first call."""

    def __repr__(self) -> str:
        state = ", closed" if self._closed else ""
        return f"{type(self).__name__}({self._options.shown_address!r}{state})"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        kind = type(self).__name__
        raise TypeError(
            f"a {kind} can't be copied or pickled, since it holds a connection: "
            f"make another {kind} with the same arguments, in another process too"
        )

    def _limit(self, timeout: float | None) -> float | None:
        """Seconds for a call: `timeout`, or the client's own where that is None."""
        check_timeout(timeout)
        limit = self._options.timeout if timeout is None else timeout
        return None if limit is None else float(limit)

    def _remaining(self, timeout: float | None) -> Remaining:
        """A countdown that starts now."""
        limit = self._limit(timeout)
        if limit is None:
            return lambda: None
        deadline = time.monotonic() + limit
        return lambda: deadline - time.monotonic()

    def _stubs(self, channel: Any) -> dict[str, Any]:
        """What makes each unary call of the protocol; ModelInfer takes a serialized request."""
        return {
            name: channel.unary_unary(
                protocol.path(name),
                request_serializer=(
                    None if name == "ModelInfer" else method.request.SerializeToString
                ),
                response_deserializer=method.response.FromString,
            )
            for name, method in protocol.METHODS.items()
            if not (method.client_streaming or method.server_streaming)
        }

    def _open_again(self, api: Any) -> None:
        """Makes the channels for further attempts; each connects when it is first used."""
        self._again = [options.open(api) for options in self._options.again()]
        self._calls_again = [self._stubs(channel) for channel in self._again]

    def _is_hedged(self, method: str) -> bool:
        return self._hedging is not None and method in HEDGED

    def _attempts(self, method: str) -> Callable[[int], Any]:
        """What makes each attempt of one call, by number."""
        if self._hedging is None or not self._calls_again:
            return lambda number: self._calls[method]
        first = random.randrange(len(self._calls_again))

        def stub(number: int) -> Any:
            if number == 0:
                return self._calls[method]
            return self._calls_again[(first + number) % len(self._calls_again)][method]

        return stub

    def _check_open(self) -> None:
        if self._closed:
            raise ClientClosedError(f"this {type(self).__name__} is closed")

    def _error(self, error: BaseException) -> ConvserveClientError:
        """The error to raise for one that gRPC raised."""
        if self._closed:
            return ClientClosedError(f"this {type(self).__name__} was closed during the call")
        if isinstance(error, grpc.RpcError):
            return from_rpc_error(error)
        return RequestCancelledError("the call was cancelled")
