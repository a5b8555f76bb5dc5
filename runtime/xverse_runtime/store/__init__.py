"""Our own on-disk model: packed weights that are mapped into memory, not read.

`convert` makes a store from a published checkpoint, `open_store` gives its weights to the decoder,
`verify_store` checks every byte. The format stands in docs/format.md.
"""
