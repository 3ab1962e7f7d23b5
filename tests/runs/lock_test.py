"""One owner of a folder at a time."""

import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from reformer_jax.runs import folder as run_folder
from reformer_jax.runs import lock

_HOLD = """
import sys, time
from reformer_jax.runs import lock
with lock.hold(sys.argv[1]):
    print('held', flush=True)
    time.sleep(60)
"""


def test_a_second_owner_is_refused_by_the_name_of_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, '_SECONDS', 0.1)
    told = f'in use by process {os.getpid()} on {re.escape(socket.gethostname())} since'
    with lock.hold(tmp_path):
        content = (tmp_path / '.lock').read_text()
        with pytest.raises(ValueError, match=told), lock.hold(tmp_path):
            pytest.fail('two owners')
        with pytest.raises(ValueError, match=told):
            lock.check(tmp_path)
        assert (tmp_path / '.lock').read_text() == content
    lock.check(tmp_path)
    with lock.hold(tmp_path):
        pass


def test_a_look_makes_nothing(tmp_path):
    lock.check(tmp_path / 'nowhere')
    lock.check(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_dead_owner_holds_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, '_SECONDS', 0.1)
    command = [sys.executable, '-c', _HOLD, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as owner:
        assert owner.stdout.readline() == b'held\n'
        with pytest.raises(ValueError, match=f'in use by process {owner.pid} on'):
            lock.check(tmp_path)
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        with lock.hold(tmp_path):
            pass


def test_without_locks_there_is_a_warning(tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, 'flock', flock)
    with lock.hold(tmp_path):
        assert 'cannot be locked (No locks available)' in capsys.readouterr().err


def test_a_folder_with_nothing_but_a_lock_is_new(tmp_path):
    """A start was killed right after it had made the folder."""
    with lock.hold(tmp_path):
        run_folder.open_workdir(tmp_path, {'steps': 1})
    assert (tmp_path / 'config.json').is_file()
