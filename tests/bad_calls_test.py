"""Bad calls of public functions: an error at once, with value, limit and remedy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from reformer_jax import attention
from reformer_jax import data
from reformer_jax import generation
from reformer_jax import model as model_lib
from reformer_jax import sharding
from reformer_jax import stack
from reformer_jax.attention import hashing
from reformer_jax.data import batching
from reformer_jax.data import images
from reformer_jax.generation import steps
from reformer_jax.generation import translation
from reformer_jax.model import config as model_config
from reformer_jax.runs import checkpoint
from reformer_jax.runs import metrics
from reformer_jax.training import config as training_config
from reformer_jax.training import evaluation
from reformer_jax.training import optimizer

_X = jnp.ones((2, 16, 2, 4))  # queries, keys or values
_IDS = jnp.zeros((2, 2, 2, 16), jnp.int32)
_MASK = jnp.ones((2, 16), bool)
_KEY = jax.random.key(0)
_STREAM = jnp.ones((2, 8, 4))
_PASS = stack.Pass()
_TOKENS = np.ones((2, 8), np.int32)
_SINGLE = np.ones(2, np.int32)
_FIELDS = {
    'vocab_size': 11,
    'length': 16,
    'd_model': 8,
    'd_ff': 8,
    'heads': 2,
    'head_size': 4,
    'layers': 2,
    'pattern': ('local', 'lsh'),
    'local_chunk_length': 4,
    'lsh_chunk_length': 4,
    'axial_shape': (4, 4),
    'axial_sizes': (4, 4),
    'dense_length': 0,
}


@functools.cache
def _model(**changes):
    config = model_lib.ModelConfig(**(_FIELDS | changes))
    return model_lib.build(config, nnx.Rngs(0))


@functools.cache
def _reader():
    config = model_lib.ModelConfig(
        **(_FIELDS | {'encoder': {'pattern': ('full',), 'layers': 1}})
    )
    return model_lib.build(config, nnx.Rngs(0))


def _full(q=_X, k=_X, v=_X, kind=None, **more):
    return attention.full_attention(kind or attention.Full(), q, k, v, **more)


def _local(q=_X, k=_X, v=_X, kind=None, **more):
    kind = kind or attention.Local(chunk_length=4)
    return attention.local_attention(kind, q, k, v, **more)


def _lsh(qk=_X, v=_X, ids=_IDS, kind=None, **more):
    kind = kind or attention.LSH(chunk_length=4, buckets=4)
    return attention.lsh_attention(kind, qk, v, ids, **more)


def _sorted(ids=_IDS, mask=None, kind=None):
    kind = kind or attention.LSH(chunk_length=4, buckets=4)
    return attention.sorted_order(kind, ids, mask)


def _sort(ids=_IDS, num_buckets=4):
    return hashing.sort_order(ids, num_buckets=num_buckets)


def _hash(vectors=_X, width=2, **more):
    rotations = jnp.ones((2, 4, 2, width))
    return hashing.hash_vectors(vectors, rotations, **({'buckets': 4} | more))


def _rotations(**changes):
    settings = {'heads': 2, 'head_size': 4, 'rounds': 2, 'buckets': 4} | changes
    return hashing.random_rotations(settings.pop('key', _KEY), **settings)


def _chunks(x=_X, chunk_length=4, **more):
    return stack.map_chunks(lambda x: x, x, chunk_length=chunk_length, **more)


def _loss(targets=_TOKENS, hidden=_STREAM, **changes):
    settings = {'chunk_length': 4} | changes
    return stack.cross_entropy(lambda x: x, hidden, targets, **settings)


def _scan(how=_PASS, streams=(_STREAM, _STREAM), layers=None, **more):
    layers = layers or (_model().layers[0].branches,)
    return stack.reversible_scan(how, layers, streams, _KEY, (None,), **more)


def _config(**changes):
    return model_lib.ModelConfig(**(_FIELDS | changes))


def _call(tokens=_TOKENS, mask=None, model=None, **more):
    return (model or _model())(tokens, mask, **more)


def _read(tokens=_TOKENS, mask=None, model=None):
    return (model or _reader()).read_source(tokens, mask)


def _generate(prompt=_TOKENS, model=None, **changes):
    settings = {'key': _KEY, 'steps': 2} | changes
    return generation.generate(model or _model(), prompt, **settings)


def _beams(prompt=_TOKENS, model=None, **changes):
    return generation.beam_search(model or _model(), prompt, **({'steps': 2} | changes))


def _score(tokens=_TOKENS, model=None, **more):
    return generation.score(model or _model(), tokens, **more)


def _prefill(tokens=_TOKENS, lengths=(8, 8), capacity=16, **more):
    lengths = np.array(lengths) if isinstance(lengths, tuple) else lengths
    return generation.prefill(_model(), tokens, lengths, capacity=capacity, **more)


@functools.cache
def _state(capacity=16):
    lengths = np.array([8, 8])
    read = functools.partial(generation.prefill, capacity=capacity)
    return jax.jit(read)(_model(), _TOKENS, lengths)[1]


def _step(tokens, **more):
    return generation.decode_step(_model(), _state(**more), tokens)


def _shift(tokens=_TOKENS, config=None):
    return model_lib.shift_right(config or _config(), tokens)


def _padded(length):
    return model_config.padded_length(_config(), length)


def _schedule(steps):
    return optimizer.schedule(optimizer.OptimizerConfig(), steps)


def _optimizer(**changes):
    return optimizer.build(optimizer.OptimizerConfig(**changes), 10)


def _open(**changes):
    fields = {'dataset': 'bytes', 'path': '', 'length': 8, 'batch_size': 2, 'seed': 0}
    return data.open(fields | changes)


def _run(**changes):
    fields = {'steps': 1, 'mesh': {}, 'model': _FIELDS, 'optimizer': {}}
    return training_config.run_config(fields | changes)


_NAN, _INF = float('nan'), float('inf')
_FULL, _LOCAL, _LSH = attention.Full, attention.Local, attention.LSH

# Function, call, what its ValueError says.
_CALLS = [
    ('Full', lambda: _FULL(dropout=1.0), r'dropout=1\.0 .*\[0, 1\)'),
    ('Full', lambda: _FULL(dropout=_NAN), r'dropout=nan .*finite'),
    ('Full', lambda: _FULL(dropout=-0.5), r'dropout=-0\.5 .*\[0, 1\)'),
    ('Full', lambda: _FULL(dropout='0.1'), "dropout='0.1' .*number"),
    ('Full', lambda: _FULL(causal=1), 'causal=1 .*True or False'),
    ('Full', lambda: _FULL(causal=None), 'causal=None .*True or False'),
    ('Full', lambda: _FULL(shared_qk='no'), "shared_qk='no' .*True or False"),
    ('Local', lambda: _LOCAL(chunk_length=0), 'chunk_length=0 .*at least 1'),
    ('Local', lambda: _LOCAL(chunk_length=-4), 'chunk_length=-4 .*at least 1'),
    ('Local', lambda: _LOCAL(chunk_length=4.0), 'chunk_length=4.0 .*whole'),
    ('Local', lambda: _LOCAL(chunk_length=True), 'chunk_length=True .*whole'),
    ('Local', lambda: _LOCAL(chunk_length=None), 'chunk_length=None .*whole'),
    ('Local', lambda: _LOCAL(chunks_before=-1), 'chunks_before=-1.*negative'),
    ('Local', lambda: _LOCAL(chunks_before=0.5), 'chunks_before=0.5 .*whole'),
    ('Local', lambda: _LOCAL(chunks_after=1), 'chunks_after=1 .*causal=False'),
    ('Local', lambda: _LOCAL(causal=False, chunks_after=-1), 'chunks_after=-1.*neg'),
    ('Local', lambda: _LOCAL(dropout=2), r'dropout=2 .*\[0, 1\)'),
    ('Local', lambda: _LOCAL(circular=2), 'circular=2 .*True or False'),
    ('LSH', lambda: _LSH(rounds=0), 'rounds=0 .*at least 1'),
    ('LSH', lambda: _LSH(rounds=-2), 'rounds=-2 .*at least 1'),
    ('LSH', lambda: _LSH(rounds=1.5), 'rounds=1.5 .*whole'),
    ('LSH', lambda: _LSH(rounds=True), 'rounds=True .*whole'),
    ('LSH', lambda: _LSH(chunk_length=0), 'chunk_length=0 .*at least 1'),
    ('LSH', lambda: _LSH(chunks_before=-1), 'chunks_before=-1.*negative'),
    ('LSH', lambda: _LSH(chunks_after=1), 'chunks_after=1 .*causal=False'),
    ('LSH', lambda: _LSH(buckets=3), '3 is not an even .*use 4'),
    ('LSH', lambda: _LSH(buckets=-2), '-2 is not an even .*use 2'),
    ('LSH', lambda: _LSH(buckets=(4, 0)), r'\(4, 0\).*0 is not an even'),
    ('LSH', lambda: _LSH(buckets=(4, 3)), '3 is not an even .*use 4'),
    ('LSH', lambda: _LSH(buckets=4.0), 'buckets=4.0 .*whole'),
    ('LSH', lambda: _LSH(buckets=(2.0, 4)), '2.0, 4.*whole'),
    ('LSH', lambda: _LSH(buckets='four'), "buckets='four'"),
    ('LSH', lambda: _LSH(rule='bucketed'), "rule='bucketed' .*strict"),
    ('LSH', lambda: _LSH(rule=None), 'rule=None'),
    ('LSH', lambda: _LSH(implementation='cuda'), "implementation='cuda' .*xla"),
    ('LSH', lambda: _LSH(rule='strict', chunks_before=2), 'strict.*chunks_before=2'),
    ('LSH', lambda: _LSH(rule='strict', exact=True), 'exact=True .*reformer'),
    ('LSH', lambda: _LSH(dropout=_INF), 'dropout=inf'),
    ('LSH', lambda: _LSH(buckets=0), '0 is not an even .*use 2'),
    ('LSH', lambda: _LSH(buckets=None), 'buckets=None'),
    ('full_attention', lambda: _full(k=_X[:, :8]), r'\(2, 8, 2, 4\).*causal'),
    ('full_attention', lambda: _full(v=_X[:, :8]), r'\(2, 8, 2, 4\)'),
    ('full_attention', lambda: _full(q=_X[:, :, :1]), r'\(2, 16, 1, 4\)'),
    ('full_attention', lambda: _full(q=_X[..., :3]), r'\(2, 16, 2, 3\)'),
    ('full_attention', lambda: _full(q=_X[:1]), r'\(1, 16, 2, 4\)'),
    ('full_attention', lambda: _full(q=_X[0]), r'\(16, 2, 4\)'),
    ('full_attention', lambda: _full(*[_X[:, :0]] * 3), r'\(2, 0, 2, 4\).*empty'),
    ('full_attention', lambda: _full(*[_X[:0]] * 3), r'\(0, 16, 2, 4\).*empty'),
    ('full_attention', lambda: _full(*[_X.astype(int)] * 3), 'int32.*float'),
    ('full_attention', lambda: _full(*[_X.astype(complex)] * 3), 'complex.*float'),
    ('full_attention', lambda: _full(mask=_MASK[:, :8]), r'\(2, 8\).*\(2, 16\)'),
    ('full_attention', lambda: _full(mask=_MASK[0]), r'\(16,\).*\(2, 16\)'),
    ('full_attention', lambda: _full(mask=_MASK.astype(int)), 'int32.*bool'),
    ('full_attention', lambda: _full(mask=_MASK * 0.5), 'float32.*bool'),
    ('full_attention', lambda: _full(q=[[1.0]]), r'queries = \[\[1.0\]\].*array'),
    ('full_attention', lambda: _full(q=None), 'queries = None.*array'),
    ('full_attention', lambda: _full(v=[[1.0]]), r'values = .*array'),
    ('full_attention', lambda: _full(key=0), r'key=0.*jax\.random\.key'),
    ('full_attention', lambda: _full(key='0'), r"key='0'.*jax\.random\.key"),
    ('full_attention', lambda: _full(key=np.ones(2)), r'key=array.*jax\.random\.key'),
    ('full_attention', lambda: _full(key=nnx.Rngs), r'key=.*jax\.random\.key'),
    ('full_attention', lambda: _full(mask=True), 'mask = True.*bool'),
    ('full_attention', lambda: _full(mask=[[True] * 16] * 2), r'mask = \[\[.*bool'),
    ('full_attention', lambda: _full(kind=_LOCAL()), 'Local.*attention.Full'),
    ('full_attention', lambda: attention.full_attention(None, *[_X] * 3), 'None.*Full'),
    ('local_attention', lambda: _local(k=_X[:, :8]), r'\(2, 8, 2, 4\).*alike'),
    ('local_attention', lambda: _local(q=_X[0], k=_X[0], v=_X[0]), r'\(16, 2, 4\)'),
    ('local_attention', lambda: _local(*[_X[:, :10]] * 3), 'length 10 .*8 or 12'),
    ('local_attention', lambda: _local(*[_X[:, :0]] * 3), r'\(2, 0, 2, 4\).*empty'),
    ('local_attention', lambda: _local(*[_X[:0]] * 3), r'\(0, 16, 2, 4\).*empty'),
    ('local_attention', lambda: _local(*[_X.astype(int)] * 3), 'int32.*float'),
    ('local_attention', lambda: _local(mask=_MASK[:, :8]), r'\(2, 8\).*\(2, 16\)'),
    ('local_attention', lambda: _local(mask=_MASK[:1]), r'\(1, 16\).*\(2, 16\)'),
    ('local_attention', lambda: _local(mask=_MASK.astype(int)), 'int32.*bool'),
    ('local_attention', lambda: _local(mask=_MASK[..., None]), r'\(2, 16, 1\)'),
    ('local_attention', lambda: _local(q=None), 'None.*array'),
    ('local_attention', lambda: _local(key=0), r'key=0.*jax\.random\.key'),
    ('local_attention', lambda: _local(mask=True), 'mask = True.*bool'),
    ('local_attention', lambda: _local(kind=_FULL()), 'Full.*attention.Local'),
    ('lsh_attention', lambda: _lsh(v=_X[:, :8]), r'\(2, 8, 2, 4\).*alike'),
    ('lsh_attention', lambda: _lsh(qk=_X[0], v=_X[0]), r'\(16, 2, 4\)'),
    ('lsh_attention', lambda: _lsh(_X[:, :10], _X[:, :10], _IDS[..., :10]), '8 or 12'),
    ('lsh_attention', lambda: _lsh(_X[:, :0], _X[:, :0], _IDS[..., :0]), 'empty'),
    ('lsh_attention', lambda: _lsh(_X[:0], _X[:0], _IDS[:0]), 'empty'),
    ('lsh_attention', lambda: _lsh(_X.astype(int), _X.astype(int)), 'int32.*float'),
    (
        'lsh_attention',
        lambda: _lsh(ids=_IDS[..., :8]),
        r'\(2, 2, 2, 8\).*\(2, 2, R, 16',
    ),
    ('lsh_attention', lambda: _lsh(ids=_IDS[:, :1]), r'\(2, 1, 2, 16\).*\(2, 2, R, 16'),
    ('lsh_attention', lambda: _lsh(ids=_IDS[:, :, 0]), r'\(2, 2, 16\).*\[B, H, R, L\]'),
    ('lsh_attention', lambda: _lsh(ids=_IDS[:, :, :0]), r'\(2, 2, 0, 16\).*not empty'),
    ('lsh_attention', lambda: _lsh(ids=_IDS * 1.0), 'float32.*integers'),
    ('lsh_attention', lambda: _lsh(ids=_IDS + 4), r'bucket 4 .*\[0, 4\)'),
    ('lsh_attention', lambda: _lsh(ids=_IDS - 1), r'bucket -1 .*\[0, 4\)'),
    ('lsh_attention', lambda: _lsh(mask=_MASK[:, :8]), r'\(2, 8\).*\(2, 16\)'),
    ('lsh_attention', lambda: _lsh(mask=_MASK.astype(int)), 'int32.*bool'),
    ('lsh_attention', lambda: _lsh(qk=[[1.0]]), 'array'),
    ('lsh_attention', lambda: _lsh(key=0), r'key=0.*jax\.random\.key'),
    ('lsh_attention', lambda: _lsh(mask=[[True] * 16] * 2), 'bool'),
    ('lsh_attention', lambda: _lsh(kind=_FULL()), 'Full.*attention.LSH'),
    ('lsh_attention', lambda: _lsh(order=_IDS[:, :, :1]), r'\(2, 2, 1, 16\).*sorted_o'),
    ('lsh_attention', lambda: _lsh(order=_IDS * 1.0), 'order .*float32.*integers'),
    ('sorted_order', lambda: _sorted(mask=_MASK[:, :15]), r'\(2, 15\).*\(2, 16\)'),
    ('sorted_order', lambda: _sorted(mask=_MASK[:1]), r'\(1, 16\).*\(2, 16\)'),
    ('sorted_order', lambda: _sorted(mask=_MASK[0]), r'\(16,\).*\(2, 16\)'),
    ('sorted_order', lambda: _sorted(mask=_MASK * 1), 'int32.*bool'),
    ('sorted_order', lambda: _sorted(mask=True), 'mask = True.*bool'),
    ('sorted_order', lambda: _sorted(ids=_IDS > 0), 'bool.*integers'),
    ('sorted_order', lambda: _sorted(ids=_IDS + 9), r'bucket 9 .*\[0, 5\)'),
    ('sorted_order', lambda: _sorted(ids=_IDS[0]), r'\(2, 2, 16\).*\[B, H, R, L\]'),
    ('sorted_order', lambda: _sorted(kind=_FULL()), 'Full.*attention.LSH'),
    ('sort_order', lambda: _sort(num_buckets=0), 'num_buckets=0 .*at least 1'),
    ('sort_order', lambda: _sort(num_buckets=2.5), 'num_buckets=2.5 .*whole'),
    ('sort_order', lambda: _sort(_IDS * 1.0), 'float32.*integers'),
    ('sort_order', lambda: _sort(_IDS[..., :0]), 'empty'),
    ('sort_order', lambda: _sort(_IDS + 4), r'bucket 4 .*\[0, 4\)'),
    ('bucket_factors', lambda: hashing.bucket_factors(2.0), '2.0 is no whole'),
    ('bucket_factors', lambda: hashing.bucket_factors(None), 'None is no whole'),
    ('default_buckets', lambda: hashing.default_buckets(0, 4), 'length=0 .*at least 1'),
    ('default_buckets', lambda: hashing.default_buckets(2.5, 4), 'length=2.5 .*whole'),
    ('default_buckets', lambda: hashing.default_buckets(8, 0), 'chunk_length=0 .*1'),
    ('default_buckets', lambda: hashing.default_buckets(8, '4'), "='4' .*whole"),
    ('hash_vectors', lambda: _hash(width=3), 'width 3 .*need 2'),
    ('hash_vectors', lambda: _hash(buckets=5), '5 is not an even'),
    ('hash_vectors', lambda: _hash(_X[0]), r'\(16, 2, 4\).*\[B, L, H, K\]'),
    ('hash_vectors', lambda: _hash(_X[:, :, :1]), r'\(2, 16, 1, 4\).*rotations'),
    ('hash_vectors', lambda: _hash(_X[..., :3]), r'\(2, 16, 2, 3\).*rotations'),
    ('hash_vectors', lambda: _hash([[1.0]]), 'vectors = .*array'),
    ('hash_vectors', lambda: _hash(_X[:, :0]), r'\(2, 0, 2, 4\).*empty'),
    ('hash_vectors', lambda: _hash(_X.astype(int)), 'int32.*float'),
    ('hash_vectors', lambda: _hash(_X.astype(complex)), 'complex64.*float'),
    ('random_rotations', lambda: _rotations(buckets=()), 'buckets=.. is empty'),
    ('random_rotations', lambda: _rotations(rounds=0), 'rounds=0 .*at least 1'),
    ('random_rotations', lambda: _rotations(heads=-1), 'heads=-1 .*at least 1'),
    ('random_rotations', lambda: _rotations(head_size=0), 'head_size=0 .*at least 1'),
    ('random_rotations', lambda: _rotations(key=0), r'key=0.*jax\.random\.key'),
    ('random_rotations', lambda: _rotations(key=np.ones(2)), r'key=.*random\.key'),
    ('map_chunks', lambda: _chunks(chunk_length=-1), 'chunk_length=-1 .*0'),
    ('map_chunks', lambda: _chunks(chunk_length=2.5), 'chunk_length=2.5 .*whole'),
    ('map_chunks', lambda: _chunks(chunk_length=None), 'chunk_length=None .*whole'),
    ('map_chunks', lambda: _chunks((_X, _X[:, :8])), r'16.*8.*alike in \[B, L\]'),
    ('map_chunks', lambda: _chunks(jnp.ones(3)), r'\(3,\).*\[B, L'),
    ('map_chunks', lambda: _chunks(()), 'at least one of them'),
    (
        'cross_entropy',
        lambda: _loss(targets=_TOKENS[:, :4]),
        '8.*4.*alike',
    ),
    ('cross_entropy', lambda: _loss(targets=_TOKENS * 1.0), 'float.*integers'),
    ('cross_entropy', lambda: _loss(label_smoothing=1.5), r'=1\.5 .*\[0, 1\)'),
    ('cross_entropy', lambda: _loss(label_smoothing=_NAN), r'=nan .*\[0, 1\)'),
    ('cross_entropy', lambda: _loss(chunk_length=-4), 'chunk_length=-4 .*0'),
    ('cross_entropy', lambda: _loss(label_smoothing='0.5'), r"='0.5' .*\[0, 1\)"),
    ('cross_entropy', lambda: _loss(label_smoothing=None), r'=None .*\[0, 1\)'),
    ('Pass', lambda: stack.Pass(grid_bits=23), r'grid_bits=23 .*\[0, 22\]'),
    ('Pass', lambda: stack.Pass(grid_bits=-1), r'grid_bits=-1 .*\[0, 22\]'),
    ('Pass', lambda: stack.Pass(head_groups=0), 'head_groups=0 .*at least 1'),
    ('Pass', lambda: stack.Pass(chunk_length=-1), 'chunk_length=-1 .*0'),
    ('Pass', lambda: stack.Pass(grid_bits=1.0), 'grid_bits=1.0 .*whole'),
    ('Pass', lambda: stack.Pass(train=1), 'train=1 .*True or False'),
    ('Pass', lambda: stack.Pass(single=None), 'single=None .*True or False'),
    (
        'reversible_scan',
        lambda: _scan(stack.Pass(single=True)),
        'single.*residual_scan',
    ),
    ('reversible_scan', lambda: _scan(streams=(_X[0],) * 3), 'must be two'),
    (
        'reversible_scan',
        lambda: _scan(streams=(_STREAM, _STREAM[0])),
        'alike',
    ),
    ('reversible_scan', lambda: _scan(layers=((),) * 2), '2 layers .*1'),
    ('reversible_scan', lambda: _scan(how=None), 'how=None .*Pass'),
    ('reversible_scan', lambda: _scan(streams=(_STREAM.astype(int),) * 2), 'int32.*fl'),
    ('ModelConfig', lambda: _config(vocab_size=0), 'vocab_size=0 .*at least 1'),
    ('ModelConfig', lambda: _config(vocab_size=2.5), 'vocab_size=2.5 .*whole'),
    ('ModelConfig', lambda: _config(length=None), 'length=None .*whole'),
    ('ModelConfig', lambda: _config(d_model=True), 'd_model=True .*whole'),
    ('ModelConfig', lambda: _config(d_model=9), 'axial_sizes=.4, 4. .*d_model=9'),
    ('ModelConfig', lambda: _config(d_ff=-1), 'd_ff=-1 .*at least 1'),
    ('ModelConfig', lambda: _config(heads=0), 'heads=0 .*at least 1'),
    ('ModelConfig', lambda: _config(head_size='4'), "head_size='4' .*whole"),
    ('ModelConfig', lambda: _config(layers=3), 'layers=3 .*pattern'),
    ('ModelConfig', lambda: _config(pattern=()), 'pattern=.. .*lsh'),
    ('ModelConfig', lambda: _config(pattern=('sparse',)), "'sparse'.*lsh"),
    ('ModelConfig', lambda: _config(rounds=0), 'rounds=0 .*at least 1'),
    ('ModelConfig', lambda: _config(buckets=(3,)), '3 is not an even'),
    ('ModelConfig', lambda: _config(rule='own'), "rule='own' .*strict"),
    ('ModelConfig', lambda: _config(dense_length=-2), 'dense_length=-2 .*-1'),
    ('ModelConfig', lambda: _config(axial_shape=(4,)), 'axial_shape=.4,..*two'),
    ('ModelConfig', lambda: _config(axial_shape=(2, 2)), '4.*16'),
    ('ModelConfig', lambda: _config(heads_at_once=3), 'heads_at_once=3 .*divi'),
    ('ModelConfig', lambda: _config(dropout=_NAN), 'dropout=nan'),
    ('ModelConfig', lambda: _config(attention_dropout=1.0), r'=1\.0 .*\[0, 1\)'),
    (
        'ModelConfig',
        lambda: _config(local_attention_dropout=-1.0),
        r'=-1\.0 .*\[0, 1\)',
    ),
    ('ModelConfig', lambda: _config(norm_epsilon=0.0), 'norm_epsilon=0.0 .*positive'),
    ('ModelConfig', lambda: _config(stack='reverse'), "stack='reverse' .*reversible"),
    ('ModelConfig', lambda: _config(streams=3), 'streams=3 .*2'),
    ('ModelConfig', lambda: _config(grid_bits=24), r'grid_bits=24 .*\[0, 22\]'),
    ('ModelConfig', lambda: _config(head='gpt'), "head='gpt' .*lm"),
    ('ModelConfig', lambda: _config(start_token=11), 'start_token=11 .*11'),
    ('ModelConfig', lambda: _config(label_smoothing=1.0), r'=1\.0 .*\[0, 1\)'),
    ('ModelConfig', lambda: _config(dtype='float16'), "dtype='float16' .*bfloat16"),
    ('ModelConfig', lambda: _config(encoder=3), 'encoder=3 .*mapping'),
    ('ModelConfig', lambda: _config(encoder={'depth': 1}), r'encoder\.depth.*layers'),
    ('build', lambda: model_lib.build(_FIELDS, nnx.Rngs(0)), 'dict.*ModelConfig'),
    ('build', lambda: model_lib.build(_config(), 0), 'rngs=0.*nnx.Rngs'),
    ('call', lambda: _call(_TOKENS[0]), r'\(8,\).*\[B, L\]'),
    ('call', lambda: _call(_TOKENS[..., None]), r'\(2, 8, 1\).*\[B, L\]'),
    ('call', lambda: _call(_TOKENS[:, :0]), r'\(2, 0\).*not empty'),
    ('call', lambda: _call(_TOKENS[:0]), r'\(0, 8\).*not empty'),
    ('call', lambda: _call(_TOKENS * 1.0), 'float.*integers'),
    ('call', lambda: _call(_TOKENS > 0), 'bool.*integers'),
    ('call', lambda: _call(_TOKENS + 10), r'token 11 .*\[0, 11\)'),
    ('call', lambda: _call(_TOKENS - 2), r'token -1 .*\[0, 11\)'),
    ('call', lambda: _call(np.ones((1, 17), int)), '17 .*length=16'),
    ('call', lambda: _call(mask=_MASK), r'\(2, 16\).*\(2, 8\)'),
    ('call', lambda: _call(mask=_MASK[:, :7]), r'\(2, 7\).*\(2, 8\)'),
    ('call', lambda: _call(mask=_MASK[:1, :8]), r'\(1, 8\).*\(2, 8\)'),
    ('call', lambda: _call(mask=_TOKENS), 'int32.*bool'),
    ('call', lambda: _call(train=True), 'train=True needs a key'),
    ('call', lambda: _call(hash_rotations=[None]), '1 entries for 2'),
    ('call', lambda: _call(model=_model(head='none')), 'no head.*encode'),
    ('call', lambda: _call(model=_reader()), 'an encoder.*read_source'),
    ('call', lambda: _call(memory=model_lib.Memory(_X[:, :, 0])), 'no encoder'),
    ('call', lambda: _call([[1, 2]]), r'tokens = \[\[1, 2\]\].*array'),
    ('call', lambda: _call(mask=True), 'mask = True.*bool'),
    ('call', lambda: _call(key=0), r'key=0.*jax\.random\.key'),
    ('call', lambda: _call(hash_rotations=[None, None]), 'layer 1 must be rotations'),
    ('call', lambda: _call(hash_rotations=[_X, _X]), 'layer 0 must be None'),
    ('call', lambda: _call(model=_reader(), memory=(_X, None)), 'tuple.*read_source'),
    (
        'call',
        lambda: _call(model=_reader(), memory=model_lib.Memory(_STREAM.astype(int))),
        'int32.*float',
    ),
    ('embed_at', lambda: _model().embed_at(_SINGLE * 1.0, _SINGLE), 'float.*integers'),
    ('embed_at', lambda: _model().embed_at(_SINGLE + 10, _SINGLE), r'token 11 .*11\)'),
    ('embed_at', lambda: _model().embed_at(_SINGLE, _SINGLE[:1]), 'must be alike'),
    ('embed_at', lambda: _model().embed_at(_SINGLE, _SINGLE + 15), 'position 16 .*16'),
    ('embed_at', lambda: _model().embed_at(_SINGLE, _SINGLE - 2), 'position -1 .*16'),
    ('shift_right', lambda: _shift(_TOKENS * 1.0), 'float.*integers'),
    ('shift_right', lambda: _shift(_TOKENS > 0), 'bool.*integers'),
    ('shift_right', lambda: _shift(_TOKENS[0]), r'\(8,\).*\[B, L\]'),
    ('shift_right', lambda: _shift(_TOKENS[:0]), r'\(0, 8\).*empty'),
    ('shift_right', lambda: _shift(None), 'tokens = None.*array'),
    ('shift_right', lambda: model_lib.shift_right(None, _TOKENS), 'config=None'),
    ('shift_right', lambda: _shift(config=_config(start_token=-1)), 'start_token=-1'),
    ('hash_rotations', lambda: model_lib.hash_rotations(_model(), 0), 'key=0.*random'),
    ('hash_rotations', lambda: model_lib.hash_rotations(None), 'model=None .*Reformer'),
    ('padded_length', lambda: _padded(0), 'length=0 .*at least 1'),
    ('padded_length', lambda: _padded(_NAN), 'length=nan .*whole'),
    ('padded_length', lambda: _padded('2'), "length='2' .*whole"),
    ('pad', lambda: generation.pad([1, 2]), r'shape \(\) .*list of token ids'),
    ('pad', lambda: generation.pad([[1.5]]), 'float64.*token ids'),
    ('pad', lambda: generation.pad([[True]]), 'bool.*token ids'),
    ('pad', lambda: generation.pad(['ab']), 'list of token ids'),
    ('encode', lambda: _model().encode(_TOKENS + 10), 'token 11'),
    ('encode', lambda: _model().encode(_TOKENS, _MASK), r'\(2, 16\).*\(2, 8\)'),
    ('encode', lambda: _model().encode(_TOKENS[0]), r'\(8,\).*\[B, L\]'),
    ('read_source', lambda: _read(model=_model()), 'no encoder'),
    ('read_source', lambda: _read(_TOKENS + 10), r'token 11 .*\[0, 11\)'),
    ('read_source', lambda: _read(_TOKENS[0]), r'\(8,\).*\[B, L\]'),
    ('read_source', lambda: _read(mask=_MASK), r'\(2, 16\).*\(2, 8\)'),
    ('read_source', lambda: _read(_TOKENS * 1.0), 'float.*integers'),
    ('with_rounds', lambda: _model().with_rounds(0), 'rounds=0 .*at least 1'),
    ('with_rounds', lambda: _model().with_rounds(1.5), 'rounds=1.5 .*whole'),
    ('generate', lambda: _generate(_TOKENS[0]), r'\(8,\).*\[rows, tokens\]'),
    ('generate', lambda: _generate(_TOKENS * 1.0), 'float.*integers'),
    ('generate', lambda: _generate([[1], [1, 2]]), 'no rectangle.*pad'),
    ('generate', lambda: _generate(np.zeros((0, 4), int)), 'empty prompt.*0 rows'),
    ('generate', lambda: _generate(_TOKENS + 10), r'token 11 .*\[0, 11\)'),
    ('generate', lambda: _generate(_TOKENS - 2), r'token -1 .*\[0, 11\)'),
    ('generate', lambda: _generate(None), 'no prompt and no source'),
    ('generate', lambda: _generate(steps=0), 'steps=0 .*at least 1'),
    ('generate', lambda: _generate(steps=-1), 'steps=-1 .*at least 1'),
    ('generate', lambda: _generate(steps=100), 'steps=100 .*length=16'),
    ('generate', lambda: _generate(steps=10**12), 'steps=1000000000000 .*16'),
    ('generate', lambda: _generate(steps=1.5), 'steps=1.5.*whole'),
    ('generate', lambda: _generate(steps=None), 'steps=None.*whole'),
    ('generate', lambda: _generate(steps=True), 'steps=True.*whole'),
    ('generate', lambda: _generate(samples=0), 'samples=0 .*at least 1'),
    ('generate', lambda: _generate(samples=1.5), 'samples=1.5 .*whole'),
    ('generate', lambda: _generate(samples=10**9), 'samples=1000000000 '),
    ('generate', lambda: _generate(temperature=-1), 'temperature=-1 .*at least 0'),
    ('generate', lambda: _generate(temperature=_NAN), 'temperature=nan .*at least 0'),
    ('generate', lambda: _generate(temperature=None), 'temperature=None .*at least 0'),
    ('generate', lambda: _generate(top_p=0), r'top_p=0 .*\(0, 1\]'),
    ('generate', lambda: _generate(top_p=1.5), r'top_p=1.5 .*\(0, 1\]'),
    ('generate', lambda: _generate(top_p='all'), r"top_p='all' .*\(0, 1\]"),
    ('generate', lambda: _generate(top_k=0), r'top_k=0 .*\[1, 11\]'),
    ('generate', lambda: _generate(top_k=12), r'top_k=12 .*\[1, 11\]'),
    ('generate', lambda: _generate(top_k=2.5), r'top_k=2.5 .*\[1, 11\]'),
    ('generate', lambda: _generate(stop_token=11), r'11.*\[0, 11\)'),
    ('generate', lambda: _generate(stop_token=-1), r'-1.*\[0, 11\)'),
    ('generate', lambda: _generate(mask=_MASK), r'\(2, 16\).*\(2, 8\)'),
    ('generate', lambda: _generate(key=None), r'key=None.*jax\.random\.key'),
    ('generate', lambda: _generate(key=3), r'key=3.*jax\.random\.key'),
    ('generate', lambda: _generate(source=_TOKENS), 'no encoder'),
    ('generate', lambda: _generate(mask=_TOKENS * 2), 'int32.*bool'),
    ('generate', lambda: _generate(stop_token=1.5), r'stop_token=1.5 .*\[0, 11\)'),
    ('generate', lambda: _generate(stop_token=True), r'stop_token=True .*\[0, 11\)'),
    ('generate', lambda: _generate(top_k=True), r'top_k=True .*\[1, 11\]'),
    ('generate', lambda: _generate(model=_reader()), 'gets no source'),
    ('generate', lambda: _generate(model=_model(causal=False, head='none')), 'bidirec'),
    (
        'generate',
        lambda: _generate(model=_reader(), source=_TOKENS[:1]),
        '1 sources and 2',
    ),
    ('beam_search', lambda: _beams(beams=0), 'beams=0 .*at least 1'),
    ('beam_search', lambda: _beams(beams=2.5), 'beams=2.5 .*whole'),
    ('beam_search', lambda: _beams(length_penalty=-1), r'length_penalty=-1 .*\[0, inf'),
    ('beam_search', lambda: _beams(length_penalty=_NAN), 'length_penalty=nan'),
    ('beam_search', lambda: _beams(length_penalty=None), 'length_penalty=None'),
    ('beam_search', lambda: _beams(steps=0), 'steps=0 .*at least 1'),
    ('beam_search', lambda: _beams(steps=[1, 2, 3]), 'steps=.* for 2 prompts'),
    ('beam_search', lambda: _beams(steps=[2, 0]), 'steps=.*at least 1'),
    ('beam_search', lambda: _beams(stop_token=99), r'99.*\[0, 11\)'),
    ('beam_search', lambda: _beams(_TOKENS + 10), 'token 11'),
    ('score', lambda: _score(_TOKENS[0]), r'\(8,\).*\[rows, tokens\]'),
    ('score', lambda: _score(_TOKENS * 0.5), 'float.*integers'),
    ('score', lambda: _score(_TOKENS + 10), 'token 11'),
    ('score', lambda: _score(np.ones((1, 18), int)), '1[78] tokens.*length=16'),
    ('score', lambda: _score(mask=_MASK), r'\(2, 16\).*\(2, 8\)'),
    ('prefill', lambda: _prefill(capacity=4), 'capacity=4 .*8 .*16'),
    ('prefill', lambda: _prefill(capacity=99), 'capacity=99 .*16'),
    ('prefill', lambda: _prefill(lengths=(8,)), r'lengths .*\(1,\).*\(2,\)'),
    ('prefill', lambda: _prefill(lengths=(8, 9)), r'9.*\[1, 8\]'),
    ('prefill', lambda: _prefill(lengths=(8, 0)), r'0.*\[1, 8\]'),
    ('prefill', lambda: _prefill(_TOKENS + 10), 'token 11'),
    ('prefill', lambda: _prefill(_TOKENS * 1.0), 'float.*integers'),
    ('prefill', lambda: _prefill(_TOKENS > 0), 'bool.*integers'),
    ('prefill', lambda: _prefill(capacity=None), 'capacity=None .*whole'),
    ('prefill', lambda: _prefill(lengths=[8, 8]), r'lengths = \[8, 8\].*array'),
    ('prefill', lambda: generation.prefill(None, _TOKENS, _SINGLE, capacity=8), 'None'),
    ('decode_step', lambda: generation.decode_step(None, _state(), _SINGLE), 'None'),
    ('decode_step', lambda: generation.decode_step(_model(), None, _SINGLE), 'None'),
    ('decode_step', lambda: _step(_SINGLE[:, None]), r'\(2, 1\).*\[B\]'),
    ('decode_step', lambda: _step(np.ones(3, int)), r'\(3,\).*\(2,\)'),
    ('decode_step', lambda: _step(_SINGLE * 1.0), 'float.*integers'),
    ('decode_step', lambda: _step(3), 'tokens = 3.*array'),
    ('decode_step', lambda: _step(_SINGLE + 10), r'token 11 .*\[0, 11\)'),
    ('decode_step', lambda: _step(_SINGLE, capacity=8), 'position 8 .*more capacity'),
    ('take_rows', lambda: steps.take_rows(_state(), _SINGLE + 1), 'row 2 .*no other'),
    ('take_rows', lambda: steps.take_rows(_state(), _SINGLE > 0), 'bool.*integers'),
    ('Decoding', lambda: translation.Decoding(beams=0), 'beams=0 .*at least 1'),
    ('Decoding', lambda: translation.Decoding(length_penalty=-1.0), '-1.0'),
    (
        'OptimizerConfig',
        lambda: _optimizer(learning_rate=0.0),
        'learning_rate=0.0 .*pos',
    ),
    ('OptimizerConfig', lambda: _optimizer(learning_rate=_NAN), 'learning_rate=nan'),
    ('OptimizerConfig', lambda: _optimizer(b1=1.0), r'b1=1\.0 .*\[0, 1\)'),
    ('OptimizerConfig', lambda: _optimizer(eps=-1.0), 'eps=-1.0'),
    ('OptimizerConfig', lambda: _optimizer(name='lion'), "name='lion' .*adafactor"),
    ('OptimizerConfig', lambda: _optimizer(decay='step'), "decay='step' .*cosine"),
    ('OptimizerConfig', lambda: _optimizer(warmup_steps=0), 'warmup_steps=0'),
    ('OptimizerConfig', lambda: _optimizer(skips=-1), 'skips=-1'),
    ('schedule', lambda: _schedule(0), 'steps=0 .*at least 1'),
    ('schedule', lambda: _schedule(2.5), 'steps=2.5 .*whole'),
    ('schedule', lambda: _schedule(None), 'steps=None .*whole'),
    ('schedule', lambda: optimizer.build({}, 2), 'dict.*OptimizerConfig'),
    ('run_config', lambda: _run(step=3), '(step: there are|missing config field data)'),
    ('data.open', lambda: _open(dataset='txt'), "'txt'.*enwik8"),
    ('data.open', lambda: _open(length=0), 'length=0'),
    ('data.open', lambda: _open(length=2.5), 'length=2.5'),
    ('data.open', lambda: _open(batch_size=-1), 'batch_size=-1'),
    ('data.open', lambda: _open(seed=-1), 'seed=-1'),
    ('data.open', lambda: _open(seed=2**32), '4294967296'),
    ('data.open', lambda: _open(color='red'), 'color'),
    ('batches', lambda: _open().batches('dev'), "'dev'.*validation"),
    ('to_tokens', lambda: images.to_tokens(np.ones((2, 4, 4, 3))), 'float64.*uint8'),
    ('to_images', lambda: images.to_images(np.full((1, 12), 256)), '256 .*0 to 255'),
    ('average', lambda: images.average(np.ones((1, 64, 64, 3)), 3), 'shrink=3 .*64'),
    ('make_mesh', lambda: sharding.make_mesh({'rows': 1}), "'rows'.*data"),
    ('make_mesh', lambda: sharding.make_mesh({'data': 7}), '7.*1 devices'),
    ('make_mesh', lambda: sharding.make_mesh({'data': 1.5}), '1.5.*whole'),
    ('make_mesh', lambda: sharding.make_mesh({'data': True}), 'True.*whole'),
    ('make_mesh', lambda: sharding.make_mesh({'data': None}), 'None.*whole'),
    ('make_mesh', lambda: sharding.make_mesh('data'), "'data' must be a mapping"),
    ('batching.pad', lambda: batching.pad([[1] * 4], (1, 3)), r'4 values .*\(1, 3\)'),
    ('batching.pad', lambda: batching.pad([[1]] * 3, (2, 3)), r'3 rows .*\(2, 3\)'),
    ('Writer', lambda: metrics.Writer('/no/where', 0), '/no/where .*folder'),
    ('metrics.read', lambda: metrics.read('/no/where'), '/no/where'),
    ('Checkpointer', lambda: checkpoint.Checkpointer('/no/where', keep=0), 'keep=0'),
    ('evaluate', lambda: evaluation.evaluate(None, '/no/where'), '/no/where.*train.py'),
]


@pytest.mark.parametrize(
    ('call', 'message'),
    [case[1:] for case in _CALLS],
    ids=[f'{name}-{number}' for number, (name, *_) in enumerate(_CALLS)],
)
def test_bad_calls_are_refused(call, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        call()


@pytest.mark.parametrize('token', [-1, 11, 2**31 - 1, -(2**31)])
def test_a_token_that_is_none_gives_nan_in_compiled_functions(token):
    """Indices are clamped or counted from the end, which would be another token's."""
    compiled = jax.jit(lambda model, tokens: model(tokens))
    logits = compiled(_model(), np.array([[1, 2, token, 3]], np.int32))
    assert np.isnan(logits[:, 2:]).all()
    assert np.isfinite(compiled(_model(), np.array([[0, 2, 10, 3]], np.int32))).all()


