"""What makes a Reformer: every choice, checked when it is made."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from reformer_jax.attention import choice
from reformer_jax.attention import fields
from reformer_jax.attention import hashing
from reformer_jax.attention import kinds

ATTENTIONS = ('lsh', 'local', 'full')
POSITIONS = ('axial', 'learned', 'sinusoidal', 'none')
STACKS = ('reversible', 'residual', 'checkpoint')
COMBINES = ('concatenate', 'average')
DTYPES = ('float32', 'bfloat16')
POOLINGS = ('first', 'mean', 'last')
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    'relu': jax.nn.relu,
    'gelu': jax.nn.gelu,
    'gelu_erf': functools.partial(jax.nn.gelu, approximate=False),
    'swish': jax.nn.swish,
}

# dense_length that is worked out from the rounds.
AUTOMATIC = -1

# Queries in a block of exact attention.
_QUERIES = 128

# What an encoder has to be; and what it does not take from the decoder beside it.
_ENCODER = {'causal': False, 'head': 'none', 'start_token': -1, 'encoder': None}
_DECODERS_OWN = (
    *_ENCODER,
    'share_embedding',
    'tie_output',
    'classes',
    'pooling',
    'label_smoothing',
)

# Those that look at single places of the whole text: useless on causal models.
BIDIRECTIONAL_HEADS = ('masked_lm', 'token_classification', 'question_answering')
# Head and pooling of the causal ones that transformers has all the same.
CAUSAL_THERE = (('question_answering', 'first'), ('classification', 'first'))
HEADS = ('lm', 'classification', *BIDIRECTIONAL_HEADS, 'none')


def _architecture(default: Any = dataclasses.MISSING) -> Any:
    """A field that gives the parameters their meaning."""
    return dataclasses.field(default=default, metadata={'architecture': True})


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything that makes a Reformer; checked when made.

    Attributes:
      vocab_size: number of token ids.
      length: longest sequence.
      d_model: width of each of the two streams.
      d_ff: hidden units of the feed-forward layers.
      heads: attention heads.
      head_size: size of a head's queries, keys and values.
      layers: attention and feed-forward pairs; a multiple of the pattern's length.
      pattern: attention of the layers, repeated: 'lsh', 'local' or 'full' each.
      causal: whether tokens see only earlier ones.
      local_chunk_length, local_chunks_before, local_chunks_after: of attention.Local.
      lsh_chunk_length, lsh_chunks_before, lsh_chunks_after, buckets, rounds, rule,
        implementation: of attention.LSH. Buckets () are chosen by `length`, the same
        for shorter sequences; with rule 'trax' local attention is circular.
      dense_length: models of `length` up to this get exact shared-QK attention in LSH
        layers, as do those of at most one chunk; -1 for as long as that is no slower;
        0 for LSH wherever there are two chunks. Not with rule 'strict'.
      shared_qk: whether full attention shares queries and keys, as LSH does.
      activation: 'relu', 'gelu' (by tanh), 'gelu_erf' or 'swish'.
      positions: 'axial', 'learned', 'sinusoidal' or 'none'.
      axial_shape: positions along each axis, last axis fastest.
      axial_sizes: width of each axis's embeddings; they add up to d_model.
      heads_at_once: heads whose queries, keys and values exist at a time, as the
        paper's code does it; 0 for all.
      dropout: rate for embeddings and the outputs of the branches.
      attention_dropout: rate for probabilities of LSH and full attention.
      local_attention_dropout: rate for probabilities of local attention.
      norm_epsilon: added to the variance in layer norms.
      stack: 'reversible'; 'residual', the same function with saved activations; or
        'checkpoint', the same with recomputation from each repeat's inputs.
      streams: residual streams, 2, which can be reversible; or the Transformer's 1,
        as the paper's baseline, with stack 'residual' or 'checkpoint'. (What reads the
        last streams then gets the same twice: as many parameters.)
      label_smoothing: share of a target's probability that training's loss spreads
        evenly over the vocabulary; the loss that is reported has none. For the heads
        'lm' and 'masked_lm'.
      grid_bits: in training streams are multiples of 2**-grid_bits, which makes the
        reversible stack exact (see reversible.py); 0 for plain float32.
      combine: the streams at the end, 'concatenate' or 'average'.
      head: what is made of the last streams: 'lm' (the next token, of causal models),
        'masked_lm' (the hidden token), 'classification' (of the sequence),
        'token_classification', 'question_answering' (first and last token of the
        answer) or 'none' (only Reformer.encode).
      classes: of the two classification heads; 1 for regression.
      pooling: what stands for a sequence in classification: its 'first' or 'last'
        token or the 'mean' of all. A causal model needs 'last', but for rule 'trax':
        Hugging Face has causal classifiers by the first.
      start_token: read before every sequence, so that its first token is predicted
        too; -1 for none, as in Hugging Face's models. For head 'lm'.
      tie_output: whether the logits use the embedding, which the last norm's scale
        makes as small at first as it has to be for that; with concatenated streams
        through a projection to d_model. For the heads 'lm' and 'masked_lm'.
      feed_forward_chunk_length: tokens at a time in feed-forward layers and in the
        projections to heads, 0 for all.
      loss_chunk_length: tokens at a time in logits and loss, 0 for all.
      dtype: of matrix operands; parameters and streams are float32.
      encoder: a bidirectional Reformer whose hidden states each layer attends to,
        between attention and feed-forward: the fields in which it differs from this
        one, or its whole ModelConfig; None or {} for a model without. It is completed
        when this config is made: dataclasses.replace later changes the decoder alone.
      share_embedding: whether the encoder uses this model's embedding of tokens.
    """

    vocab_size: int = _architecture()
    length: int = _architecture()
    d_model: int = _architecture()
    d_ff: int = _architecture()
    heads: int = _architecture()
    head_size: int = _architecture()
    layers: int = _architecture()
    pattern: tuple[str, ...] = _architecture()
    causal: bool = _architecture(True)
    local_chunk_length: int = _architecture(64)
    local_chunks_before: int = _architecture(1)
    local_chunks_after: int = _architecture(0)
    lsh_chunk_length: int = _architecture(64)
    lsh_chunks_before: int = _architecture(1)
    lsh_chunks_after: int = _architecture(0)
    buckets: tuple[int, ...] = _architecture(())
    rounds: int = 2
    rule: str = _architecture('reformer')
    dense_length: int = _architecture(AUTOMATIC)
    implementation: str = ''
    shared_qk: bool = _architecture(False)
    activation: str = _architecture('relu')
    positions: str = _architecture('axial')
    axial_shape: tuple[int, ...] = _architecture(())
    axial_sizes: tuple[int, ...] = _architecture(())
    heads_at_once: int = 0
    dropout: float = 0.0
    attention_dropout: float = 0.0
    local_attention_dropout: float = 0.0
    label_smoothing: float = 0.0
    norm_epsilon: float = _architecture(1e-6)
    stack: str = 'reversible'
    streams: int = _architecture(2)
    grid_bits: int = 14
    combine: str = _architecture('concatenate')
    head: str = 'lm'
    classes: int = 0
    pooling: str = 'first'
    start_token: int = _architecture(0)
    tie_output: bool = _architecture(False)
    feed_forward_chunk_length: int = 0
    loss_chunk_length: int = 0
    dtype: str = 'float32'
    encoder: Any = _architecture(None)
    share_embedding: bool = _architecture(True)

    def __post_init__(self):
        for name in ('pattern', 'buckets', 'axial_shape', 'axial_sizes'):
            value = getattr(self, name)
            several = value if isinstance(value, tuple | list) else (value,)
            object.__setattr__(self, name, tuple(several))
        fields.check(self, 'model.')
        object.__setattr__(self, 'encoder', _encoder(self))
        _check_sizes(self)
        _check_choices(self)
        _check_attention(self)
        _check_positions(self)
        _check_head(self)
        _check_encoder(self)

    @property
    def repeats(self) -> int:
        """How often the pattern is repeated."""
        return self.layers // len(self.pattern)

    @property
    def output_width(self) -> int:
        """Size of a hidden state: of both streams where they are concatenated."""
        return self.d_model * (2 if self.combine == 'concatenate' else 1)

    @property
    def exact_length(self) -> int:
        """The length up to which LSH layers are exact: dense_length, -1 worked out.

        Where the windows of all rounds hold as many keys as the sequence, both compute
        as many logits. Measured so on a CPU, forward and backward, chunks of 64
        (benchmarks/attention.py).
        """
        if self.rule == 'strict':
            return 0  # one function of the past, whatever the length
        if self.dense_length != AUTOMATIC:
            return max(self.dense_length, self.lsh_chunk_length)
        around = self.lsh_chunks_before + 1 + self.lsh_chunks_after
        return self.rounds * self.lsh_chunk_length * around

    def with_rounds(self, rounds: int) -> 'ModelConfig':
        """The same with other hash rounds, which do not decide what is exact."""
        encoder = self.encoder and self.encoder.with_rounds(rounds)
        return dataclasses.replace(
            self, rounds=rounds, dense_length=self.exact_length, encoder=encoder
        )

    def kind(self, name: str) -> kinds.Kind:
        """The attention that a layer of the pattern stands for.

        Raises:
          ValueError: its settings are impossible.
        """
        match name:
            case 'lsh':
                return self.lsh
            case 'local':
                return kinds.Local(
                    self.causal,
                    self.local_chunk_length,
                    self.local_chunks_before,
                    self.local_chunks_after,
                    circular=self.rule == 'trax',
                    dropout=self.local_attention_dropout,
                )
        return kinds.Full(self.causal, self.shared_qk, self.attention_dropout)

    @property
    def lsh(self) -> kinds.LSH:
        """The LSH attention of this model.

        Buckets are chosen by the longest sequence for all: what a token gives must
        depend neither on how many follow nor on the padding of its batch.
        """
        chunk_length = max(1, self.lsh_chunk_length)
        return kinds.LSH(
            self.causal,
            self.lsh_chunk_length,
            self.lsh_chunks_before,
            self.lsh_chunks_after,
            self.buckets or hashing.default_buckets(self.length, chunk_length),
            rounds=self.rounds,
            rule=self.rule,
            exact=self.length <= self.exact_length,
            implementation=self.implementation,
            dropout=self.attention_dropout,
        )


