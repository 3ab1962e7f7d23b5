"""Labelled rows: classification, classes of words, answers; tables and scores."""
