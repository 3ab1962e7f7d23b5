"""What holds for any input: 50 examples of each, 1,000 in ./check --all."""

import bz2
import csv
import functools
import gzip
import io
import json
import lzma

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from reformer_jax import generation
from reformer_jax import model as model_lib
from reformer_jax.attention import hashing
from reformer_jax.data import packing
from reformer_jax.data import tokenizers
from reformer_jax.data.tasks import tables

_LENGTH = 16  # one, so that little is compiled
_VOCAB_SIZE = 11

# All of Unicode but for halves of characters, which no file holds.
_texts = st.text(st.characters(exclude_categories=['Cs']))
_rows = st.lists(
    st.fixed_dictionaries({'text': _texts, 'label': _texts}), min_size=1, max_size=9
)
_tokens = arrays.arrays(np.int32, _LENGTH, elements=st.integers(0, _VOCAB_SIZE - 1))
_masks = arrays.arrays(bool, _LENGTH).filter(np.any)


@functools.cache
def _model(rule):
    config = model_lib.ModelConfig(
        vocab_size=_VOCAB_SIZE,
        length=_LENGTH,
        d_model=16,
        d_ff=16,
        heads=2,
        head_size=8,
        layers=2,
        pattern=('local', 'lsh'),
        local_chunk_length=4,
        lsh_chunk_length=4,
        buckets=(4,),
        rule=rule,
        dense_length=0,
        axial_shape=(4, 4),
        axial_sizes=(8, 8),
    )
    return model_lib.build(config, nnx.Rngs(0))


@jax.jit
def _encode(model, tokens_L, mask_L):
    return model.encode(tokens_L[None], mask_L[None])[0]


# --- Hashing and sorting ------------------------------------------------------------


@hypothesis.given(
    st.sampled_from([1, 7, _LENGTH]).flatmap(
        lambda length: arrays.arrays(np.int32, (2, length), elements=st.integers(0, 6))
    )
)
def test_tokens_are_sorted_by_bucket_then_by_position(buckets):
    order = hashing.sort_order(jnp.asarray(buckets), num_buckets=7)
    np.testing.assert_array_equal(order, np.argsort(buckets, axis=1, kind='stable'))
    ranks = np.asarray(hashing.inverse_order(order))
    places = np.broadcast_to(np.arange(buckets.shape[1]), buckets.shape)
    there_and_back = np.take_along_axis(np.asarray(order), ranks, axis=1)
    np.testing.assert_array_equal(there_and_back, places)


@hypothesis.given(
    arrays.arrays(np.float32, (1, 8, 1, 4), elements=st.floats(-100, 100, width=32)),
    st.sampled_from([(4,), (6, 2)]),
    st.sampled_from([0.5, 2.0, 1024.0]),
)
def test_a_bucket_is_a_direction(vectors, buckets, times):
    rotations = hashing.random_rotations(
        jax.random.key(0), heads=1, head_size=4, rounds=2, buckets=buckets
    )
    ids = hashing.hash_vectors(jnp.asarray(vectors), rotations, buckets=buckets)
    assert ids.min() >= 0 and ids.max() < hashing.bucket_count(buckets)
    longer = hashing.hash_vectors(
        jnp.asarray(times * vectors), rotations, buckets=buckets
    )
    normal = np.abs(vectors).max(axis=-1)[0, :, 0] > 1e-30
    np.testing.assert_array_equal(ids[..., normal], longer[..., normal])


# --- Padding and prompts ------------------------------------------------------------


@pytest.mark.parametrize('rule', ['reformer', 'strict'])
@hypothesis.given(_tokens, _masks, _tokens)
def test_padding_leaves_no_trace(rule, tokens, mask, others):
    """Wherever it stands and whatever it is."""
    model, real = _model(rule), tokens[mask]
    in_front = np.concatenate([real, others[: _LENGTH - real.size]])
    expected = _encode(model, in_front, np.arange(_LENGTH) < real.size)[: real.size]
    for filled in (tokens, np.where(mask, tokens, others)):
        found = _encode(model, filled, mask)[mask]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@hypothesis.given(_tokens, _tokens, st.integers(1, _LENGTH))