def defaults(kind: Any = ModelConfig) -> dict[str, Any]:
    """The fields of a dataclass that have a default, for configs to list."""
    listed = dataclasses.fields(kind)
    return {f.name: f.default for f in listed if f.default is not dataclasses.MISSING}


def architecture_fields() -> tuple[str, ...]:
    """What a model that starts from another's parameters has to share with it."""
    listed = dataclasses.fields(ModelConfig)
    return tuple(field.name for field in listed if field.metadata.get('architecture'))


def check_tokens(config: ModelConfig, tokens: np.ndarray, remedy: str = '') -> None:
    """Raises a ValueError if a token id is outside of the vocabulary."""
    bad = tokens[(tokens < 0) | (tokens >= config.vocab_size)]
    if bad.size:
        raise ValueError(
            f'token {bad[0]} is outside [0, {config.vocab_size}), the vocabulary of '
            f'the model{remedy}.'
        )


def check_length(config: ModelConfig, length: int, where: str = 'model') -> None:
    """Raises a ValueError if sequences of this length do not fit the model.

    `where` in a config it stands.
    """
    fields.check_whole(0, length=length)
    if length > config.length:
        raise ValueError(
            f'a sequence of {length} tokens is longer than the model, which has '
            f'length={config.length}: shorten it or enlarge config.{where}.length.'
        )