@pytest.mark.parametrize('bucket', [-1, 4, 2**30])
def test_a_bucket_that_is_none_gives_nan_in_compiled_functions(bucket):
    """Of the row, unless it is that of padding."""
    attend = jax.jit(functools.partial(_lsh, _X, _X))
    mask = _MASK.at[:, 2].set(False)
    ids = _IDS.at[0, 1, 0, 2].set(bucket)
    assert np.isfinite(attend(_IDS)).all()
    np.testing.assert_array_equal(
        np.isnan(attend(ids)).all((1, 3)), [[False, True], [False, False]]
    )
    assert np.isfinite(attend(ids, mask=mask)[:, 3:]).all()


@pytest.mark.parametrize('target', [-1, -100, 4, 2**31 - 1, np.int8(-1)])
@pytest.mark.parametrize('chunk_length', [0, 2])
def test_a_target_that_is_none_gives_nan_in_compiled_functions(target, chunk_length):
    targets = jnp.array([[0, 3, 0, 2]], getattr(target, 'dtype', 'int32'))
    losses = jax.jit(functools.partial(_loss, chunk_length=chunk_length))
    for loss in losses(targets.at[0, 2].set(target), jnp.ones((1, 4, 4)))[:2]:
        np.testing.assert_array_equal(np.isnan(loss), [[False, False, True, False]])


@pytest.mark.parametrize(
    ('token', 'position', 'fits'),
    [(3, 8, True), (-1, 8, False), (11, 8, False), (3, 12, False), (3, -1, False)],
)
def test_a_step_that_is_none_gives_nan_in_compiled_functions(token, position, fits):
    state = _state(capacity=12)
    state = dataclasses.replace(state, lengths_B=jnp.array([position, 8]))
    step = jax.jit(generation.decode_step)
    logits, _ = step(_model(), state, jnp.array([token, 3]))
    assert np.isfinite(logits[1]).all()
    assert np.isfinite(logits[0]).all() == fits
