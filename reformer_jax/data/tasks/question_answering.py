"""Question answering: which words of a context are the answer, as in SQuAD v1.1."""

import dataclasses
import functools
import re
from typing import Any

import numpy as np

from reformer_jax.data import batching
from reformer_jax.data import dataset as dataset_lib
from reformer_jax.data import tokenizers
from reformer_jax.data.tasks import cells
from reformer_jax.data.tasks import rows
from reformer_jax.data.tasks import scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionAnswering(rows.Rows):
    """Questions whose answers are spans of a context.

    An example is question, separator, context. Where it is cut before the end of the
    first answer, training leaves it out; evaluation gives it weight 0, though it counts
    in `score`. 'labels' are int32 [B, 2], first and last token of the first answer,
    'candidates' bool [B, L], True at tokens of the context, 'weights' [B].

    Attributes:
      question_column: column of the questions.
      context_column: column of the texts that hold the answers.
      answers_column: column of the answers, at least one a row: {'text': [...],
        'answer_start': [...]} with the character where each begins, a list of {'text':
        ..., 'answer_start': ...}, a list of strings, or a string. Without a start (or
        where another text stands there) the nearest occurrence in the context is taken,
        else the first.
    """

    question_column: str
    context_column: str
    answers_column: str

    @property
    def classes(self) -> int:
        return 2  # logits of a token: for the first and for the last of the answer

    @property
    def spec(self) -> batching.Spec:
        return super().spec | {
            'labels': ((self.batch_size, 2), batching.INT),
            'candidates': ((self.batch_size, self.length), batching.BOOL),
            'weights': ((self.batch_size,), batching.FLOAT),
        }

    def score(self, split: str, predictions: np.ndarray) -> dict[str, float]:
        """The 'exact_match' and 'f1' of the official evaluation of SQuAD v1.1, in
        [0, 1], and 'accuracy', which is the exact match; cut rows count.

        Where tokens are none of the context, or the wrong way round, the answer is ''.
        """
        examples = _examples(self, split)
        scores.check(predictions, len(examples), (2,))
        results = [
            scores.answer(_text(example, int(first), int(last)), example.answers)
            for example, (first, last) in zip(examples, predictions, strict=False)
        ]
        exact, f1 = np.mean(results, axis=0)
        return {'exact_match': float(exact), 'f1': float(f1), 'accuracy': float(exact)}

    def _stream(self, split: str) -> dataset_lib.Stream:
        examples = _examples(self, split)
        if split == 'train':
            examples = [example for example in examples if example.span is not None]
        if not examples:
            raise ValueError(
                f'no answer of the train split of {self.source!r} ends within length='
                f'{self.length} tokens: give a greater --config.data.length'
            )

        def fill(batch: batching.Batch, place: int, row: int) -> None:
            example = examples[row]
            batch['candidates'][place, example.begin : len(example.tokens)] = True
            if example.span is not None:
                batch['labels'][place] = example.span
                batch['weights'][place] = 1

        tokens = [example.tokens for example in examples]
        return self._pad_rows(split, tokens, fill)


@dataclasses.dataclass(frozen=True)
class _Example:
    """A question and its context as tokens, and the true answers.

    Attributes:
      tokens: int32 [<= L], question, separator, context.
      begin: place of the first token of the context; L or more if it is cut off.
      starts, ends: int32 [<= L - begin], characters of the context of its tokens.
      context: the whole of it.
      answers: texts.
      span: first and last token of the first answer, int32 [2]; None if cut off.
    """

    tokens: np.ndarray
    begin: int
    starts: np.ndarray
    ends: np.ndarray
    context: str
    answers: list[str]
    span: np.ndarray | None


def _text(example: _Example, first: int, last: int) -> str:
    """The text of a span of tokens; '' if it is none of the context."""
    if not example.begin <= first <= last < len(example.tokens):
        return ''
    start = example.starts[first - example.begin]
    return example.context[start : example.ends[last - example.begin]]


@functools.lru_cache(maxsize=3)
def _examples(dataset: QuestionAnswering, split: str) -> list[_Example]:
    table, encode = dataset.table(split), functools.partial(_example, dataset)
    names = dataset.question_column, dataset.context_column, dataset.answers_column
    return dataset.encoded(split, list(map(table.column, names)), encode)


def _example(
    dataset: QuestionAnswering, where: str, question: Any, context: Any, answers: Any
) -> _Example:
    for name, part in (
        (dataset.question_column, question),
        (dataset.context_column, context),
    ):
        if not isinstance(part, str) or not part.strip():
            raise ValueError(f'{where}: {name} {part!r} is no text, or an empty one')
    if isinstance(answers, str):
        answers = cells.printed(answers, where)
    texts, places = _answers(answers, where)
    place = _find(texts[0], places[0], context, where)

    tokenizer, length = tokenizers.load(dataset.tokenizer), dataset.length
    asked = tokenizer.encode(question)
    tokens, starts, ends = tokenizer.encode_with_offsets(context)
    separator = np.array([tokenizer.separator_id], np.int32)
    begin = len(asked) + 1
    # The first token that reaches into the answer, the last that begins before its end.
    first = begin + int(np.searchsorted(ends, place, side='right'))
    last = begin + int(np.searchsorted(starts, place + len(texts[0]))) - 1
    kept = max(length - begin, 0)
    return _Example(
        tokens=np.concatenate([asked, separator, tokens])[:length],
        begin=begin,
        starts=starts[:kept],
        ends=ends[:kept],
        context=context,
        answers=texts,
        span=np.array([first, last], np.int32) if first <= last < length else None,
    )


def _answers(value: Any, where: str) -> tuple[list[str], list[int]]:
    """Texts of the answers, and where they begin, 0 where that is not said."""
    starts = []
    if isinstance(value, list) and value and all(isinstance(a, dict) for a in value):
        value = {key: [answer.get(key) for answer in value] for key in value[0]}
    if isinstance(value, dict):
        value, starts = value.get('text'), value.get('answer_start', [])
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(
            f"{where}: the answers must be {{'text': [...], 'answer_start': [...]}}, a "
            f'list of strings or a string, not {value!r}'
        )
    if not value or not value[0].strip():
        raise ValueError(
            f'{where}: no answer; each row needs one, as in SQuAD v1.1: remove it'
        )
    starts = starts or [0] * len(value)
    if (
        not isinstance(starts, list)
        or len(starts) != len(value)
        or not all(isinstance(start, int) and start >= 0 for start in starts)
    ):
        raise ValueError(
            f'{where}: answer_start {starts!r} must be a list of {len(value)} whole '
            'numbers from 0, one for each answer'
        )
    return value, starts


def _find(answer: str, start: int, context: str, where: str) -> int:
    """Where the answer begins: at `start`, or at its occurrence nearest to that."""
    if context.startswith(answer, start):
        return start
    found = [match.start() for match in re.finditer(re.escape(answer), context)]
    if not found:
        raise ValueError(
            f'{where}: the answer {answer!r} is not in the context: correct or remove '
            'the row, or write its answers as JSON does'
        )
    return min(found, key=lambda place: abs(place - start))
