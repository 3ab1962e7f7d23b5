"""A labelled set from any text: is a passage as written, or misspelled?

  python reports/misspelled.py FILE passages.jsonl --passages 8000

For configs/classification.py: rows of `text` and `label` ('written' or 'misspelled',
half each, no passage twice). Passages are lines of 100 to 250 bytes, cut behind a word;
a misspelled one has two neighbouring letters swapped in every third word or so.
"""

import json
import pathlib
import random
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from reformer_jax.data import corpus
from reformer_jax.training import command_line

_SHORTEST, _LONGEST = 100, 250
_SHARE = 0.5  # of the words; in short ones there is nothing to swap


def passages(text: str) -> list[str]:
    """Beginnings of the lines that are long enough and have some words, each once."""
    found: dict[str, None] = {}
    for line in text.splitlines():
        words = line[:_LONGEST].split(' ')
        passage = ' '.join(words[:-1] if len(line) > _LONGEST else words)
        size = len(passage.encode())
        letters = sum(word.isalpha() and len(word) > 4 for word in words)
        if _SHORTEST <= size <= _LONGEST and letters > 5:
            found[passage] = None
    return list(found)


def misspelled(passage: str, randomness: random.Random) -> str:
    """With two letters within some of the longer words swapped, one word at least."""
    words = passage.split(' ')
    while ' '.join(words) == passage:
        words = [
            _swapped(word, randomness) if randomness.random() < _SHARE else word
            for word in passage.split(' ')
        ]
    return ' '.join(words)


def _swapped(word: str, randomness: random.Random) -> str:
    places = [n for n in range(1, len(word) - 2) if word[n : n + 2].isalpha()]
    if not places:
        return word
    place = randomness.choice(places)
    return word[:place] + word[place + 1] + word[place] + word[place + 2 :]


def main(arguments: list[str]) -> None:
    parser = command_line.ArgumentParser(description='Passages, half with errors.')
    parser.add_argument('text', help='file, folder, glob, .gz, .zip or .xz')
    parser.add_argument('output', help='the .jsonl file to write')
    parser.add_argument('--passages', type=command_line.at_least_one, default=8000)
    options = parser.parse_args(arguments)
    text = corpus.read(options.text).tobytes().decode('utf-8', 'replace')
    randomness = random.Random(0)
    found = passages(text)
    if not found:
        raise ValueError(
            f'{options.text} has no passage: lines of {_SHORTEST} bytes and more, with '
            'six words of five letters.'
        )
    randomness.shuffle(found)
    with open(options.output, 'x', encoding='utf-8') as file:
        for number, passage in enumerate(found[: options.passages]):
            label = ('written', 'misspelled')[number % 2]
            if label == 'misspelled':
                passage = misspelled(passage, randomness)
            file.write(json.dumps({'text': passage, 'label': label}) + '\n')
    print(f'{min(len(found), options.passages)} of {len(found)} passages')


if __name__ == '__main__':
    command_line.script(main, sys.argv[1:])
