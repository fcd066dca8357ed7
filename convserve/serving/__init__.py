"""The inference server: Open Inference Protocol v2 over gRPC, health, reflection, metrics.

grpcio ── bytes ──> servicer ── codec: checked arrays ──> engine.scheduler
                       │                                       │
                       └── codec: response <── named outputs ──┘

server.py           the composition root: everything is built, started and stopped there
servicer.py         one function a call: convert and call
codec.py            request -> arrays with all checks; named outputs -> response
images.py           encoded images -> pixels, in a pool of their own
classification.py   the classification extension
describe.py         a model's metadata and configuration
status.py           the one place where an exception becomes a gRPC status
metrics.py          statistics -> Prometheus text, and the HTTP server for it
reflection.py       gRPC reflection over two descriptor pools
"""
