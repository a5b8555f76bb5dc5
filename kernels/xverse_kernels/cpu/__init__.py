"""Kernels for the host's processor: a C extension on packed weights."""
