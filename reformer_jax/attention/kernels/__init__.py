"""LSH attention in kernels of our own: Triton for NVIDIA GPUs, Mosaic for TPUs.

Each is a function with the arguments of xla.attend, the XLA path, and to rounding its
result, which the tests hold it to. attention.lsh_attention chooses among them.
"""
