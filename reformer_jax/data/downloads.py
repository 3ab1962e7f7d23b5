"""Prepares tfds datasets, failing at once where they cannot be downloaded."""

import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable
from typing import Any

import tensorflow_datasets as tfds

_SECONDS_TO_ANSWER = 20
_NOT_THERE = (404, 410)

# What a failed download may raise.
ERRORS = (
    OSError,  # among them every error of requests
    tfds.download.DownloadError,
    tfds.core.download.download_manager.NonMatchingChecksumError,
)


def prepare(builder: Any, urls: Iterable[str]) -> None:
    """Downloads and prepares a tfds dataset; does nothing where that is done.

    Args:
      builder: its builder.
      urls: what it downloads.

    Raises:
      One of `ERRORS`: it cannot be downloaded.
    """
    if not builder.is_prepared():
        _check_answer(urls)
        settings = tfds.download.DownloadConfig(try_download_gcs=False)
        builder.download_and_prepare(download_config=settings)


def _check_answer(urls: Iterable[str]) -> None:
    """Raises an OSError at once where tfds would retry for minutes: no network.

    One host that answers will do, whatever it says: some refuse to be asked for the
    head alone, and some lists have dead ones.
    """
    hosts = {urllib.parse.urlsplit(url).netloc: url for url in urls}
    failure: OSError | None = None
    for url in hosts.values():
        try:
            request = urllib.request.Request(url, method='HEAD')
            urllib.request.urlopen(request, timeout=_SECONDS_TO_ANSWER).close()
            return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code not in _NOT_THERE:
                return
            failure = error
        except OSError as error:
            failure = error
    if failure is not None:
        raise failure
