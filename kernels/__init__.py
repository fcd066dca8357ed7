"""Numeric kernels on float32 arrays."""
