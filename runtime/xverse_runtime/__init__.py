"""The XVERSE runtime: a local model directory in, tokens out. No network, no terminal."""