def padded_length(config: ModelConfig, length: int) -> int:
    """The shortest length from `length` on that every layer can cut into chunks.

    Exact attention alone takes any length, but its blocks of queries divide it, so that
    a prime one would go query by query. With the trax rule as Hugging Face pads: beyond
    the shortest chunk a multiple of all, since there the padding decides who looks
    around the ends at whom.
    """
    fields.check_whole(1, length=length)
    chunks = [
        getattr(config, f'{kind}_chunk_length')
        for kind in ('local', 'lsh')
        if kind in config.pattern
    ] or [_QUERIES]
    whole = math.lcm(*chunks)
    if config.rule == 'trax' and length > min(chunks):
        return -(-length // whole) * whole

    def fits(padded):
        return all(padded <= chunk or padded % chunk == 0 for chunk in chunks)

    return next(filter(fits, itertools.count(length)))


def check_ring(config: ModelConfig, length: int, devices: int) -> None:
    """Raises a ValueError if attention to sequences of this length can't be split over
    so many devices of a ring."""
    if devices == 1:
        return
    padded = padded_length(config, length)
    for name in sorted(set(config.pattern)):
        kind = config.kind(name)
        if isinstance(kind, kinds.LSH) and kind.is_exact(padded):
            kind = kind.full
        kinds.check_part(kind, padded // devices)
    if config.encoder is not None:
        reading = kinds.Full(causal=False, dropout=config.attention_dropout)
        kinds.check_part(reading, padded // devices)


def describe_lsh(config: ModelConfig, length: int) -> str:
    """How LSH layers compute sequences of a length, in words; '' without such layers.

    Chosen as the model will choose: on the mesh and the device at hand.
    """
    if 'lsh' not in config.pattern:
        return ''
    length = padded_length(config, length)
    told = choice.describe(config.lsh, length, config.dtype, config.head_size)
    return f'LSH: {told}'


def position_table_shapes(config: ModelConfig) -> list[tuple[int, int]]:
    """Shapes of the position embeddings that are parameters."""
    if config.positions == 'axial':
        return list(zip(config.axial_shape, config.axial_sizes, strict=True))
    if config.positions == 'learned':
        return [(config.length, config.d_model)]
    return []


def _encoder(config: ModelConfig) -> ModelConfig | None:
    """The encoder's config, made of the fields in which it differs."""
    given = config.encoder
    if not given or isinstance(given, ModelConfig):
        return given or None
    if not isinstance(given, Mapping):
        raise ValueError(
            f'model.encoder={given!r} is no mapping: give the fields in which the '
            "encoder differs, such as {'layers': 6, 'length': 1024}, or {} for none."
        )
    known = [field.name for field in dataclasses.fields(ModelConfig)]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(
            f'unknown config field model.encoder.{unknown[0]}: there are '
            f'{", ".join(known)}.'
        )
    if given.get('encoder'):
        raise ValueError('model.encoder.encoder is not empty: an encoder has none.')
    same = {n: getattr(config, n) for n in known if n not in _DECODERS_OWN}
    try:
        return ModelConfig(**(same | _ENCODER | dict(given)))
    except ValueError as error:
        raise ValueError(f'model.encoder: {error}') from error


def _check_encoder(config: ModelConfig) -> None:
    encoder = config.encoder
    if encoder is None:
        return
    for name, needed in _ENCODER.items():
        if getattr(encoder, name) != needed:
            raise ValueError(
                f'model.encoder.{name}={getattr(encoder, name)!r} must be {needed!r}: '
                'an encoder reads the whole source and predicts nothing.'
            )
    if encoder.rule == 'trax':
        raise ValueError(
            "model.encoder.rule='trax': there padding takes up positions, so that a "
            "source would depend on its batch; use 'reformer' or 'bucket'."
        )
    for kind in ('lsh', 'local'):
        name = f'{kind}_chunks_after'
        if kind in encoder.pattern and not getattr(encoder, name):
            raise ValueError(
                f'model.encoder.{name}=0: no token would see the chunk after its own; '
                'set it to 1.'
            )
    if not config.causal or config.head not in ('lm', 'none'):
        raise ValueError(
            f'model.encoder needs a decoder that predicts the next token, not causal='
            f"{config.causal} with head={config.head!r}: use causal=True, head='lm'."
        )
    for name in ('vocab_size', 'd_model'):
        ours, theirs = getattr(config, name), getattr(encoder, name)
        if config.share_embedding and ours != theirs:
            raise ValueError(
                f'model.encoder.{name}={theirs} is not model.{name}={ours}, as a '
                'shared embedding needs: set model.share_embedding=False, or make them '
                'equal.'
            )


def _check_sizes(config: ModelConfig) -> None:
    for name in (
        'vocab_size',
        'length',
        'd_model',
        'd_ff',
        'heads',
        'head_size',
        'layers',
        'rounds',
    ):
        if getattr(config, name) < 1:
            raise ValueError(
                f'model.{name}={getattr(config, name)} must be at least 1.'
            )
    for name in ('feed_forward_chunk_length', 'loss_chunk_length'):
        if getattr(config, name) < 0:
            raise ValueError(
                f'model.{name}={getattr(config, name)} is negative: give the tokens at '
                'a time, or 0 for all.'
            )
    if not 0 <= config.dropout < 1:
        raise ValueError(f'model.dropout={config.dropout} is no rate in [0, 1).')
    if not 0 <= config.label_smoothing < 1:
        raise ValueError(
            f'model.label_smoothing={config.label_smoothing} is no share in [0, 1): '
            'use 0.1, or 0 for none.'
        )
    if config.label_smoothing and config.head not in ('lm', 'masked_lm', 'none'):
        raise ValueError(
            f'model.label_smoothing={config.label_smoothing} has no effect with '
            f'model.head={config.head!r}: set it to 0.'
        )
    if not config.pattern:
        raise ValueError(
            f'model.pattern=() has no layer: give one or more of {ATTENTIONS}.'
        )
    if config.layers % len(config.pattern):
        raise ValueError(
            f'model.layers={config.layers} is no multiple of the pattern '
            f'{config.pattern} of {len(config.pattern)}: change one of them.'
        )
    if config.streams not in (1, 2):
        raise ValueError(f'model.streams={config.streams} is neither 1 nor 2.')
    if config.streams == 1 and config.stack == 'reversible':
        raise ValueError(
            "model.streams=1 cannot be inverted: set model.stack='residual' or "
            "'checkpoint', or streams=2."
        )
    if not 0 <= config.grid_bits <= 22:
        raise ValueError(
            f'model.grid_bits={config.grid_bits} is not in [0, 22]: float32 has 24 '
            'bits; 14 leaves room for streams up to 1,024.'
        )


def _check_choices(config: ModelConfig) -> None:
    choices = {
        'activation': tuple(ACTIVATIONS),
        'positions': POSITIONS,
        'rule': kinds.RULES,
        'implementation': kinds.IMPLEMENTATIONS,
        'stack': STACKS,
        'combine': COMBINES,
        'head': HEADS,
        'pooling': POOLINGS,
        'dtype': DTYPES,
    }
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            raise ValueError(
                f'model.{name}={getattr(config, name)!r} is none of {allowed}.'
            )
    for kind in config.pattern:
        if kind not in ATTENTIONS:
            raise ValueError(
                f'model.pattern has {kind!r}, which is none of {ATTENTIONS}.'
            )


def _check_attention(config: ModelConfig) -> None:
    if config.dense_length < AUTOMATIC:
        raise ValueError(
            f'model.dense_length={config.dense_length} is below -1: use -1 for '
            'automatic, 0 for never beyond one chunk, or a length.'
        )
    if config.rule == 'strict' and config.dense_length > 0:
        raise ValueError(
            f"model.dense_length={config.dense_length} does not go with rule='strict', "
            'which is the same function of the past at every length: set it to 0.'
        )
    if config.buckets:
        hashing.bucket_factors(config.buckets)
    for name in dict.fromkeys(config.pattern):
        try:
            kind = config.kind(name)
            if isinstance(kind, kinds.LSH):
                choice.check(kind, config.dtype, config.head_size)
        except ValueError as error:
            raise ValueError(f'model.{name}: {error}') from error
    if config.heads_at_once < 0 or config.heads % (config.heads_at_once or 1):
        raise ValueError(
            f'model.heads_at_once={config.heads_at_once} does not divide heads='
            f'{config.heads}: use a divisor, or 0 for all.'
        )


def _check_positions(config: ModelConfig) -> None:
    if config.positions == 'sinusoidal' and config.d_model % 2:
        raise ValueError(
            f'sinusoidal positions need an even d_model, not {config.d_model}.'
        )
    if config.positions != 'axial':
        return
    shape, sizes = config.axial_shape, config.axial_sizes
    if len(shape) < 2 or len(shape) != len(sizes) or min(*shape, *sizes) < 1:
        raise ValueError(
            f'axial_shape={shape} and axial_sizes={sizes} need two or more axes each, '
            'as many of one as of the other.'
        )
    if sum(sizes) != config.d_model:
        raise ValueError(
            f'axial_sizes={sizes} add up to {sum(sizes)}, not to '
            f'd_model={config.d_model}: they are concatenated, so they must.'
        )
    if math.prod(shape) < config.length:
        raise ValueError(
            f'axial_shape={shape} has {math.prod(shape)} positions for '
            f'length={config.length}: enlarge an axis.'
        )


def _check_head(config: ModelConfig) -> None:
    if config.head == 'lm' and not config.causal:
        raise ValueError(
            "model.head='lm' predicts the next token, which a bidirectional model "
            "(model.causal=False) can see: use head='masked_lm', or causal=True."
        )
    # transformers has two such models, and an import is to compute what they do.
    theirs = config.rule == 'trax' and (config.head, config.pooling) in CAUSAL_THERE
    if config.head in BIDIRECTIONAL_HEADS and config.causal and not theirs:
        raise ValueError(
            f'model.head={config.head!r} needs a bidirectional model, and with '
            'model.causal=True no token sees those after it: set model.causal=False, '
            'or start from a bidirectional checkpoint.'
        )
    blind = config.causal and config.pooling != 'last' and not theirs
    if config.head == 'classification' and blind:
        raise ValueError(
            f"model.head='classification' with pooling={config.pooling!r} needs a "
            'bidirectional model: in a causal one the first token has seen nothing of '
            "the text. Use model.pooling='last', or a bidirectional model."
        )
    least = {'classification': 1, 'token_classification': 2}.get(config.head, 0)
    if config.classes < least:
        raise ValueError(
            f'model.classes={config.classes}: head {config.head!r} needs at least '
            f'{least}.'
        )
    if not -1 <= config.start_token < config.vocab_size:
        raise ValueError(
            f'model.start_token={config.start_token} is outside [0, '
            f'{config.vocab_size}): use a token, or -1 for none.'
        )
    if not config.norm_epsilon > 0:
        raise ValueError(f'model.norm_epsilon={config.norm_epsilon} must be positive.')
