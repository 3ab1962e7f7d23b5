"""A labelled set from any text: is a passage as written, or are its words shuffled?

  python reports/shuffled_words.py FILE passages.jsonl --passages 8000

For configs/classification.py: rows of `text` and `label` ('written' or 'shuffled', half
each, no passage twice). Passages are lines of 100 to 250 bytes, cut behind a word.
"""

import argparse
import json
import pathlib
import random
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from reformer_jax.data import corpus

_SHORTEST, _LONGEST = 100, 250


def passages(text: str) -> list[str]:
    """Beginnings of the lines that are long enough, each once."""
    found: dict[str, None] = {}
    for line in text.splitlines():
        words = line[:_LONGEST].split(' ')
        passage = ' '.join(words[:-1] if len(line) > _LONGEST else words)
        size = len(passage.encode())
        if _SHORTEST <= size <= _LONGEST and len(set(words)) > 5:
            found[passage] = None
    return list(found)


def shuffled(passage: str, randomness: random.Random) -> str:
    """The same words in another order."""
    words = passage.split(' ')
    while ' '.join(words) == passage:
        randomness.shuffle(words)
    return ' '.join(words)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description='Passages with and without order.')
    parser.add_argument('text', help='file, folder, glob, .gz, .zip or .xz')
    parser.add_argument('output', help='the .jsonl file to write')
    parser.add_argument('--passages', type=int, default=8000)
    options = parser.parse_args(arguments)
    text = corpus.read(options.text).tobytes().decode('utf-8', 'replace')
    randomness = random.Random(0)
    found = passages(text)
    randomness.shuffle(found)
    with open(options.output, 'x', encoding='utf-8') as file:
        for number, passage in enumerate(found[: options.passages]):
            label = ('written', 'shuffled')[number % 2]
            if label == 'shuffled':
                passage = shuffled(passage, randomness)
            file.write(json.dumps({'text': passage, 'label': label}) + '\n')
    print(f'{min(len(found), options.passages)} of {len(found)} passages')


if __name__ == '__main__':
    main(sys.argv[1:])
