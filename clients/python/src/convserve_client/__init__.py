"""Lean Python client for convserve and other servers of the Open Inference Protocol.

    with convserve_client.Client("localhost:8001") as client:
        scores = client.predict(x)                       # float32 or uint8 [N, C, H, W]
        ranked = client.classify(["digit.png"], top_k=3) # [[(label, score), ...]]

`AsyncClient` is the same for asyncio. Errors: `convserve_client.errors`. The wire itself, for
those who build a server or another client: `convserve_client.protocol`, `convserve_client.tensors`.
Attributes are loaded on first use: a server that needs the protocol alone starts without the rest.
"""

from __future__ import annotations

import typing
from importlib import import_module

if typing.TYPE_CHECKING:
    from convserve_client import errors
    from convserve_client._async_client import AsyncClient
    from convserve_client._client import Client
    from convserve_client._security import Tls
    from convserve_client.errors import ConvserveClientError

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "Client",
    "ConvserveClientError",
    "Tls",
    "__version__",
    "errors",
]

# name -> where it is defined
_NAMES = {
    "AsyncClient": "_async_client",
    "Client": "_client",
    "ConvserveClientError": "errors",
    "Tls": "_security",
}
_MODULES = ("errors", "protocol", "tensors")


def __getattr__(name: str) -> typing.Any:
    if name in _MODULES:
        return import_module(f"convserve_client.{name}")
    if name not in _NAMES:
        raise AttributeError(f"module 'convserve_client' has no attribute {name!r}")
    value = getattr(import_module(f"convserve_client.{_NAMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
