"""The strip of figures at the top of the README.

  python benchmarks/peers.py 1024 4096 16384 65536 > reports/results/peers.jsonl
  python benchmarks/memory.py depth > reports/results/memory_depth.jsonl
  python reports/overview.py

Draws reports/results/overview.png: what each query of one real hash sees under
three rules of LSH attention (darker in a later round; made by attention.windows), the
seconds of a training step against its length, and its memory against depth. The last
two are read from the files that the first two commands write. Needs pip install -e
'.[reports]'.
"""

import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from reformer_jax import attention
from reformer_jax.attention import hashing
from reformer_jax.attention import windows
from reformer_jax.training import command_line
from reports import plots

_RESULTS = pathlib.Path(__file__).resolve().parent / 'results'
_TEXT = (
    'A Reformer sorts the tokens of each hash round by bucket and cuts them into '
    'chunks, so that tokens that hash alike meet, far away or near.'
)
_LENGTH, _CHUNK, _BUCKETS, _ROUNDS = 128, 8, 16, 4
_HEAD_SIZE = 32
_RULES = ('reformer', 'trax', 'strict')
_NAMES = {
    'ours': 'ours',
    'hugging_face': 'transformers',
    'lucidrains': 'lucidrains',
    'torch_exact': 'torch, exact',
}
_STACKS = {
    'reversible': 'reversible',
    'checkpoint': 'jax.checkpoint',
    'residual': 'all saved',
}


def hashed_text() -> jax.Array:
    """Buckets [1, 1, R, L] of the characters of a text, alike ones near each other."""
    letters = np.frombuffer(_TEXT.encode()[:_LENGTH], np.uint8)
    vectors = jax.random.normal(jax.random.key(0), (256, _HEAD_SIZE))[letters]
    own = jax.random.normal(jax.random.key(1), (_LENGTH, _HEAD_SIZE))
    rotations = hashing.random_rotations(
        jax.random.key(2),
        heads=1,
        head_size=_HEAD_SIZE,
        rounds=_ROUNDS,
        buckets=_BUCKETS,
    )
    qk_BLHK = (vectors + 0.5 * own)[None, :, None]
    return hashing.hash_vectors(qk_BLHK, rotations, buckets=_BUCKETS)


def first_rounds(rule: str, buckets_BHRL: jax.Array) -> np.ndarray:
    """In which round, from 1 on, a query meets a key first, int [L, L]; 0 for never."""
    kind = attention.LSH(chunk_length=_CHUNK, buckets=_BUCKETS, rule=rule)
    plan = windows.plan(kind, buckets_BHRL.shape)
    order_BHRL = attention.sorted_order(kind, buckets_BHRL, None)
    codes_BHRL = windows.codes(plan, _BUCKETS, buckets_BHRL, order_BHRL, None)
    order_RL = order_BHRL[0, 0]
    nothing = jnp.zeros((_LENGTH, _HEAD_SIZE))
    row = windows.Row(
        *(nothing,) * 2,
        order_REC=windows.with_look_around(plan, order_RL),
        ranks_RL=hashing.inverse_order(order_RL),
        codes_RL=None if codes_BHRL is None else codes_BHRL[0, 0],
        real_L=None,
    )
    met = np.zeros((_LENGTH, _LENGTH), int)
    for hash_round in range(_ROUNDS):
        for first in windows.first_chunks(plan, _LENGTH):
            step = windows.step(plan, row, hash_round, first, keys_first=False)
            queries, keys = windows.pairs(step.queries_GC, step.keys_GW, False)
            queries, keys = np.broadcast_arrays(queries, keys)
            seen = np.asarray(step.allowed) & (met[queries, keys] == 0)
            met[queries[seen], keys[seen]] = hash_round + 1
    return met


def draw_rules(several: list[Any]) -> None:
    buckets_BHRL = hashed_text()
    deep = [plots.depth_of(2**number) for number in range(_ROUNDS)]
    for axes, rule in zip(several, _RULES, strict=True):
        met = first_rounds(rule, buckets_BHRL)
        picture = np.zeros((_LENGTH, _LENGTH, 4))
        for number, shade in enumerate(deep, 1):
            picture[met == number] = (*shade, 1.0)
        axes.imshow(picture, interpolation='nearest')
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(f"rule='{rule}'", fontsize='medium')
    several[0].set_ylabel('query')
    several[0].set_xlabel('key')
    several[1].set_xlabel(f'met in round 1 (light) to {_ROUNDS} (dark)', size='small')


def draw_speed(axes: Any, points: list[dict[str, Any]]) -> None:
    axes.set_xscale('log', base=2)
    axes.set_yscale('log')
    named = {
        name: sorted(
            (point['length'], point['seconds'])
            for point in points
            if point['implementation'] == implementation
        )
        for implementation, name in _NAMES.items()
    }
    plots.lines(axes, named, marker='.')
    lengths = [length for length, _ in named['ours']]
    axes.set_xticks(lengths, [f'{length // 1024}k' for length in lengths])
    axes.minorticks_off()
    axes.set_xlabel('tokens', size='small')
    axes.set_title('seconds per training step', fontsize='medium')


def draw_memory(axes: Any, points: list[dict[str, Any]]) -> None:
    named = {
        name: sorted(
            (point['layers'], point['temporary_mib'] / 1024)
            for point in points
            if point['stack'] == stack
        )
        for stack, name in _STACKS.items()
    }
    axes.set_ylim(0, 1.05 * max(y for line in named.values() for _, y in line))
    plots.lines(axes, named, marker='.')
    axes.set_xticks([layers for layers, _ in named['reversible']])
    axes.set_xlabel('layers', size='small')
    axes.set_title('GiB per training step', fontsize='medium')


def read(name: str) -> list[dict[str, Any]]:
    """The JSON lines of a file of measurements."""
    lines = (_RESULTS / name).read_text('utf-8').splitlines()
    return [json.loads(line) for line in lines]


def main() -> None:
    image, (*rules, speed, memory) = plots.image((2.3, 2.3, 2.3, 3.4, 3.0))
    draw_rules(rules)
    draw_speed(speed, read('peers.jsonl'))
    draw_memory(memory, read('memory_depth.jsonl'))
    plots.save(image, str(_RESULTS / 'overview.png'))


if __name__ == '__main__':
    command_line.script(main)
