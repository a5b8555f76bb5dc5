"""The operations of the XVERSE models: reference, CPU and Triton kernels. No model, no files."""
