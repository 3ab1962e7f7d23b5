"""The kernels of LSH attention, interpreted: equal to the XLA path, and lowered."""

import functools

import attention_oracles as oracles
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models
from jax.sharding import AbstractDevice
from jax.sharding import AbstractMesh
from jax.sharding import AxisType

from reformer_jax import attention
from reformer_jax.attention import choice
from reformer_jax.attention import rows
from reformer_jax.attention import windows
from reformer_jax.attention.kernels import groups
from reformer_jax.attention.kernels import tiles
from reformer_jax.generation import decoding

KERNELS = ('triton', 'mosaic_tpu')

_NAMES = (
    'rule causal before after rounds length masked dropout chunk_length head_size'
).split()
CASES = [
    ('reformer', True, 1, 0, 1, 96, False, 0.0, 16, 32),
    ('reformer', True, 1, 0, 4, 96, True, 0.0, 32, 20),
    ('reformer', True, 2, 0, 2, 144, False, 0.25, 48, 24),
    ('reformer', False, 1, 1, 2, 128, True, 0.25, 32, 64),
    ('bucket', True, 1, 0, 3, 96, True, 0.0, 16, 16),
    ('bucket', False, 1, 2, 2, 96, False, 0.0, 16, 16),
    ('strict', True, 1, 0, 4, 128, True, 0.25, 32, 32),
    ('trax', True, 1, 0, 2, 96, True, 0.0, 48, 32),
    ('trax', False, 1, 1, 2, 96, False, 0.25, 16, 48),
    ('trax', False, 3, 2, 1, 32, True, 0.0, 16, 16),  # around more than once
]


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    """So that short sequences have chunks around the groups of a step."""
    monkeypatch.setattr(groups, '_GROUP_TOKENS', 64)


def _options(case):
    options = dict(zip(_NAMES, case, strict=True))
    length = options.pop('length')
    return length, options


def _value_and_gradients(
    implementation, length, *, rounds, masked, dropout, head_size, dtype=None, **rule
):
    """Output and gradients of both inputs, as numpy."""
    before, after = rule.pop('before'), rule.pop('after')
    kind = attention.LSH(
        chunks_before=before,
        chunks_after=after,
        buckets=8,
        dropout=dropout,
        implementation=implementation,
        **rule,
    )
    inputs = oracles.inputs(length, head_size=head_size)
    qk, v, direction = (jnp.asarray(x, dtype) for x in inputs)
    attend = oracles.lsh(
        kind,
        oracles.mask(length) if masked else None,
        buckets_BHRL=jnp.asarray(oracles.buckets(length, rounds=rounds)),
        key=jax.random.key(3) if dropout else None,
    )
    out, gradients = oracles.value_and_gradients(attend, (qk, v), direction)
    return [np.asarray(x, np.float32) for x in (out, *gradients)]


@functools.cache
def _wanted(case):
    length, options = _options(case)
    return _value_and_gradients('xla', length, **options)


