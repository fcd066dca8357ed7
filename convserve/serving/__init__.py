"""The inference server: Open Inference Protocol v2 over gRPC, health, reflection, metrics.

grpcio ── bytes ──> servicer ── codec: checked arrays ──> engine.scheduler
                       │                                       │
                       └── codec: response <── named outputs ──┘

server.py           the composition root: everything is built, started and stopped there
servicer.py         one function a call: convert and call
inference.py        ModelInfer and ModelStreamInfer; what is under way
control.py          the calls that look after the repository, the log and shared memory
calls.py            bytes in, bytes or a status out
codec.py            request -> arrays with all checks; named outputs -> response
images.py           encoded images -> pixels, in a pool of their own
classification.py   the classification extension
describe.py         a model's metadata, configuration and statistics
config_message.py   a configuration as the protocol's message, and back
shared_memory.py    regions of /dev/shm
shared_tensors.py   tensors from regions into a request, and from an answer to regions
logs.py             the log's settings
polling.py          looks at the repository now and then
status.py           the one place where an exception becomes a gRPC status
metrics.py          statistics -> Prometheus text, and the HTTP server for it
reflection.py       gRPC reflection over two descriptor pools
workers/            several processes that share the port and behave as one server
"""
