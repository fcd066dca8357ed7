"""The server speaks the Open Inference Protocol, so that other clients call it unchanged.

pip install 'tritonclient[grpc]'
convserve serve demo/lenet.npz
python examples/triton_client.py localhost:8001 lenet
"""

import sys

import numpy as np
import tritonclient.grpc

address, model = sys.argv[1:]
with tritonclient.grpc.InferenceServerClient(address) as client:
    metadata = client.get_model_metadata(model)
    shape = [4, *metadata.inputs[0].shape[1:]]
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    tensor = tritonclient.grpc.InferInput("input", shape, "UINT8")
    tensor.set_data_from_numpy(pixels)
    print("scores:", client.infer(model, [tensor]).as_numpy("output").shape)

    # The classification extension: the best classes as text, score:index:label.
    best = tritonclient.grpc.InferRequestedOutput("output", class_count=2)
    for row in client.infer(model, [tensor], outputs=[best]).as_numpy("output"):
        print("best:", *(text.decode() for text in row))
