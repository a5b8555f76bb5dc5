"""Which experts stay on the GPU and what the rest costs: machines, hit rates, policies."""
