"""A bare grpcio server that answers ModelInfer by the request itself: what the transport costs.

Synchronous and in Python as our own; nothing is parsed, checked or computed.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import grpc

from convserve_client import protocol


def main(port: int) -> None:
    server = grpc.server(
        ThreadPoolExecutor(64),
        options=[("grpc.so_reuseport", 1), ("grpc.max_receive_message_length", -1)],
    )
    handler = grpc.unary_unary_rpc_method_handler(lambda data, context: data)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(protocol.SERVICE, {"ModelInfer": handler}),)
    )
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    print(f"ready grpc=127.0.0.1:{bound}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main(int(sys.argv[1]))
