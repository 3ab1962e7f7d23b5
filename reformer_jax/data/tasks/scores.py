"""Scores of predictions, as the benchmarks of each task define them."""

import collections
import re
import string
from collections.abc import Iterable, Sequence

import numpy as np

_ARTICLES = re.compile(r'\b(a|an|the)\b')
_NO_PUNCTUATION = str.maketrans('', '', string.punctuation)


def check(predictions: np.ndarray, rows: int, shape: tuple[int, ...]) -> None:
    """Raises a ValueError unless predictions are [N, *shape], N from 1 to `rows`."""
    found = predictions.shape
    if found[1:] != shape or not 0 < found[0] <= rows:
        raise ValueError(
            f'predictions have shape {found}: give {("N", *shape)} with N from 1 to '
            f'{rows}, the rows of the split'
        )


def single(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Scores one class per row, by logits [N, classes] and labels int [N].

    Returns:
      'accuracy'; 'f1', of class 1 if there are 2 (as GLUE), else the mean over the
      classes that are true or predicted anywhere.
    """
    average = 'binary' if logits.shape[1] == 2 else 'macro'
    return _accuracy_and_f1(labels, logits.argmax(-1), average)


def multi(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Scores sets of classes; those with a logit above 0 are predicted.

    Both are [N, classes]; labels are 1 for those in the set, else 0.

    Returns:
      'accuracy', the share of rows whose sets are equal; 'f1', over all rows and
      classes together (micro).
    """
    return _accuracy_and_f1(labels > 0, logits > 0, 'micro')


def _accuracy_and_f1(
    true: np.ndarray, predicted: np.ndarray, average: str
) -> dict[str, float]:
    from sklearn import metrics  # takes a second, which few runs need

    f1 = metrics.f1_score(true, predicted, average=average, zero_division=0)
    return {'accuracy': float(metrics.accuracy_score(true, predicted)), 'f1': float(f1)}


def regression(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Scores numbers, predictions [N, 1] and labels [N].

    Returns:
      'pearson' and 'spearman', the correlations of the numbers and of their ranks, from
      -1; 0 where either does not vary.
    """
    from scipy import stats  # takes a second, which few runs need

    x, y = predictions[:, 0].astype(np.float64), labels.astype(np.float64)
    correlations = {'pearson': stats.pearsonr, 'spearman': stats.spearmanr}
    varies = np.ptp(x) and np.ptp(y)
    return {
        name: float(correlation(x, y).statistic) if varies else 0.0
        for name, correlation in correlations.items()
    }


# Named entities.


def has_entities(labels: Sequence[str]) -> bool:
    """Whether labels mark entities: 'O', and B-TYPE or I-TYPE."""
    return all(label == 'O' or label[:2] in ('B-', 'I-') for label in labels)


def entities(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """Returns the entities, (first word, last word, type), of one sentence's tags.

    As conlleval reads them: B-X begins an entity of type X; I-X continues one, and
    begins one behind another type or none; all else is outside.
    """
    found = set()
    begin, current = 0, ''
    for place, tag in enumerate([*tags, 'O']):
        prefix, kind = tag[:2], tag[2:] if tag[:2] in ('B-', 'I-') else ''
        if prefix == 'I-' and kind == current:
            continue
        if current:
            found.add((begin, place - 1, current))
        begin, current = place, kind
    return found


def named_entities(
    predicted: Sequence[Sequence[str]], true: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Scores the entities of sentences, given the tags of the words of each.

    Returns:
      'precision', 'recall' and 'f1', 0 where they are not defined; an entity is right
      if both its words and type are.
    """
    pairs = [(entities(p), entities(t)) for p, t in zip(predicted, true, strict=True)]
    both = sum(len(p & t) for p, t in pairs)
    found, wanted = sum(len(p) for p, _ in pairs), sum(len(t) for _, t in pairs)
    return {
        'precision': both / found if found else 0.0,
        'recall': both / wanted if wanted else 0.0,
        'f1': _f1(both, found, wanted),
    }


# Answers.


def answer(predicted: str, true: Iterable[str]) -> tuple[float, float]:
    """Returns exact match and F1 of an answer, each the best over the true ones.

    As the official evaluation of SQuAD v1.1: case, punctuation, articles and white
    space do not count; F1 is that of the words.
    """
    words = _words(predicted)
    wanted = [_words(text) for text in true]
    exact = max(float(words == other) for other in wanted)
    return exact, max(_word_f1(words, other) for other in wanted)


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(' ', text.lower().translate(_NO_PUNCTUATION)).split()


def _word_f1(predicted: list[str], true: list[str]) -> float:
    common = collections.Counter(predicted) & collections.Counter(true)
    return _f1(common.total(), len(predicted), len(true))


def _f1(both: int, predicted: int, true: int) -> float:
    return 2 * both / (predicted + true) if both else 0.0
