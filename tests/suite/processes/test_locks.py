"""Locks on a results folder: who may work there together, and what ends a claim."""

import os
import signal
import threading
from contextlib import ExitStack

import portalocker
import pytest
from suite_ranks import hold_folder, started

from bench.suite.processes.locks import Claims
from bench.suite.processes.ranks import Share
from bench.suite.settings import ConfigError


def claim(stack, root, share=None):
    stack.enter_context(Claims(root).folder(share))


def test_nothing_is_made_before_a_claim(tmp_path):
    Claims(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_is_one_runs(tmp_path):
    with ExitStack() as stack:
        claim(stack, tmp_path)
        for share in (None, Share(0, 2)):
            with pytest.raises(ConfigError, match=r"is in use by another run; wait for it, stop it, or choose another"):
                claim(stack, tmp_path, share)
    with ExitStack() as stack:
        claim(stack, tmp_path)  # the claim ended with the run


def test_jobs_of_an_array_hold_a_folder_together(tmp_path):
    with ExitStack() as stack:
        for share in (Share(0, 3), Share(1, 3), Share(2, 3)):
            claim(stack, tmp_path, share)
        with pytest.raises(ConfigError, match="in use by another run"):
            claim(stack, tmp_path)
        with pytest.raises(ConfigError, match="--shard 1/3 is already running on"):
            claim(stack, tmp_path, Share(1, 3))
    with ExitStack() as stack:
        claim(stack, tmp_path)  # nor do refused claims leave anything held


def test_a_cell_is_completed_by_one_at_a_time(tmp_path):
    one, other = Claims(tmp_path), Claims(tmp_path)
    with one.cell("a") as mine, other.cell("a") as theirs, other.cell("b") as another:
        assert (mine, theirs, another) == (True, False, True)
    with other.cell("a") as theirs:
        assert theirs


def test_processes_take_turns_to_set_up(tmp_path):
    done, inside = [], threading.Event()

    def wait():
        with Claims(tmp_path).setup():
            done.append("second")

    second = threading.Thread(target=wait)
    with Claims(tmp_path).setup():
        second.start()
        assert not inside.wait(0.2)
        done.append("first")
    second.join(10)
    assert done == ["first", "second"]


def test_a_claim_ends_with_its_process_however_it_ends(tmp_path):
    with started(hold_folder, tmp_path) as (process, said):
        assert said() == "held"
        with ExitStack() as stack, pytest.raises(ConfigError, match="in use by another run"):
            claim(stack, tmp_path)
        os.kill(process.pid, signal.SIGKILL)
        process.join(10)
        with ExitStack() as stack:
            claim(stack, tmp_path)


def test_a_file_system_without_locks_stops_nobody_and_is_told_once(tmp_path, monkeypatch, capsys):
    def unable(file, flags):
        raise portalocker.exceptions.LockException("No locks available")

    monkeypatch.setattr(portalocker, "lock", unable)
    claims = Claims(tmp_path)
    with claims.folder(), claims.setup(), claims.cell("a") as mine, claims.cell("b"):
        assert mine
    assert capsys.readouterr().err == (
        f"note: {tmp_path / '.locks'} cannot be locked here; see to it that one run at a time uses it\n"
    )
