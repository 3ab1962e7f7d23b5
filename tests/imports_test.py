"""Imports go one way, and only where they belong."""

import ast
import pathlib
import sys
import tomllib

import pytest

_ROOT = pathlib.Path(__file__).parents[1]
_PACKAGE = _ROOT / 'reformer_jax'
_FILES = sorted(_PACKAGE.rglob('*.py'))
_ENTRY_POINTS = sorted(_ROOT.glob('*.py'))

# A module imports only modules of earlier rows; a new module gets its place here.
_ROWS = (
    (
        'hashing',
        'chunking',
        'positions',
        'run_folder',
        'stopping',
        'compilation',
        'transcript',
        'data',
    ),
    ('checks', 'head_groups', 'linear', 'windows', 'padding'),
    ('lsh', 'reversible', 'sharding', 'metrics', 'loss', 'checkpoint'),
    ('kernels',),
    ('attention', 'optimizer'),
    ('layers', 'caches'),
    ('feed_forward',),
    ('model_config', 'lsh_caches'),
    ('blocks', 'heads', 'experiment', 'prompts'),
    ('model',),
    ('incremental', 'sampling', 'objectives', 'preparation'),
    ('beams', 'huggingface'),
    ('decoding', 'initial'),
    ('loop', 'sweeps', 'pictures'),
    ('sweep_folder', 'samples'),
    ('launching',),
)
_ROW = {module: row for row, modules in enumerate(_ROWS) for module in modules}
_PURE = (
    'hashing',
    'checks',
    'head_groups',
    'linear',
    'lsh',
    'windows',
    'attention',
    'reversible',
    'chunking',
    'positions',
    'padding',
    'caches',
    'lsh_caches',
    'sampling',
)
_WITH_PARAMETERS = (
    'layers',
    'feed_forward',
    'blocks',
    'heads',
    'model',
    'preparation',
)
_WITH_CONFIGS = ('experiment', 'preparation', 'initial', 'loop', 'sweeps')
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


def _module(path):
    """hashing for hashing.py; data for all of data/, and so on."""
    return path.relative_to(_PACKAGE).parts[0].removesuffix('.py')


def _imports(path):
    """Dotted names of the modules that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text('utf-8'))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f'{path}: relative import'
            names |= {f'{node.module}.{alias.name}' for alias in node.names}
    return names


def _own(path):
    """Modules of the package that a file imports."""
    parts = (name.split('.') for name in _imports(path))
    return {part[1] for part in parts if part[0] == 'reformer_jax'}


def _others(path):
    """Top-level names of what else a file imports, without the standard library."""
    names = {name.split('.')[0] for name in _imports(path)}
    return names - set(sys.stdlib_module_names) - {'reformer_jax'}


def _name(path):
    return path.relative_to(_ROOT).as_posix()


@pytest.mark.parametrize('path', _FILES, ids=_name)
def test_imports_go_one_way(path):
    module = _module(path)
    if path == _PACKAGE / '__init__.py':
        assert not _imports(path)
        return
    assert module in _ROW, f'give {module} a place in _ROWS'
    folder = (_PACKAGE / module).is_dir()
    for imported in _own(path) - ({module} if folder else set()):
        assert _ROW[imported] < _ROW[module], f'{module} imports {imported}'


def test_nothing_imports_entry_points_or_configs():
    outside = {path.stem for path in _ENTRY_POINTS} | {'configs', 'benchmarks', 'tests'}
    for path in _FILES:
        assert not {name.split('.')[0] for name in _imports(path)} & outside, path


_PURE_FILES = (
    *(_PACKAGE / f'{module}.py' for module in _PURE),
    *sorted((_PACKAGE / 'kernels').glob('*.py')),
)


@pytest.mark.parametrize('path', _PURE_FILES, ids=_name)
def test_pure_modules(path):
    assert _others(path) <= {'jax', 'numpy'}
    assert _own(path) <= {*_PURE, 'kernels'}


@pytest.mark.parametrize('path', _FILES, ids=_name)
def test_libraries_stay_where_they_belong(path):
    module, others = _module(path), _others(path)
    if module == 'data':
        assert not others & {'jax', 'flax', 'optax'}
    else:
        assert not others & {'tensorflow_datasets', 'array_record'}
    if module != 'checkpoint':
        assert 'orbax' not in others
    if module not in (*_WITH_PARAMETERS, 'huggingface'):
        assert 'flax' not in others
    if module not in (*_WITH_CONFIGS, 'huggingface'):
        assert 'ml_collections' not in others
    assert 'absl' not in others
    assert not others & {'tensorflow', 'clu'}
    if module != 'huggingface':
        assert 'torch' not in others


@pytest.mark.parametrize('path', [*_FILES, *_ENTRY_POINTS], ids=_name)
def test_modules_are_imported_rather_than_names(path):
    """Classes from collections.abc, typing and jax.sharding aside."""
    for name in _own_names(path):
        file = _ROOT.joinpath(*name.split('.'))
        assert file.is_dir() or file.with_suffix('.py').exists(), name


def _own_names(path):
    return [name for name in _imports(path) if name.startswith('reformer_jax')]


@pytest.mark.parametrize('path', [*_FILES, *_ENTRY_POINTS], ids=_name)
def test_transforms_are_those_of_jax(path):
    for node in ast.walk(ast.parse(path.read_text('utf-8'))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            used = f'{node.value.id}.{node.attr}'
            assert not (node.value.id == 'nnx' and node.attr in _NNX_TRANSFORMS), used
    assert not [name for name in _imports(path) if name.startswith('flax.nnx.')]


def test_all_packages_are_installed():
    with open(_ROOT / 'pyproject.toml', 'rb') as file:
        listed = tomllib.load(file)['tool']['setuptools']['packages']
    folders = [path.parent.relative_to(_ROOT) for path in _PACKAGE.rglob('__init__.py')]
    assert sorted(listed) == sorted('.'.join(folder.parts) for folder in folders)


def test_nothing_is_called_utils():
    assert not [path for path in _FILES if 'util' in path.stem]
