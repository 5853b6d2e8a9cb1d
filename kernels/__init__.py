"""Triton twins of the CUDA kernels; imported only where Triton is wanted."""
