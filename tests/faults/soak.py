"""Hours of training, evaluating, saving, restoring and sampling: does anything grow?

  python tests/faults/soak.py --minutes=120

Two processes are watched from outside. One trains, evaluates, saves and deletes
checkpoints without an end; the other, again and again, resumes a run, trains it on,
evaluates, saves, restores and samples. After the first ten minutes neither may have
more resident memory (2 %), threads, children or open files than before. Linux only.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

_FIELDS = {
    'log_every': 10,
    'eval_every': 50,
    'eval_batches': 2,
    'checkpoint_every': 50,
    'keep_checkpoints': 3,
    'data.length': 256,
    'data.batch_size': 4,
    'model.length': 256,
    'model.d_model': 64,
    'model.d_ff': 128,
    'model.heads': 2,
    'model.head_size': 32,
    'model.layers': 2,
    'model.pattern': ('local', 'lsh'),
    'model.local_chunk_length': 32,
    'model.lsh_chunk_length': 32,
    'model.dense_length': 0,
    'model.axial_shape': (16, 16),
    'model.axial_sizes': (32, 32),
    'model.dropout': 0.1,
}
_STEPS_A_ROUND = 50
_SETTLED = 600.0  # seconds after which nothing may grow
_EVERY = 10.0  # seconds between two looks
_GROWTH = 1.02


@dataclasses.dataclass(frozen=True)
class Look:
    """A process at a moment: seconds since its start, MiB resident, counts."""

    seconds: float
    resident: float
    threads: int
    files: int
    children: int


def _look(process: subprocess.Popen, since: float) -> Look:
    folder = pathlib.Path('/proc') / str(process.pid)
    status = dict(
        line.split(':', 1) for line in (folder / 'status').read_text().splitlines()
    )
    children = folder / 'task' / str(process.pid) / 'children'
    return Look(
        time.monotonic() - since,
        int(status['VmRSS'].split()[0]) / 1024,
        int(status['Threads']),
        len(os.listdir(folder / 'fd')),
        len(children.read_text().split()),
    )


def _flags(folder: pathlib.Path, name: str) -> list[str]:
    text = folder / 'text.txt'
    if not text.exists():
        text.write_text('the quick brown fox jumps over the lazy dog\n' * 5000)
    fields = _FIELDS | {'data.path': str(text)}
    return [
        '--config=configs/text.py:tiny',
        f'--workdir={folder / name}',
        *(f'--config.{field}={value}' for field, value in fields.items()),
    ]


def _rounds(folder: pathlib.Path, minutes: float) -> None:
    """Resumes, trains on, evaluates, saves, restores and samples in this process."""
    import jax

    from configs import text
    from reformer_jax.generation import decoding
    from reformer_jax.training import evaluation
    from reformer_jax.training import loop
    from reformer_jax.training import start

    config, workdir = text.get_config('tiny'), str(folder / 'rounds')
    file = {'data.path': str(folder / 'text.txt'), 'minutes': 0.0}
    config.update_from_flattened_dict(_FIELDS | file)
    config.steps, end = 0, time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        config.steps += _STEPS_A_ROUND
        loop.train(config, workdir)
        evaluation.evaluate(None, workdir)
        run = start.open(None, workdir)
        with jax.set_mesh(run.mesh):
            model, _ = run.restore_model(None)
            prompt = run.config.data.encode(b'the quick ')[None]
            decoding.generate(model, prompt, steps=64, key=jax.random.key(0))


def _verdict(name: str, looks: list[Look]) -> list[str]:
    """What grew after `_SETTLED` seconds: last tenth against the tenth after them."""
    settled = [look for look in looks if look.seconds >= _SETTLED]
    if len(settled) < 20:
        return [f'{name} was watched for less than {_SETTLED:,.0f} s + 20 looks']
    part = max(10, len(settled) // 10)
    problems = []
    for field in dataclasses.fields(Look)[1:]:
        values = [getattr(look, field.name) for look in settled]
        first, last = values[:part], values[-part:]
        grown = max(last) > max(first) * (_GROWTH if field.name == 'resident' else 1)
        told = f'{name}: {field.name} {max(first):,.0f} -> {max(last):,.0f} (most)'
        told += f', {statistics.median(first):,.0f} -> {statistics.median(last):,.0f}'
        print(told + (' GREW' if grown else ''))
        if grown:
            problems.append(told)
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--minutes', type=float, default=120)
    parser.add_argument('--rounds', help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rounds:
        return _rounds(pathlib.Path(given.rounds), given.minutes)
    folder = pathlib.Path(tempfile.mkdtemp(prefix='soak'))
    print(f'soak of {given.minutes:g} minutes in {folder}')
    train = [*_flags(folder, 'long'), '--config.steps=100000000']
    programs = {
        'training': ['train.py', *train, f'--config.minutes={given.minutes}'],
        'rounds': [__file__, f'--rounds={folder}', f'--minutes={given.minutes}'],
    }
    environment = os.environ | {'PYTHONPATH': os.getcwd()}
    since, problems = time.monotonic(), []
    processes = {}
    for name, program in programs.items():
        with open(folder / f'{name}.log', 'w') as log:
            processes[name] = subprocess.Popen(
                [sys.executable, *program], stdout=log, stderr=log, env=environment
            )
    looks: dict[str, list[Look]] = {name: [] for name in programs}
    while time.monotonic() - since < 60 * given.minutes:
        time.sleep(_EVERY)
        for name, process in processes.items():
            if process.poll() is None:
                looks[name].append(_look(process, since))
        (folder / 'looks.json').write_text(
            json.dumps(
                {n: [dataclasses.astuple(x) for x in s] for n, s in looks.items()}
            )
        )
    for name, process in processes.items():
        if code := process.wait(timeout=600):
            problems.append(f'{name} ended with status {code}: {folder}/{name}.log')
        problems += _verdict(name, looks[name])
    sys.exit('\n'.join(problems) if problems else None)


if __name__ == '__main__':
    main()
