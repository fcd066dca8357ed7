"""Build an architecture of your own, save it, load it, look inside it.

python examples/own_graph.py

The weights are random: `convserve.train(graph, dataset, ...)` would set them.
"""

import tempfile
from pathlib import Path

import numpy as np

import convserve
from convserve import layers
from convserve.errors import ShapeError
from convserve.model_file import ModelFile, save
from convserve.preprocessing import Preprocessing

graph = convserve.Graph((3, 32, 32))  # channels, height, width
graph.add(layers.Conv2d(16, 3, padding=1))
skip = graph.add(layers.ReLU())
graph.add(layers.Conv2d(16, 3, padding=1))
graph.add(layers.BatchNorm())
graph.add(layers.Add(), "bn1", skip)  # a residual connection
graph.add(layers.ReLU())
graph.add(layers.MaxPool2d(2))
graph.add(layers.GlobalAvgPool2d())
graph.add(layers.Flatten())
graph.add(layers.Affine(2))
graph.add(layers.Softmax())

# Every layer's size is checked as it is added.
try:
    convserve.Graph((3, 32, 32)).add(layers.Conv2d(16, 3, stride=2))
except ShapeError as error:
    print("refused:", error)

params = graph.initialise(np.random.default_rng(0))
preprocessing = Preprocessing(32, 32, "rgb", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "own.npz")
    save(path, ModelFile(graph, params, ("cat", "dog"), preprocessing))
    print("arrays that plain NumPy opens:", ", ".join(np.load(path).files[1:4]), "...")
    model = convserve.load(path)

images = np.random.default_rng(1).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
print("predict:", model.predict(images).shape)
for name, values in model.predict(images, outputs=["relu1", "pool1", "logits"]).items():
    print(f"  {name}: {values.shape}")
print("classify:", model.classify(list(images[:1]), top_k=2))
