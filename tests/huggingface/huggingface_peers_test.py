"""Against transformers itself, where it is installed (the extra 'peers')."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer_jax import huggingface

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


def _theirs(name):
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
        **_CLASSES[name],
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


@pytest.mark.parametrize('name', _CLASSES)
def test_both_ways(name, tmp_path, monkeypatch):
    theirs = _theirs(name)
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
    for field in ('num_hashes', 'num_buckets', 'is_decoder', 'hidden_act', 'id2label'):
        assert getattr(again.config, field) == getattr(theirs.config, field)


def test_a_pickle_through_torch(tmp_path):
    theirs = _theirs('ReformerForMaskedLM')
    theirs.save_pretrained(tmp_path)
    _, wanted = huggingface.load(tmp_path)
    (tmp_path / huggingface.SAFETENSORS).unlink()
    torch.save(theirs.state_dict(), tmp_path / huggingface.PYTORCH)
    with pytest.raises(ValueError, match='a pickle, which is not loaded unless asked'):
        huggingface.load(tmp_path)
    _, model = huggingface.load(tmp_path, pytorch=True)
    for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(a, b)


class _Malicious:
    def __reduce__(self):
        return print, ('code of the pickle was run',)


def test_code_in_a_pickle_is_not_run(tmp_path, capsys):
    theirs = _theirs('ReformerForMaskedLM')
    theirs.save_pretrained(tmp_path)
    (tmp_path / huggingface.SAFETENSORS).unlink()
    torch.save({'x': _Malicious()}, tmp_path / huggingface.PYTORCH)
    with pytest.raises(ValueError, match='cannot be read by torch'):
        huggingface.load(tmp_path, pytorch=True)
    assert 'was run' not in capsys.readouterr().out
