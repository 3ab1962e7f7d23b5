"""Lists and dicts in cells of a table, as programs print them into .csv and .tsv."""

import ast
import json
import re
from typing import Any

# A list that Python, NumPy or JSON has printed; '[sic]' and '[1] so' are words.
_PRINTED = re.compile(
    r"""\s*(?:\[\s*['"[{]|\(\s*['"](?s:.)*,(?s:.)*\)\s*$|\[[\s\d.,+-]*\]\s*$)"""
)
# Where words are expected, also what others print with a comma or a quote in brackets
# around all of it: [a, b], {a,b}, (3, 0), array(['a']), "['a']"; no citations, as in
# '[Smith, 2004] and [Jones, 2005]'.
_IN_BRACKETS = r"""
    (?: \[ (?!.*\s,) (?: [^\],]* , [^\]]* | [ub]?['"] .* | [^\]]* \w\( .* ) \]
      | \{ (?!.*\s,) .* [,'"] .* \}
      | \( (?!.*\s,) [\s\d.+-]* , [\s\d.,+-]* \) )"""
_PRINTED_AS_WORDS = re.compile(
    rf"""(?:{_PRINTED.pattern})
    |\s* ["']? (?: {_IN_BRACKETS} | [\w.]+\( {_IN_BRACKETS} (?:,[^)]*)? \) ) ["']? \s*$
    """,
    re.DOTALL | re.VERBOSE,
)
# A sentence in brackets whose tokens have spaces between them: ( 3 , 0 ), { it 's }. In
# lists commas or quotes stand at items; of numbers alone there are none.
_SENTENCE = re.compile(
    r"""(?! .* (?: \S,(?!\d{3}\b) | ,(?!\s|\d{3}\b) | \S["']\s ))
    (?= .* (?: , | [^\W\d] ))
    \s* (?: \[ \s.*\s \] | \( \s.*\s \) | \{ \s.*\s \} ) \s*$""",
    re.DOTALL | re.VERBOSE,
)
_BESIDE = re.compile(r"""(['"])\s*\1""")  # 'a' 'b', which Python reads as 'ab'


def printed(text: str, where: str, words: bool = False) -> Any:
    """The list or dict that a cell holds as JSON or Python prints it, with arrays of
    NumPy in it or not, else the text.

    Args:
      text: of the cell.
      where: names its row, for errors.
      words: whether words or their labels stand there, so that whatever is printed as a
        list is one, and no sentence in brackets.

    Raises:
      ValueError: it is printed in another way; names `where`.
    """
    if words and _SENTENCE.match(text):
        return text
    marks = _PRINTED_AS_WORDS if words else _PRINTED
    braces = text.lstrip().startswith('{')
    if not braces and not marks.match(text):
        return text
    for read in (json.loads, ast.literal_eval, _of_numpy):
        try:
            value = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, tuple | list) and not _BESIDE.search(text):
            return list(value)
        if isinstance(value, dict):
            return value
    if not marks.match(text):
        return text
    raise ValueError(
        f'{where}: {text!r} is a list in a notation other than those of JSON and '
        'Python: write it in one of these, or its items with spaces between them'
    )


class _Arrays(ast.NodeTransformer):
    """Puts a list where array([...], dtype=...) stands."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        is_array = isinstance(node.func, ast.Name) and node.func.id == 'array'
        return self.visit(node.args[0]) if is_array and node.args else node


def _of_numpy(text: str) -> Any:
    """As pandas writes SQuAD: {'text': array(['x'], dtype=object), ...}."""
    return ast.literal_eval(_Arrays().visit(ast.parse(text.strip(), mode='eval')))
