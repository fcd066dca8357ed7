"""The options of a client, and the gRPC channel that they ask for.

Balancing, health, retries and their budget are gRPC's own, by way of a service config: they stay
within the deadline, back off with jitter, obey `grpc-retry-pushback-ms`, and hold for calls in
flight as well as for failed connections.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import grpc

from convserve_client import _address
from convserve_client._address import Address
from convserve_client._checks import (
    MAX_INTERVAL,
    check_choice,
    check_flag,
    check_seconds,
    check_timeout,
    check_whole,
)
from convserve_client._hedging import Hedging
from convserve_client._request_options import Pairs, RequestOptions
from convserve_client._security import Metadata, Tls, Token, bearer, check_metadata

MIB = 1024 * 1024
MAX_RETRIES = 4  # gRPC makes at most five attempts
MAX_RETRY_BUDGET = 500  # gRPC's budget has at most 1000 tokens, half of which can be spent

_COMPRESSION = {"gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}


@dataclass(frozen=True)
class Options:
    """Where the servers are and how to talk to them; errors name what is out of range."""

    address: str | Sequence[str]
    timeout: float | None
    connect_timeout: float
    retries: int
    retry_budget: int
    max_message_bytes: int
    metadata: Pairs = field(repr=False)
    credentials: grpc.ChannelCredentials | None
    tls: Tls | bool
    token: Token | None = field(repr=False)
    load_balancing: str | None
    compression: str | None
    keepalive: float | None
    shared_memory: bool
    hedge_after: float | None
    authority: str | None = None  # that calls and certificates name; None: the first address
    addresses: tuple[Address, ...] = field(init=False)
    pairs: Metadata = field(init=False, repr=False)
    channel_credentials: grpc.ChannelCredentials | None = field(init=False)

    def __post_init__(self) -> None:
        check_timeout(self.timeout)
        check_seconds("connect_timeout", self.connect_timeout, most=MAX_INTERVAL)
        check_whole("retries", self.retries, 0, MAX_RETRIES)
        check_whole("retry_budget", self.retry_budget, 1, MAX_RETRY_BUDGET)
        check_whole("max_message_bytes", self.max_message_bytes, 4096, 2**31 - 1)
        check_choice("load_balancing", self.load_balancing, ("pick_first", "round_robin"))
        check_choice("compression", self.compression, tuple(_COMPRESSION))
        if self.keepalive is not None:
            allowed = "at least 1 s, or None for no pings"
            check_seconds("keepalive", self.keepalive, allowed, 1, MAX_INTERVAL)
        check_flag("shared_memory", self.shared_memory)
        if self.hedge_after is not None:
            check_seconds("hedge_after", self.hedge_after, "above 0 s, or None for no hedging")
            if self.shared_memory:  # the loser would write where the winner's answer lies
                raise ValueError("hedge_after and shared_memory exclude each other: give one")
        self._set("addresses", _address.parse_all(self.address))
        self._set("pairs", check_metadata(self.metadata))
        self._set("channel_credentials", self._credentials())
        self._check_token()
        if self.shared_memory and (len(self.addresses) > 1 or not self.addresses[0].is_local):
            raise ValueError(
                f"shared_memory needs one server on this machine, got {self.address!r}"
            )

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _credentials(self) -> grpc.ChannelCredentials | None:
        if not isinstance(self.tls, Tls | bool):
            raise TypeError(f"tls must be a Tls, True or False, got {type(self.tls).__name__}")
        if not isinstance(self.credentials, grpc.ChannelCredentials | None):
            kind = type(self.credentials).__name__
            raise TypeError(f"credentials must be grpc.ChannelCredentials or None, got {kind}")
        if self.tls is False:
            return self.credentials
        if self.credentials is not None:
            raise ValueError("give one of tls and credentials, not both")
        tls = Tls() if self.tls is True else self.tls
        if len(self.addresses) > 1 and tls.server_name is None:
            raise ValueError(
                "TLS to several addresses needs Tls(server_name=…), which all certificates name"
            )
        return tls.credentials()

    def _check_token(self) -> None:
        if self.token is None:
            return
        if not callable(self.token):
            bearer(self.token)
        if any(key == "authorization" for key, _ in self.pairs):
            raise ValueError("give one of token and the metadata 'authorization', not both")
        if self.channel_credentials is None and not all(a.is_local for a in self.addresses):
            raise ValueError(
                f"a token to {self.address!r} would travel in the clear: give tls= as well"
            )

    def request_options(
        self, priority: int, queue_timeout: float | None, request_id: str, metadata: Pairs
    ) -> RequestOptions:
        """What the caller of a method says of its requests, checked."""
        options = RequestOptions.of(priority, queue_timeout, request_id, metadata)
        if self.token is not None and any(key == "authorization" for key, _ in options.metadata):
            raise ValueError("the client has a token: give no metadata 'authorization' beside it")
        return options

    @property
    def shown_address(self) -> str:
        """For messages."""
        return ", ".join(address.text for address in self.addresses)

    @property
    def balanced(self) -> bool:
        """Whether calls go to all servers in turn, past those that say they are not serving."""
        if self.load_balancing is None:
            return len(self.addresses) > 1
        return self.load_balancing == "round_robin"

    def hedging(self) -> Hedging | None:
        """What bounds the further attempts of a client's calls; None for no hedging.

        gRPC does not tell which of several servers has a call. Two further attempts at different
        servers are at least one at another server than the first.
        """
        if self.hedge_after is None:
            return None
        return Hedging(float(self.hedge_after), self.retry_budget, 3 if self.balanced else 2)

    def again(self) -> list[Options]:
        """Of the channels for further attempts: one a server, or a second one to the only server.

        None for a name with many addresses, which gRPC alone knows: they go in turn as well.
        """
        if self.hedge_after is None:
            return []
        if not self.balanced:
            return [replace(self, metadata=self.pairs, retries=0)]
        if len(self.addresses) == 1:
            return []
        return [
            replace(
                self,
                address=one.text,
                authority=self.addresses[0].text,
                metadata=self.pairs,
                retries=0,  # attempts elsewhere come instead
                load_balancing="round_robin",  # so that health is looked at
            )
            for one in self.addresses
        ]

    def call_metadata(self, own: Metadata = ()) -> Metadata:
        """What goes with a call that is made now: `own`, and what all of the client's have."""
        token = () if self.token is None else (bearer(self.token),)
        return (*self.pairs, *own, *token)

    def channel_arguments(self) -> list[tuple[str, Any]]:
        """The options in gRPC's words."""
        arguments: list[tuple[str, Any]] = [
            ("grpc.max_send_message_length", self.max_message_bytes),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            # A call is retried only while its request is kept, by default up to 256 KiB.
            ("grpc.per_rpc_retry_buffer_size", min(2 * self.max_message_bytes, 2**31 - 1)),
            # One connection a client: a server's processes share a port by connection.
            ("grpc.use_local_subchannel_pool", 1),
            # Despite its name, how long an attempt to connect may take.
            ("grpc.min_reconnect_backoff_ms", max(1, round(self.connect_timeout * 1000))),
            # A server that comes back is found within the time that the retries take.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 500),
            ("grpc.service_config", json.dumps(self._service_config())),
        ]
        authority = self.authority
        if authority is None and len(self.addresses) > 1:
            authority = self.addresses[0].text
        if authority is not None:
            arguments.append(("grpc.default_authority", authority))
        if isinstance(self.tls, Tls) and self.tls.server_name is not None:
            arguments.append(("grpc.ssl_target_name_override", self.tls.server_name))
        if self.keepalive is not None:
            milliseconds = round(self.keepalive * 1000)
            arguments += [
                ("grpc.keepalive_time_ms", milliseconds),
                ("grpc.keepalive_timeout_ms", milliseconds),
                # Newer versions of gRPC wait this long for the answer to a ping, by default 60 s.
                ("grpc.http2.ping_timeout_ms", milliseconds),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.max_pings_without_data", 0),
            ]
        return arguments

    def _service_config(self) -> dict[str, Any]:
        config: dict[str, Any] = {}
        if self.balanced:
            config["loadBalancingConfig"] = [{"round_robin": {}}]
            config["healthCheckConfig"] = {"serviceName": ""}
        if self.retries:
            policy = {
                "maxAttempts": self.retries + 1,
                "initialBackoff": "0.1s",
                "maxBackoff": "5s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE"],
            }
            config["methodConfig"] = [{"name": [{}], "retryPolicy": policy}]
            # A failure takes a token, a success gives a tenth back; above half, calls are retried.
            config["retryThrottling"] = {"maxTokens": 2 * self.retry_budget, "tokenRatio": 0.1}
        return config

    def open(self, api: Any) -> Any:
        """A channel of `grpc` or `grpc.aio`, which connects at its first call."""
        target = _address.target(self.addresses)
        options = self.channel_arguments()
        compression = None if self.compression is None else _COMPRESSION[self.compression]
        if self.channel_credentials is None:
            return api.insecure_channel(target, options=options, compression=compression)
        return api.secure_channel(
            target, self.channel_credentials, options=options, compression=compression
        )
