"""The plan of the house, read off its imports: rooms, floors, arrows.

A room is a folder of reformer_jax with all below it, or a file beside these folders.
Outside of the package every door (train.py ...) is a room, and so are configs, reports,
benchmarks and examples. python tests/rooms.py prints the plan, and fails where an
import goes up or round in a circle.
"""

import ast
import functools
import graphlib
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'reformer_jax'
FILES = sorted(PACKAGE.rglob('*.py'))
DOORS = sorted(ROOT.glob('*.py'))

# Imports go from a floor to those before it; within a floor rooms do not know each
# other, but for sweep.py, the door of sweeps.
FLOORS = (
    ('progress',),
    ('attention', 'data', 'runs', 'sharding', 'stack'),
    ('model',),
    ('generation', 'huggingface'),
    ('training',),
    ('sweeps', 'configs', 'reports', *(door.stem for door in DOORS)),
    ('benchmarks', 'examples'),
)
_FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
_OUTSIDE = ('configs', 'reports', 'benchmarks', 'examples')


def room(path: pathlib.Path) -> str:
    """The room of a file: attention for all of reformer_jax/attention/."""
    base = PACKAGE if path.is_relative_to(PACKAGE) else ROOT
    return path.relative_to(base).parts[0].removesuffix('.py')


@functools.cache
def imports(path: pathlib.Path) -> frozenset[str]:
    """Dotted names of what a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text('utf-8'))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f'{path}: relative import'
            names |= {f'{node.module}.{alias.name}' for alias in node.names}
    return frozenset(names)


def file_of(name: str) -> pathlib.Path | None:
    """The file of our own that gives a dotted name, if it is one of ours."""
    for parts in (name.split('.'), name.split('.')[:-1]):
        path = ROOT.joinpath(*parts)
        if path.is_dir() and (path / '__init__.py').exists():
            return path / '__init__.py'
        if parts and path.with_suffix('.py').is_file():
            return path.with_suffix('.py')
    return None


def sources(path: pathlib.Path) -> set[pathlib.Path]:
    """The files of our own that a file imports."""
    return {file for name in imports(path) if (file := file_of(name)) is not None}


def all_files() -> list[pathlib.Path]:
    """Those of the package but its __init__, and all that stands around it."""
    outside = [f for folder in _OUTSIDE for f in (ROOT / folder).glob('*.py')]
    return [f for f in FILES if f.parent != PACKAGE or f.stem != '__init__'] + sorted(
        [*DOORS, *outside]
    )


def arrows() -> set[tuple[str, str]]:
    """Pairs of rooms of which the first imports the second."""
    pairs = {
        (room(file), room(source)) for file in all_files() for source in sources(file)
    }
    return {(upper, lower) for upper, lower in pairs if upper != lower}


def back_edges() -> list[tuple[str, str]]:
    """Arrows that do not go down."""
    return sorted(
        (upper, lower)
        for upper, lower in arrows()
        if _FLOOR[lower] >= _FLOOR[upper] and (upper, lower) != ('sweep', 'sweeps')
    )


def circles(of: str) -> list[pathlib.Path]:
    """Files of a room that import each other in a circle; [] if none do."""
    files = [file for file in all_files() if room(file) == of]
    graph = {file: sources(file) & set(files) - {file} for file in files}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def longest_chain() -> list[str]:
    """The most rooms that stand on one another."""
    above: dict[str, set[str]] = {name: set() for name in _FLOOR}
    for upper, lower in arrows():
        above[upper].add(lower)
    chain: dict[str, list[str]] = {}
    for name in graphlib.TopologicalSorter(above).static_order():
        below = max((chain[lower] for lower in above[name]), key=len, default=[])
        chain[name] = [*below, name]
    return max(chain.values(), key=len)


def main() -> None:
    inside = sorted({room(file) for file in all_files() if PACKAGE in file.parents})
    drawn = arrows()
    own = [a for a in drawn if set(a) <= set(inside)]
    wrong = [f'{upper} imports {lower}' for upper, lower in back_edges()]
    for name in inside:
        if circle := circles(name):
            wrong.append(' -> '.join(f.relative_to(ROOT).as_posix() for f in circle))
    chain = longest_chain() if not wrong else []
    print(f'{len(inside)} rooms in reformer_jax: {", ".join(inside)}')
    print(f'{len(own)} arrows between them, {len(drawn)} with those from outside')
    print(f'{len(chain)} floors: {" <- ".join(chain)}')
    if wrong:
        sys.exit('\n'.join(['not down:', *wrong]))


if __name__ == '__main__':
    main()