def test_a_causal_model_sees_no_later_token(tokens, others, known):
    changed = np.concatenate([tokens[:known], others[known:]])
    model, all_real = _model('strict'), np.ones(_LENGTH, bool)
    one, other = (_encode(model, x, all_real)[:known] for x in (tokens, changed))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@hypothesis.given(
    st.lists(st.lists(st.integers(0, 10), max_size=9), min_size=1, max_size=5)
)
def test_prompts_are_padded_and_found_again(prompts):
    tokens, mask = generation.pad(prompts)
    assert tokens.shape == mask.shape == (len(prompts), max(map(len, prompts)))
    found = [row[real].tolist() for row, real in zip(tokens, mask, strict=True)]
    assert found == prompts


# --- Files --------------------------------------------------------------------------


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('files')


def _read(folder, suffix, content):
    for split in ('train', 'validation'):
        (folder / f'{split}{suffix}').write_bytes(content)
    tables.forget()
    return tables.read(f'{folder}/{{split}}{suffix}', 'train').rows


@hypothesis.given(
    _rows,
    st.sampled_from(['\n', '\r\n', '\r']),
    st.sampled_from(['utf-8', 'utf-8-sig', 'utf-16', 'utf-32']),
)
def test_tables_of_the_csv_module_come_back(folder, rows, end, encoding):
    stream = io.StringIO(newline='')
    # Before Python 3.13 a \r is only quoted where all is.
    how = {'lineterminator': end, 'quoting': csv.QUOTE_ALL}
    writer = csv.DictWriter(stream, ['text', 'label'], **how)
    writer.writeheader()
    writer.writerows(rows)
    assert _read(folder, '.csv', stream.getvalue().encode(encoding)) == rows


@hypothesis.given(_rows, st.booleans(), st.sampled_from(['lines', 'array', 'data']))
def test_tables_of_the_json_module_come_back(folder, rows, ascii_only, form):
    dumps = functools.partial(json.dumps, ensure_ascii=ascii_only)
    lines = '\n'.join(map(dumps, rows))
    text = {'lines': lines, 'array': dumps(rows), 'data': dumps({'data': rows})}[form]
    assert _read(folder, '.json', text.encode()) == rows


@hypothesis.given(
    st.binary(max_size=99).map(b'text '.__add__),
    st.lists(st.sampled_from([gzip, bz2, lzma]), max_size=4),
)
def test_what_is_packed_comes_back(content, packers):
    packed = content
    for packer in packers:
        packed = packer.compress(packed)
    assert packing.members(packed, 'a') == [content]


# --- Tokenizers ---------------------------------------------------------------------


@pytest.fixture(scope='module', params=['bytes', *tokenizers.MODEL_TYPES])
def tokenizer(request, tmp_path_factory):
    if request.param == 'bytes':
        return tokenizers.Bytes()
    path = tmp_path_factory.mktemp('tokenizers') / 'a.model'
    text = 'Where do words end, and where do they begin? ' * 9
    tokenizers.train([text], path, vocab_size=280, model_type=request.param)
    return tokenizers.load(str(path))


@hypothesis.given(_texts)
def test_any_text_comes_back_from_its_tokens(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and ids.min(initial=0) >= 0
    assert ids.max(initial=0) < tokenizer.vocab_size
    space = '' if isinstance(tokenizer, tokenizers.Bytes) or not text else ' '
    assert tokenizer.decode(ids) == (space + text).encode()


@hypothesis.given(_texts)
def test_tokens_stand_for_characters_in_order(tokenizer, text):
    ids, starts, ends = tokenizer.encode_with_offsets(text)
    np.testing.assert_array_equal(ids, tokenizer.encode(text))
    assert len(ids) == len(starts) == len(ends)
    assert (starts <= ends).all() and (np.diff(starts) >= 0).all()
    assert not len(text) or (starts.min() == 0 and ends.max() == len(text))
