"""The server beside a bare gRPC echo: `make bench-serving`."""