@pytest.mark.slow
@pytest.mark.parametrize('case', CASES, ids=str)
@pytest.mark.parametrize('implementation', KERNELS)
def test_kernel_is_the_xla_path(implementation, case):
    length, options = _options(case)
    got = _value_and_gradients(implementation, length, **options)
    for x, wanted in zip(got, _wanted(case), strict=True):
        oracles.assert_near(x, wanted, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('implementation', KERNELS)
def test_bfloat16_errs_no_more_than_the_xla_path(implementation):
    length, options = _options(CASES[1])
    errors = {
        name: [
            np.linalg.norm(x - wanted) / np.linalg.norm(wanted)
            for x, wanted in zip(
                _value_and_gradients(name, length, **options, dtype=jnp.bfloat16),
                _wanted(CASES[1]),
                strict=True,
            )
        ]
        for name in ('xla', implementation)
    }
    assert max(errors[implementation]) < 0.01, errors
    for error, xla_error in zip(*errors.values(), strict=True):
        assert xla_error < 1.25 * error or error < 1.25 * xla_error, errors


@pytest.mark.parametrize('dtypes', [('bfloat16', 'float32'), ('float32', 'bfloat16')])
@pytest.mark.parametrize('implementation', KERNELS)
def test_gradients_have_the_dtypes_of_their_inputs(implementation, dtypes):
    qk, v = (jax.ShapeDtypeStruct((1, 32, 1, 16), dtype) for dtype in dtypes)

    def gradients(qk, v):
        kind = attention.LSH(chunk_length=16, implementation=implementation)
        attend = oracles.lsh(kind, buckets_BHRL=jnp.zeros((1, 1, 2, 32), jnp.int32))
        out, pullback = jax.vjp(attend, qk, v)
        return out, *pullback(out)

    out, dqk, dv = jax.eval_shape(gradients, qk, v)
    assert (out.dtype, dqk.dtype, dv.dtype) == (v.dtype, qk.dtype, v.dtype)


# ---------------------------------------------------------------- in a model


def _model_gradients(implementation):
    """Logits and gradients of a reversible model with local and LSH layers."""
    changes = {'length': 64, 'axial_shape': (8, 8), 'lsh_chunk_length': 16}
    changes |= {'rounds': 2, 'attention_dropout': 0.1, 'heads_at_once': 1}
    model = small_models.build(implementation=implementation, **changes)
    tokens = np.random.default_rng(0).integers(0, 11, (2, 64))

    def loss(model):
        logits = model(tokens, key=jax.random.key(0, impl='rbg'), train=True)
        return jnp.sum(jnp.sin(7 * logits)), logits

    gradients, logits = oracles.jit(jax.grad(loss, has_aux=True))(model)
    return [logits, *jax.tree.leaves(gradients)]


@pytest.mark.slow
@pytest.mark.parametrize('implementation', KERNELS)
def test_kernel_in_a_reversible_stack(monkeypatch, implementation):
    kernel, calls = choice._ATTEND[implementation], []

    def attend(*arrays):
        calls.append(1)
        return kernel(*arrays)

    monkeypatch.setitem(choice._ATTEND, implementation, attend)
    for x, wanted in zip(
        _model_gradients(implementation), _model_gradients('xla'), strict=True
    ):
        # Streams are rounded to multiples of 2**-14: a last bit becomes one of them.
        oracles.assert_near(x, wanted, 2e-3)
    assert calls


def test_prompts_are_read_by_the_kernel_of_the_config(monkeypatch):
    read = []

    def attend(*arrays):
        read.append(arrays)
        raise ZeroDivisionError

    monkeypatch.setitem(choice._ATTEND, 'triton', attend)
    changes = {'length': 64, 'axial_shape': (8, 8), 'lsh_chunk_length': 16}
    for rule in ('reformer', 'strict'):
        model = small_models.build(implementation='triton', rule=rule, **changes)
        with pytest.raises(ZeroDivisionError):
            decoding.generate(model, [[1] * 40], key=jax.random.key(0), steps=1)
    assert len(read) == 2


def test_config_checks_what_the_kernel_takes():
    with pytest.raises(
        ValueError, match="implementation='triton' does not take.*_leng"
    ):
        small_models.config(implementation='triton')
    with pytest.raises(ValueError, match="implementation='cuda' is none of"):
        small_models.config(implementation='cuda')


# ---------------------------------------------------------------- seen to fail


def _one_place_on(keys):
    def wrong(row, place, tile):
        return keys(row, place + 1, tile)

    return wrong


def _without_the_last(steps_inside):
    def wrong(row, place, tile):
        first, last = steps_inside(row, place, tile)
        return first, last - 1

    return wrong


def _transposed(dropout):
    def wrong(row, queries, query_place, key_place, tile, *, keys_first):
        del keys_first
        return dropout(row, queries, query_place, key_place, tile, keys_first=False)

    return wrong


def _chunk_on(place):
    def wrong(step, hash_round, first, chunk):
        return place(step, hash_round, first, chunk + (chunk < 0))

    return wrong


def _own_never_meet(may_meet):
    def wrong(step, chunks):
        return may_meet(step, chunks).at[..., step.pairs.index((0, 0))].set(0)

    return wrong


@pytest.mark.slow
@pytest.mark.parametrize(
    ('implementation', 'module', 'name', 'wrong', 'case'),
    [
        ('triton', tiles, 'keys', _one_place_on, CASES[0]),
        ('triton', tiles, 'steps_inside', _without_the_last, CASES[1]),
        ('triton', tiles, 'dropout', _transposed, CASES[6]),
        ('mosaic_tpu', groups, '_place', _chunk_on, CASES[1]),
        ('mosaic_tpu', groups, '_may_meet', _own_never_meet, CASES[1]),
    ],
)
def test_wrong_tile_or_index_is_noticed(
    monkeypatch, implementation, module, name, wrong, case
):
    monkeypatch.setattr(module, name, wrong(getattr(module, name)))
    length, options = _options(case)
    got = _value_and_gradients(implementation, length, **options)
    errors = [
        np.linalg.norm(x - wanted) / np.linalg.norm(wanted)
        for x, wanted in zip(got, _wanted(case), strict=True)
    ]
    assert max(errors) > 1e-3


# ---------------------------------------------------------------- lowering

LOWERED = [
    # length, heads, head size, rounds, dtype, settings
    (1024, 2, 64, 4, 'bfloat16', {}),
    (1024, 1, 128, 2, 'bfloat16', {'chunk_length': 256, 'dropout': 0.2}),
    (1024, 2, 64, 8, 'float32', {'chunk_length': 128, 'rule': 'strict'}),
    (1024, 2, 32, 2, 'bfloat16', {'chunk_length': 32, 'rule': 'trax'}),
    (
        960,
        2,
        80,
        2,
        'float32',
        {'chunk_length': 48, 'causal': False, 'chunks_after': 1},
    ),
    (1024, 2, 128, 1, 'float32', {'rule': 'bucket'}),
]


def _traced(implementation, length, heads, head_size, rounds, dtype, settings):
    kind = attention.LSH(buckets=32, implementation=implementation, **settings)

    def attend(qk, v, buckets, mask, direction):
        lsh = oracles.lsh(kind, mask, buckets_BHRL=buckets, key=jax.random.key(0))
        out, vjp = jax.vjp(lsh, qk, v)
        return out, vjp(direction)

    x = jax.ShapeDtypeStruct((1, length, heads, head_size), dtype)
    buckets = jax.ShapeDtypeStruct((1, heads, rounds, length), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, length), bool)
    return jax.jit(attend).trace(x, x, buckets, mask, x)


