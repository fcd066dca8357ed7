"""The options of a client, and the gRPC channel that they ask for."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import grpc

MIB = 1024 * 1024
MAX_RETRIES = 4  # gRPC makes at most five attempts


@dataclass(frozen=True)
class Options:
    """Where the server is and how to talk to it; ValueError names what is out of range."""

    address: str
    timeout: float | None
    connect_timeout: float
    retries: int
    max_message_bytes: int
    metadata: tuple[tuple[str, str | bytes], ...]
    credentials: grpc.ChannelCredentials | None

    def __post_init__(self) -> None:
        if not isinstance(self.address, str):
            raise TypeError(f"address must be a string, got {type(self.address).__name__}")
        if not self.address or "://" in self.address:
            raise ValueError(f"address must be HOST:PORT, without a scheme, got {self.address!r}")
        check_timeout(self.timeout)
        if not 0 < self.connect_timeout < math.inf:
            raise ValueError(f"connect_timeout must be above 0 s, got {self.connect_timeout}")
        if not 0 <= self.retries <= MAX_RETRIES:
            raise ValueError(f"retries must be 0 to {MAX_RETRIES}, got {self.retries}")
        if not 4096 <= self.max_message_bytes < 2**31:
            raise ValueError(
                f"max_message_bytes must be 4096 to 2147483647, got {self.max_message_bytes}"
            )

    def channel_arguments(self) -> list[tuple[str, Any]]:
        """The options in gRPC's words.

        The retries are gRPC's own: they stay within the deadline, back off with jitter, obey
        `grpc-retry-pushback-ms`, and hold for calls in flight as well as for failed connections.
        """
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
        ]
        if self.retries:
            policy = {
                "maxAttempts": self.retries + 1,
                "initialBackoff": "0.1s",
                "maxBackoff": "5s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE"],
            }
            config = {"methodConfig": [{"name": [{}], "retryPolicy": policy}]}
            arguments.append(("grpc.service_config", json.dumps(config)))
        return arguments

    def open(self, api: Any) -> Any:
        """A channel of `grpc` or `grpc.aio`, which connects at its first call."""
        if self.credentials is None:
            return api.insecure_channel(self.address, options=self.channel_arguments())
        return api.secure_channel(self.address, self.credentials, options=self.channel_arguments())


def check_timeout(timeout: float | None) -> None:
    if timeout is not None and not 0 < timeout < math.inf:
        raise ValueError(f"timeout must be above 0 s, or None for no limit, got {timeout}")


def check_count(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
