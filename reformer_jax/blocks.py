"""The layers of a model: an attention and a feed-forward branch each, by its config."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from reformer_jax import feed_forward
from reformer_jax import head_groups
from reformer_jax import layers
from reformer_jax import model_config
from reformer_jax import reversible

ModelConfig = model_config.ModelConfig


class Block(nnx.Module):
    """One layer: an attention and a feed-forward branch."""

    def __init__(self, config: ModelConfig, kind: str, rngs: nnx.Rngs):
        self.attention = _attention(config, kind, rngs)
        self.feed_forward = feed_forward.FeedForward(
            config.d_model,
            config.d_ff,
            activation=config.activation,
            dropout=config.dropout,
            norm_epsilon=config.norm_epsilon,
            dtype=jnp.dtype(config.dtype),
            rngs=rngs,
        )


def as_functions(
    config: ModelConfig, layer: Block, train: bool, rounds: int | None
) -> reversible.Block:
    """A layer as functions; of `layer` itself only the settings are used."""
    groups = config.heads // (config.heads_at_once or config.heads)

    def project(module, x, group):
        return module.project(x, head_groups.HeadGroup(group, groups))

    def attend(heads, key, rotations, mask, group, saved):
        if not isinstance(layer.attention, layers.LSHSelfAttention):
            return layer.attention.attend(heads, key, mask=mask, train=train), None
        return layer.attention.attend(
            heads,
            key,
            mask=mask,
            train=train,
            rotations=rotations,
            saved_buckets=saved,
            rounds=rounds,
            group=head_groups.HeadGroup(group, groups),
        )

    def combine(module, out, key, group):
        return layers.combine(
            module, out, key, head_groups.HeadGroup(group, groups), train
        )

    def feed_forward(module, x, key):
        return module(x, key, train=train)

    return reversible.Block(
        project,
        attend,
        combine,
        groups,
        feed_forward,
        config.feed_forward_chunk_length,
    )


def _attention(config: ModelConfig, kind: str, rngs: nnx.Rngs):
    shared: dict[str, Any] = {
        'heads': config.heads,
        'head_size': config.head_size,
        'causal': config.causal,
        'dropout': config.dropout,
        'norm_epsilon': config.norm_epsilon,
        'dtype': jnp.dtype(config.dtype),
        'rngs': rngs,
    }
    if kind == 'full':
        return layers.FullSelfAttention(
            config.d_model,
            shared_qk=config.shared_qk,
            attention_dropout=config.attention_dropout,
            **shared,
        )
    if kind == 'local':
        return layers.LocalSelfAttention(
            config.d_model,
            chunk_length=config.local_chunk_length,
            chunks_before=config.local_chunks_before,
            chunks_after=config.local_chunks_after,
            circular=config.rule == 'trax',
            attention_dropout=config.local_attention_dropout,
            **shared,
        )
    return layers.LSHSelfAttention(
        config.d_model,
        chunk_length=config.lsh_chunk_length,
        chunks_before=config.lsh_chunks_before,
        chunks_after=config.lsh_chunks_after,
        buckets=model_config.hash_buckets(config),
        rounds=config.rounds,
        rule=config.rule,
        within_bucket=config.within_bucket,
        dense_length=config.dense_length,
        model_length=config.length,
        implementation=config.implementation,
        attention_dropout=config.attention_dropout,
        **shared,
    )


def stack(config: ModelConfig, kind: str, rngs: nnx.Rngs) -> Block:
    """`repeats` blocks in one, each parameter with a leading axis over them."""
    keys = jax.random.split(rngs.params(), config.repeats)
    return jax.vmap(lambda key: Block(config, kind, nnx.Rngs(key)))(keys)
