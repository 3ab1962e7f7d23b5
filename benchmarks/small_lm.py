"""Sizes of the language model that is timed here, ours and the peers' alike.

Without JAX, whose memory would count in the processes of the peers.
"""

VOCAB_SIZE = 258
D_MODEL = 256
D_FF = 1024
HEADS = 4
HEAD_SIZE = 64
LAYERS = 2
CHUNK_LENGTH = 64
ROUNDS = 4
AXIAL_SIZES = (64, 192)


def axial_shape(length: int) -> tuple[int, int]:
    """Positions along the two axes, powers of two as nearly equal as possible."""
    exponent = length.bit_length() - 1
    if length != 2**exponent:
        raise ValueError(f'length={length} is no power of two: use {2**exponent}.')
    return 2 ** (exponent // 2), 2 ** (exponent - exponent // 2)
