"""Ahead-of-time compilation of every kernel for every target, without a GPU: `python -m tools.aot`.

What would be compiled is found by running the decoder and the sampler on the meta device with
launches recorded (launches.py); each is compiled and its machine code counted (build.py, sass.py),
and held against budgets (budgets.py).
"""
