"""Training steps of convserve and PyTorch side by side: `python -m benchmarks.training`.

__main__   rounds, ratios, the report
  └── worker   one contestant in a process of its own: ours or torch_peer
        └── networks   the same graphs, weights and batches for both
"""
