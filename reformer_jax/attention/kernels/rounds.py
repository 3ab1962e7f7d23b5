"""What the kernels of LSH attention share: tokens alone, sums over the hash rounds.

A kernel gives each round's output with the log-sum-exp of its logits, which is
numerics.MASKED where a query sees no key; its output of that round is then zero.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from reformer_jax.attention import hashing
from reformer_jax.attention import numerics
from reformer_jax.attention import windows


def on_this_platform(kernel: Callable[..., Any], *arrays: Any) -> Any:
    """A kernel compiled for its accelerator; on a CPU interpreted, which is for tests.

    Args:
      kernel: function of the arrays and `interpret`.
      arrays: its arguments.
    """
    return lax.platform_dependent(
        *arrays,
        cpu=functools.partial(kernel, interpret=True),
        default=functools.partial(kernel, interpret=False),
    )


def differentiable(
    forward: Callable[..., tuple[jax.Array, Any]], backward: Callable[..., Any]
) -> Callable[..., jax.Array]:
    """A function with the arguments and the result of xla.attend.

    Args:
      forward: of the same arguments; returns the result and what backward needs.
      backward: of the plan, what forward saved, and the gradient of the result.
    """

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def attend(plan: windows.Plan, *arrays: jax.Array | None) -> jax.Array:
        return forward(plan, *arrays)[0]

    attend.defvjp(forward, backward)
    return attend


def share_of_itself(
    plan: windows.Plan, order_BHRL: jax.Array, dropout_RCW: jax.Array | None
) -> jax.Array | None:
    """What a query that sees nothing in any round gets of its own value, [B, H, L].

    None for all of it. Dropout may take some rounds' part, and the trax rule rounds.
    """
    if not plan.circular and dropout_RCW is None:
        return None
    ranks_BHRL = hashing.inverse_order(order_BHRL)
    share_BHL = jnp.ones((), jnp.float32)
    if plan.circular:
        total = functools.partial(windows.probability_of_itself, plan)
        share_BHL = jax.vmap(jax.vmap(total))(ranks_BHRL)
    if dropout_RCW is not None:
        own = functools.partial(windows.own_dropout, plan)
        own_RC = jax.vmap(own)(dropout_RCW)
        rounds_R1 = jnp.arange(own_RC.shape[0])[:, None]
        share_BHL *= own_RC[rounds_R1, ranks_BHRL % plan.chunk_length].mean(2)
    return share_BHL


def own(x_BLHK: jax.Array, share_BHL: jax.Array | None) -> jax.Array:
    """Each token's share of its own value, or of its gradient, in float32."""
    x_BLHK = x_BLHK.astype(jnp.float32)
    if share_BHL is None:
        return x_BLHK
    return x_BLHK * jnp.swapaxes(share_BHL, 1, 2)[..., None]


def is_alone(lse: jax.Array) -> jax.Array:
    """Whether queries of such log-sum-exps see no key."""
    return lse < numerics.MASKED / 2


def merge(
    outs: Sequence[jax.Array], lses: Sequence[jax.Array], own: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Output and log-sum-exp of all rounds together, in float32.

    Args:
      outs: [..., K] of each round.
      lses: [...] of each round.
      own: [..., K], the output of a query that sees nothing in any round.
    """
    highest = functools.reduce(jnp.maximum, lses)
    parts = [jnp.exp(lse - highest) for lse in lses]
    total = sum(parts)
    out = sum(
        (part / total)[..., None] * out.astype(jnp.float32)
        for part, out in zip(parts, outs, strict=True)
    )
    alone = is_alone(highest)
    lse = jnp.where(alone, numerics.MASKED, highest + jnp.log(total))
    return jnp.where(alone[..., None], own, out), lse


def delta(out_BLHK: jax.Array, dout_BLHK: jax.Array) -> jax.Array:
    """Inner product of each output and its gradient, [B, H, L] in float32."""
    products_BLHK = out_BLHK.astype(jnp.float32) * dout_BLHK.astype(jnp.float32)
    return jnp.swapaxes(products_BLHK.sum(-1), 1, 2)


def lse_for_backward(lse_BHL: jax.Array) -> jax.Array:
    """The log-sum-exp with which every probability of a query alone is zero."""
    return jnp.where(is_alone(lse_BHL), -numerics.MASKED, lse_BHL)


def sum_gradients(
    dqk_BHRLK: jax.Array,
    dv_BHRLK: jax.Array,
    lse_BHL: jax.Array,
    own_dout_BLHK: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Gradients of shared queries and keys and of values, [B, L, H, K] in float32."""
    alone_BLH = jnp.swapaxes(is_alone(lse_BHL), 1, 2)
    own_BLHK = jnp.where(alone_BLH[..., None], own_dout_BLHK, 0.0)
    return _sum_rounds(dqk_BHRLK), _sum_rounds(dv_BHRLK) + own_BLHK


def _sum_rounds(x_BHRLK: jax.Array) -> jax.Array:
    # Term by term: one fused loop, while a reduction would be followed by a transpose.
    rounds = range(x_BHRLK.shape[2])
    total_BHLK = sum(x_BHRLK[:, :, r].astype(jnp.float32) for r in rounds)
    return jnp.swapaxes(total_BHLK, 1, 2)
