"""Labelled rows: classification, classes of words, answers; tables and scores."""

from reformer_jax.data.tasks import classification
from reformer_jax.data.tasks import question_answering
from reformer_jax.data.tasks import tables
from reformer_jax.data.tasks import token_classification

__all__ = ('classification', 'question_answering', 'tables', 'token_classification')
