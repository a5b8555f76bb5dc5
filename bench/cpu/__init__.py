"""Speed of the CPU kernels, as ratios to the machine's own bandwidth and to llama.cpp.

    python -m bench.cpu [experts] [model] [lookup] [memory] [--layers 12 28] [--rounds 6]

Shared machines change their bandwidth from second to second, so everything that is compared takes
turns within a round. Stores of random weights in the true shape are made in the cache folder.
"""
