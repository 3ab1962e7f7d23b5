"""Imports go down, only to what is public, and libraries stay where they belong."""

import ast
import importlib
import sys
import tomllib

import pytest
import rooms

_ROOMS = sorted(
    path.name.removesuffix('.py')
    for path in rooms.PACKAGE.iterdir()
    if path.name not in ('__init__.py', '__pycache__')
)
_PURE = ('attention', 'stack')
_WITH_PARAMETERS = ('model', 'training', 'huggingface')
_WITH_CONFIGS = ('training', 'sweeps')
_NNX_TRANSFORMS = {
    'jit',
    'grad',
    'value_and_grad',
    'scan',
    'vmap',
    'remat',
    'cond',
    'custom_vjp',
    'Optimizer',
    'Dropout',
}


def _name(path):
    return path.relative_to(rooms.ROOT).as_posix()


def _others(path):
    """Top-level names of what else a file imports, without the standard library."""
    names = {name.split('.')[0] for name in rooms.imports(path)}
    return names - set(sys.stdlib_module_names) - {'reformer_jax'}


def _own(path):
    return [n for n in rooms.imports(path) if n.startswith('reformer_jax')]


def test_arrows_between_rooms_go_down():
    assert not rooms.back_edges()
    assert len(_ROOMS) <= 20
    assert len(rooms.arrows()) <= 60
    assert len(rooms.longest_chain()) <= 6


@pytest.mark.parametrize('room', _ROOMS)
def test_no_circle_within_a_room(room):
    assert not rooms.circles(room)


@pytest.mark.parametrize('room', _ROOMS)
def test_rooms_say_what_is_public(room):
    if (rooms.PACKAGE / room).is_dir():
        module = importlib.import_module(f'reformer_jax.{room}')
        assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize('path', rooms.all_files(), ids=_name)
def test_other_rooms_are_entered_by_what_they_make_public(path):
    for name in _own(path):
        parts = name.split('.')
        if len(parts) > 2 and parts[1] != rooms.room(path):
            public = importlib.import_module('.'.join(parts[:2])).__all__
            assert parts[2] in public, f'{name} is not in the __all__ of {parts[1]}'


def test_nothing_imports_doors_or_what_stands_around():
    outside = {door.stem for door in rooms.DOORS}
    outside |= {'configs', 'benchmarks', 'reports', 'examples', 'tests'}
    for path in rooms.FILES:
        assert not {n.split('.')[0] for n in rooms.imports(path)} & outside, path


@pytest.mark.parametrize('path', rooms.FILES, ids=_name)
def test_libraries_stay_where_they_belong(path):
    room, others = rooms.room(path), _others(path)
    if room in _PURE:
        assert others <= {'jax', 'numpy'}
    if room == 'data':
        assert not others & {'jax', 'flax', 'optax'}
    else:
        assert not others & {'tensorflow_datasets', 'array_record'}
    if _name(path) != 'reformer_jax/runs/checkpoint.py':
        assert 'orbax' not in others
    if room not in _WITH_PARAMETERS:
        assert 'flax' not in others
    if room not in _WITH_CONFIGS:
        assert 'ml_collections' not in others
    if _name(path) != 'reformer_jax/training/command_line.py':
        assert not others & {'absl', 'argparse'}
    assert not others & {'tensorflow', 'clu'}
    if room != 'huggingface':
        assert 'torch' not in others


@pytest.mark.parametrize('path', [*rooms.FILES, *rooms.DOORS], ids=_name)
def test_modules_are_imported_rather_than_names(path):
    """Classes from collections.abc, typing and jax.sharding aside."""
    if path.name == '__init__.py' and path.parent.parent == rooms.PACKAGE:
        return  # what a room makes public
    for name in _own(path):
        file = rooms.ROOT.joinpath(*name.split('.'))
        assert file.is_dir() or file.with_suffix('.py').exists(), name


@pytest.mark.parametrize('path', [*rooms.FILES, *rooms.DOORS], ids=_name)
def test_transforms_are_those_of_jax(path):
    for node in ast.walk(ast.parse(path.read_text('utf-8'))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            used = f'{node.value.id}.{node.attr}'
            assert not (node.value.id == 'nnx' and node.attr in _NNX_TRANSFORMS), used
    assert not [name for name in rooms.imports(path) if name.startswith('flax.nnx.')]


def test_all_packages_are_installed():
    with open(rooms.ROOT / 'pyproject.toml', 'rb') as file:
        listed = tomllib.load(file)['tool']['setuptools']['packages']
    folders = [
        path.parent.relative_to(rooms.ROOT)
        for path in rooms.FILES
        if path.name == '__init__.py'
    ]
    assert sorted(listed) == sorted('.'.join(folder.parts) for folder in folders)


def test_doors_are_short():
    for door in rooms.DOORS:
        assert len(door.read_text('utf-8').splitlines()) < 100, door


def test_nothing_is_called_utils():
    assert not [path for path in rooms.FILES if 'util' in path.stem]