# Newer JAX says so of its Triton backend; there is no other for gathers of rows.
@pytest.mark.filterwarnings('ignore:The Pallas Triton backend:DeprecationWarning')
@pytest.mark.parametrize('case', LOWERED, ids=str)
def test_triton_kernels_lower_for_cuda(case):
    device = AbstractDevice(device_kind='NVIDIA H200', num_cores=132, platform='cuda')
    mesh = AbstractMesh((1,), ('x',), (AxisType.Auto,), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        lowered = _traced('triton', *case).lower(lowering_platforms=('cuda',))
    text = lowered.as_text()
    for kernel in ('forward', 'combine', 'backward'):
        assert f'lsh_attention_{kernel}' in text
    assert text.count('xla.gpu.triton') == 3


@pytest.mark.parametrize('case', LOWERED, ids=str)
def test_mosaic_kernels_lower_for_tpus(case):
    lowered = _traced('mosaic_tpu', *case).lower(lowering_platforms=('tpu',))
    assert lowered.as_text().count('tpu_custom_call') == 2


# ---------------------------------------------------------------- what is skipped


def test_only_pairs_that_can_meet_are_compared():
    """One bucket a chunk: strict queries need no other chunk's keys."""
    positions = jnp.arange(16).reshape(1, 4, 4)
    plan = windows.Plan(
        chunk_length=4,
        chunks_before=1,
        chunks_after=0,
        causal=True,
        circular=False,
        band=(1, 4),
        band_in_round=True,
        chunks_per_step=1,
        rows=rows.Rows(1, 1),
        order_free=True,
    )
    codes = positions + jnp.arange(4)[:, None] * 4
    chunks = groups.Chunks(
        qk=None,
        v=None,
        queries=jnp.stack([positions, codes], axis=3),
        keys=jnp.stack([positions, codes], axis=2),
    )
    step = groups.step(plan, 1, 4, reach=0)
    assert step.group == 4 and step.around == [-1]
    meet = groups._may_meet(step, chunks).ravel()
    met = [pair for pair, one in zip(step.pairs, meet, strict=True) if one]
    assert met == [(0, 0), (1, 1), (2, 2), (3, 3)]
    # The second chunk in the bucket of the first.
    codes = codes.at[0, 1].add(-4)
    chunks = chunks._replace(
        queries=jnp.stack([positions, codes], axis=3),
        keys=jnp.stack([positions, codes], axis=2),
    )
    meet = groups._may_meet(step, chunks).ravel()
    met = [pair for pair, one in zip(step.pairs, meet, strict=True) if one]
    assert met == [(0, 0), (1, 0), (1, 1), (2, 2), (3, 3)]


# ---------------------------------------------------------------- choice


@pytest.mark.parametrize(
    ('implementation', 'head_size', 'chunk_length', 'dtype', 'message'),
    [
        ('triton', 160, 64, 'float32', 'head_size=160.*up to 128.*xla'),
        ('triton', 64, 40, 'float32', 'chunk_length=40.*that 16 divides'),
        ('triton', 64, 64, 'float16', 'dtype=float16.*float32 or bfloat16'),
        ('mosaic_tpu', 64, 1024, 'bfloat16', 'chunk_length=1024.*16 to 512'),
    ],
)
def test_arrays_that_a_kernel_does_not_take(
    implementation, head_size, chunk_length, dtype, message
):
    kind = attention.LSH(chunk_length=chunk_length, implementation=implementation)
    x = jnp.zeros((1, 2 * chunk_length, 1, head_size), dtype)
    buckets = jnp.zeros((1, 1, 1, 2 * chunk_length), jnp.int32)
    with pytest.raises(ValueError, match=message):
        attention.lsh_attention(kind, x, x, buckets)


def _chosen(implementation='', *, chunk_length=64, length=1024, **settings):
    kind = attention.LSH(
        chunk_length=chunk_length, implementation=implementation, **settings
    )
    return choice.of_lsh(kind, length, 'bfloat16', 64)


def test_a_single_short_chunk_that_a_kernel_does_not_take_is_for_xla():
    assert _chosen('triton', rule='strict', length=48) == 'triton'
    assert _chosen('triton', rule='strict', length=40) == 'xla'
    assert _chosen('triton', rule='reformer', length=40) == choice.EXACT


def test_kernel_of_another_accelerator_is_an_error(monkeypatch):
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    with pytest.raises(ValueError, match="'mosaic_tpu' is for a tpu.*on a gpu.*'xla'"):
        _chosen('mosaic_tpu')
    assert [_chosen(name) for name in ('triton', 'xla')] == ['triton', 'xla']


def test_on_several_devices_kernels_are_for_shard_map():
    axes = {AxisType.Auto: 'xla', AxisType.Manual: 'triton'}
    for axis, wanted in axes.items():
        with jax.sharding.use_abstract_mesh(AbstractMesh((4,), ('x',), (axis,))):
            assert _chosen('triton') == wanted


@pytest.mark.parametrize(
    ('backend', 'capability', 'wanted'),
    [
        ('cpu', '', 'xla'),
        ('gpu', '9.0', 'triton'),
        ('gpu', '10.3', 'triton'),
        ('gpu', '7.5', 'xla'),
        ('gpu', 'gfx90a', 'xla'),
        ('tpu', '', 'mosaic_tpu'),
    ],
)
def test_the_kernel_of_the_device_is_chosen(monkeypatch, backend, capability, wanted):
    class Device:
        compute_capability = capability

    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    monkeypatch.setattr(jax, 'local_devices', lambda: [Device()])
    assert _chosen() == wanted
    assert _chosen(chunk_length=100, length=1000) == 'xla'
    assert _chosen('xla') == 'xla'
