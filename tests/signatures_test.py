"""No signature of the package carries more than four settings: more travel as the
dataclass that declares them."""

import ast

import rooms

_MOST = 4
_SETTINGS = {'int', 'float', 'bool', 'str'}


def _is_setting(argument: ast.arg) -> bool:
    """Whether an argument is a plain number, switch or name, by its annotation."""
    if argument.annotation is None:
        return False
    told = ast.unparse(argument.annotation)
    return {part.strip() for part in told.split('|')} - {'None'} <= _SETTINGS


def _settings(function: ast.FunctionDef) -> list[str]:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [argument.arg for argument in every if _is_setting(argument)]


def test_at_most_four_settings():
    found = {
        f'{file.name}: {node.name}': _settings(node)
        for file in rooms.FILES
        for node in ast.walk(ast.parse(file.read_text('utf-8')))
        if isinstance(node, ast.FunctionDef)
    }
    assert any(len(settings) == _MOST for settings in found.values())
    assert not {name: s for name, s in found.items() if len(s) > _MOST}
