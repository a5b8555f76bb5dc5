"""Triton kernels. Only `xverse_kernels.backend` imports this package, and only on request: the
rest of the project runs where triton is not installed."""
