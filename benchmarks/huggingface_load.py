"""Seconds and memory to load models of the published checkpoints' sizes.

  python benchmarks/huggingface_load.py

The files hold random numbers; both configs are those of the published models (see
tests/huggingface_test.py). Each is loaded alone in a fresh process. `grown_mib` is what
the peak resident memory grew by, over a process with JAX started, pages of the mapped
file included.
"""

import json
import multiprocessing
import pathlib
import sys
import tempfile
import time
from concurrent import futures
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import numpy as np
import safetensors.numpy

from benchmarks import timing
from reformer_jax import huggingface
from reformer_jax.huggingface import fields as fields_lib
from reformer_jax.huggingface import tensors
from reformer_jax.training import command_line

_CAUSAL = {
    'architectures': ['ReformerModelWithLMHead'],
    'model_type': 'reformer',
    'is_decoder': True,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    'reformer-enwik8': _CAUSAL
    | {
        'vocab_size': 258,
        'hidden_size': 1024,
        'num_attention_heads': 8,
        'attention_head_size': 128,
        'feed_forward_size': 4096,
        'attn_layers': ['local', 'local', 'lsh', 'local'] * 3,
        'lsh_attn_chunk_length': 256,
        'local_attn_chunk_length': 128,
        'num_hashes': 4,
        'num_buckets': 512,
        'axial_pos_shape': [128, 512],
        'axial_pos_embds_dim': [256, 768],
        'max_position_embeddings': 65536,
        'hidden_dropout_prob': 0.2,
        'lsh_attention_probs_dropout_prob': 0.1,
        'local_attention_probs_dropout_prob': 0.2,
    },
    'reformer-crime-and-punishment': _CAUSAL
    | {
        'num_attention_heads': 2,
        'num_buckets': [64, 128],
        'axial_pos_shape': [512, 1024],
        'max_position_embeddings': 524288,
    },
}


def write(folder: pathlib.Path, fields: dict[str, Any]) -> int:
    """A model of random numbers; returns the bytes of its file."""
    rng = np.random.default_rng(0)
    config = fields_lib.to_model_config(fields)
    arrays = {
        tensor.name: rng.standard_normal(tensor.shape, np.float32)
        for tensor in tensors.tensors(config)
    }
    folder.mkdir()
    (folder / huggingface.CONFIG).write_text(json.dumps(fields), 'utf-8')
    safetensors.numpy.save_file(arrays, folder / huggingface.SAFETENSORS)
    return (folder / huggingface.SAFETENSORS).stat().st_size


def measure(folder: str) -> dict[str, float]:
    """Loads a folder once."""
    # tensorboardX imports PyTorch wherever it is installed.
    sys.modules['torch'] = None  # type: ignore[assignment]
    jax.block_until_ready(jax.numpy.zeros(8) + 1)
    before, started = timing.resident_memory_mib(), time.perf_counter()
    _, model = huggingface.load(folder)
    jax.block_until_ready(model)
    seconds = time.perf_counter() - started
    return {'seconds': seconds, 'grown_mib': timing.peak_memory_mib() - before}


def main() -> None:
    spawn = multiprocessing.get_context('spawn')
    with tempfile.TemporaryDirectory() as root:
        for name, fields in PUBLISHED.items():
            folder = pathlib.Path(root) / name
            # A new process inherits the peak of the one that starts it, so that this
            # one must not write the file either.
            with futures.ProcessPoolExecutor(1, spawn) as process:
                file_mib = process.submit(write, folder, fields).result() / 2**20
            with futures.ProcessPoolExecutor(1, spawn) as process:
                point = process.submit(measure, str(folder)).result()
            times = point['grown_mib'] / file_mib
            timing.print_point(
                {'model': name, 'file_mib': file_mib, **point, 'times_file': times}
            )


if __name__ == '__main__':
    command_line.script(main)
