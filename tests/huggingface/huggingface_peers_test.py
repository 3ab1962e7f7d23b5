"""Against transformers itself, where it is installed (the extra 'peers')."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models as models

from reformer_jax import huggingface
from reformer_jax.data import tokenizers
from reformer_jax.huggingface import files
from reformer_jax.runs import folder as run_folder
from reformer_jax.training import exchange

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

_LENGTH = 64
_CLASSES = {
    'ReformerModel': {},
    'ReformerModelWithLMHead': {'is_decoder': True},
    'ReformerForMaskedLM': {'lsh_num_chunks_after': 1, 'local_num_chunks_after': 1},
    'ReformerForSequenceClassification': {'num_labels': 3, 'hidden_act': 'gelu'},
    'ReformerForQuestionAnswering': {'axial_pos_embds': False},
}


def _theirs(name, **changes):
    """A random model of transformers, in evaluation mode."""
    config = transformers.ReformerConfig(
        vocab_size=40,
        hidden_size=16,
        num_attention_heads=2,
        attention_head_size=8,
        feed_forward_size=24,
        attn_layers=['local', 'lsh', 'lsh'],
        local_attn_chunk_length=8,
        lsh_attn_chunk_length=8,
        num_hashes=2,
        num_buckets=[2, 4],
        axial_pos_shape=[8, 8],
        axial_pos_embds_dim=[4, 12],
        max_position_embeddings=_LENGTH,
        initializer_range=0.3,
        **(_CLASSES[name] | changes),
    )
    torch.manual_seed(0)
    model = getattr(transformers, name)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        if hasattr(model, 'lm_head'):
            model.lm_head.bias.zero_()  # which transformers 5 does not apply
    return model.eval()


def _output(model, tokens, mask, monkeypatch):
    """Its main output, and the rotations that it drew on the way."""
    drawn, randn = [], torch.randn

    def recorded(*shape, **options):
        drawn.append(randn(*shape, **options))
        return drawn[-1]

    monkeypatch.setattr(torch, 'randn', recorded)
    with torch.no_grad():
        out = model(torch.tensor(tokens), attention_mask=torch.tensor(mask).long())
    monkeypatch.setattr(torch, 'randn', randn)
    if hasattr(out, 'start_logits'):
        main = torch.stack([out.start_logits, out.end_logits], dim=-1)
    else:
        main = out[0]
    return main.numpy(), [jnp.asarray(rotations.numpy()) for rotations in drawn]


_DECODER = {'is_decoder': True}
_CASES = [(name, {}) for name in _CLASSES] + [
    ('ReformerForSequenceClassification', _DECODER),
    ('ReformerForQuestionAnswering', _DECODER),
    ('ReformerModel', _DECODER),
    ('ReformerForMaskedLM', {'hidden_act': 'gelu_fast'}),
    ('ReformerForMaskedLM', {'hidden_act': 'gelu_python'}),
]


@pytest.mark.parametrize(('name', 'changes'), _CASES, ids=str)
def test_both_ways(name, changes, tmp_path, monkeypatch):
    theirs = _theirs(name, **changes)
    theirs.save_pretrained(tmp_path / 'theirs')
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 40, (2, _LENGTH))
    mask = np.arange(_LENGTH) < np.array([[_LENGTH], [41]])
    wanted, rotations = _output(theirs, tokens, mask, monkeypatch)
    config, model = huggingface.load(tmp_path / 'theirs')

    def ours(model):
        options = {'hash_rotations': [None, *rotations]}
        if config.head == 'none':
            return model.encode(tokens, mask, **options)
        return model(tokens, mask, **options)

    made = np.asarray(jax.jit(ours)(model))
    if made.ndim == 3:  # of tokens; those of padding differ
        made, wanted = made[mask], wanted[mask]
    np.testing.assert_allclose(made, wanted, rtol=0, atol=1e-4)

    huggingface.save(tmp_path / 'ours', config, model)
    again = getattr(transformers, name).from_pretrained(tmp_path / 'ours').eval()
    expected = theirs.state_dict()
    found = again.state_dict()
    assert set(found) == set(expected)
    for key, value in found.items():
        assert torch.equal(value, expected[key]), key
    fields = {'num_hashes', 'num_buckets', 'is_decoder', 'hidden_act', 'id2label'}
    for field in fields - {'hidden_act'} & changes.keys():  # one name for the same
        assert getattr(again.config, field) == getattr(theirs.config, field)


def test_a_pickle_through_torch(tmp_path):
    theirs = _theirs('ReformerForMaskedLM')
    theirs.save_pretrained(tmp_path)
    _, wanted = huggingface.load(tmp_path)
    (tmp_path / huggingface.SAFETENSORS).unlink()
    torch.save(theirs.state_dict(), tmp_path / files.PYTORCH)
    with pytest.raises(ValueError, match='a pickle, which is not loaded unless asked'):
        huggingface.load(tmp_path)
    _, model = huggingface.load(tmp_path, pytorch=True)
    for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('parts', [1, 3])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64])
def test_pickles_of_any_age_and_number(tmp_path, zipped, parts, dtype):
    """torch before 1.6 saved no zip archive."""
    theirs = _theirs('ReformerForMaskedLM').to(dtype)
    theirs.save_pretrained(tmp_path)
    _, wanted = huggingface.load(tmp_path)
    (tmp_path / huggingface.SAFETENSORS).unlink()
    state, places = theirs.state_dict(), {}
    for part in range(parts):
        name = f'pytorch_model-{part + 1:05d}-of-{parts:05d}.bin' * (parts > 1)
        content = {key: state[key] for key in sorted(state)[part::parts]}
        file = tmp_path / (name or files.PYTORCH)
        torch.save(content, file, _use_new_zipfile_serialization=zipped)
        places |= dict.fromkeys(content, name)
    if parts > 1:
        index = tmp_path / f'{files.PYTORCH}.index.json'
        index.write_text(json.dumps({'weight_map': places}))
    with pytest.raises(ValueError, match='a pickle, which is not loaded unless asked'):
        huggingface.load(tmp_path)
    _, model = huggingface.load(tmp_path, pytorch=True)
    for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s: {'state_dict': s}, 'holds something else than the tensors'),
        (lambda s: list(s.values()), 'holds something else than the tensors'),
        (lambda s: s | {'lm_head.bias': s['lm_head.bias'] / 0}, 'of lm_head.bias are'),
        (
            lambda s: s | {'lm_head.bias': s['lm_head.bias'].int()},
            'lm_head.bias is of dtype',
        ),
    ],
)
def test_what_a_pickle_may_hold(tmp_path, change, message):
    theirs = _theirs('ReformerForMaskedLM')
    theirs.save_pretrained(tmp_path)
    (tmp_path / huggingface.SAFETENSORS).unlink()
    torch.save(change(theirs.state_dict()), tmp_path / files.PYTORCH)
    with pytest.raises(ValueError, match=f'pytorch_model.bin.* {message}'):
        huggingface.load(tmp_path, pytorch=True)


@pytest.mark.parametrize(
    ('listed', 'layers'),
    [(['local'], 3), (['lsh', 'lsh'], 3), (['local', 'lsh', 'lsh'], 2)],
    ids=str,
)
def test_layers_are_those_that_transformers_makes(tmp_path, listed, layers):
    config = _theirs('ReformerForMaskedLM').config
    config.attn_layers, config.num_hidden_layers = listed, layers
    theirs = transformers.ReformerForMaskedLM(config)
    theirs.save_pretrained(tmp_path)
    again = transformers.ReformerForMaskedLM.from_pretrained(tmp_path)
    kinds = [
        type(layer.attention.self_attention).__name__.removesuffix('SelfAttention')
        for layer in again.reformer.encoder.layers
    ]
    found = huggingface.load(tmp_path)[0]
    assert list(found.pattern) * found.repeats == [kind.lower() for kind in kinds]


class _Malicious:
    def __reduce__(self):
        return print, ('code of the pickle was run',)


def test_code_in_a_pickle_is_not_run(tmp_path, capsys):
    theirs = _theirs('ReformerForMaskedLM')
    theirs.save_pretrained(tmp_path)
    (tmp_path / huggingface.SAFETENSORS).unlink()
    torch.save({'x': _Malicious()}, tmp_path / files.PYTORCH)
    with pytest.raises(ValueError, match='cannot be read by torch'):
        huggingface.load(tmp_path, pytorch=True)
    assert 'was run' not in capsys.readouterr().out


_TEXT = '<p>un<k> Walk(path):\n    """Walks a pad; naïve, wörld 0x41."""\n  return/\n'
_TEXTS = [
    _TEXT * 3,
    'a</s>b <unk><pad>',
    '<0x41> <p>',
    '',
    ' ',
    '  a  b ',
    '\n\n\t x',
    '日本 👍🏽',
    'a\u2581b',
    'ﬁ Ⅳ',
]


def _tokenizer_of_theirs(folder):
    tokenizers = pytest.importorskip('tokenizers')
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token='<unk>'))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=100, special_tokens=['<pad>', '<unk>', '</s>'], show_progress=False
    )
    tokenizer.train_from_iterator([_TEXT] * 3, trainer)
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token='<pad>', eos_token='</s>'
    )
    made(_TEXT, truncation=True, max_length=4)
    made.save_pretrained(folder)


@pytest.mark.parametrize('kind', ['bytes', 'bpe', 'unigram', 'theirs'])
def test_tokenizers_make_the_same_tokens_on_both_sides(kind, tmp_path, capsys):
    model = models.build(rule='trax', vocab_size=258 if kind == 'bytes' else 300)
    huggingface.save(tmp_path / 'model', model.config, model)
    if kind in ('bpe', 'unigram'):
        spiece = tmp_path / 'model' / 'spiece.model'
        tokenizers.train([_TEXT] * 3, spiece, vocab_size=294, model_type=kind)
    elif kind == 'theirs':
        _tokenizer_of_theirs(tmp_path / 'model')
    run, new = str(tmp_path / 'run'), tmp_path / 'new'
    exchange.import_folder(str(tmp_path / 'model'), run)
    kept = run_folder.load_config(run)['data']['tokenizer']
    ours = tokenizers.load(kept)
    assert (kept == 'bytes') == (kind == 'bytes')
    exchange.export_run(run, str(new))
    for folder in (new, tmp_path / 'model')[: 2 if kind == 'theirs' else 1]:
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        for text in _TEXTS:
            ids = ours.encode(text).tolist()
            assert theirs(text)['input_ids'] == ids
            decoded = ours.decode(ids).decode().removeprefix(' ' * (kind != 'bytes'))
            assert theirs.decode(ids, skip_special_tokens=True) == decoded
    assert (theirs.pad_token_id, theirs.eos_token_id) == (0, ours.separator_id)
    assert len(theirs) == ours.vocab_size
    # Back again it is what it was.
    exchange.import_folder(str(new), str(tmp_path / 'again'))
    again = run_folder.load_config(tmp_path / 'again')['data']['tokenizer']
    assert (again == 'bytes') == (kind == 'bytes')
    assert tokenizers.load(again).encode(_TEXT).tolist() == ours.encode(_TEXT).tolist()
