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
# around all of it: [a, b], {a,b}, (3, 0), array(['a']), "['a']".
_PRINTED_AS_WORDS = re.compile(
    rf"""(?:{_PRINTED.pattern})
    |\s* ["']? (?:[\w.]+\()?
    (?: \[ (?!.*\s,) [^\]]* (?:[,'"]|\w\() .* \]
      | \{{ .* [,'"] .* \}}
      | \( [\s\d.+-]* , [\s\d.,+-]* \) )
    (?:,[^)]*)? \)? ["']? \s*$""",
    re.DOTALL | re.VERBOSE,
)
_BESIDE = re.compile(r"""(['"])\s*\1""")  # 'a' 'b', which Python reads as 'ab'


def printed(text: str, where: str, words: bool = False) -> Any:
    """The list or dict that a cell holds as JSON or Python prints it, else the text.

    Args:
      text: of the cell.
      where: names its row, for errors.
      words: whether words or their labels stand there, so that whatever is printed as a
        list is one, and no sentence in brackets.

    Raises:
      ValueError: it is printed in another way, as by NumPy; names `where`.
    """
    marks = _PRINTED_AS_WORDS if words else _PRINTED
    braces = text.lstrip().startswith('{')
    if not braces and not marks.match(text):
        return text
    for read in (json.loads, ast.literal_eval):
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
