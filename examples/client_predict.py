"""Call a running server with convserve_client, which needs no more than numpy, grpcio and protobuf.

convserve serve demo/lenet.npz
python examples/client_predict.py localhost:8001 demo/digits/0000-*.png
"""

import sys

import numpy as np

import convserve_client

address, *paths = sys.argv[1:]
with convserve_client.Client(address) as client:
    client.wait_ready(timeout=10)
    shape = tuple(client.model_metadata().inputs[0].shape)[1:]
    print("the model takes images of", shape)

    # Encoded files are decoded on the server, as the model's preprocessing says.
    for path, ranking in zip(paths, client.classify(paths, top_k=3), strict=True):
        print(path, *(f"{label} {score:.4f}" for label, score in ranking))

    # Arrays: uint8 are raw pixels, float32 is taken as already normalised.
    pixels = np.random.default_rng(0).integers(0, 256, (100, *shape), dtype=np.uint8)
    print("predict:", client.predict(pixels).shape)

    # A stream of single images, sent in batches with several requests on their way.
    results = list(client.predict_many(iter(pixels), batch=32, in_flight=8))
    print("predict_many:", len(results), "results of shape", results[0].shape)
