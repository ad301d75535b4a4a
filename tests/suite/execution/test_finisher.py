"""Work that follows a walk: in order, one at a time, its errors told, and its results the same beside or not."""

import threading
import time

import pytest

from bench.suite import plan
from bench.suite.config.resolve import Configuration
from bench.suite.execution.worker import Finisher

BOTH = pytest.mark.parametrize("beside", [False, True])


@BOTH
def test_work_is_done_in_order_one_at_a_time(beside):
    finisher, done, running = Finisher(beside), [], []

    def work(number):
        running.append(number)
        time.sleep(0.01)
        assert running == [number]
        done.append((running.pop(), threading.current_thread() is threading.main_thread()))

    for number in range(5):
        finisher.submit(lambda number=number: work(number))
    finisher.wait()
    assert done == [(number, not beside) for number in range(5)]


def test_what_is_done_beside_does_not_hold_up_what_follows():
    finisher, go, done = Finisher(True), threading.Event(), []
    finisher.submit(lambda: done.append(go.wait(10)))
    go.set()  # the caller got here while the work waits
    finisher.wait()
    assert done == [True]


@BOTH
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), SystemExit(3)])
def test_an_error_is_the_callers(beside, error):
    def fail():
        raise error

    def two():
        finisher.submit(fail)
        finisher.submit(lambda: done.append("not reached"))

    finisher, done = Finisher(beside), []
    with pytest.raises(type(error)) as caught:
        two()
    assert caught.value is error
    assert not done
    finisher.submit(lambda: done.append("again"))  # and it is told once
    finisher.wait()
    assert done == ["again"]


@pytest.mark.ci
def test_a_cell_finished_beside_is_the_same(tmp_path, command, monkeypatch):
    monkeypatch.setattr(plan, "SHARD", 8)
    args = ("--models", "adm", "--steps", "2,3", "--samples", "24", "--batch-size", "8", "--quiet", "--compile", "off")
    threads, submit = set(), Finisher.submit

    def noted(self, work):
        submit(self, lambda: threads.add(threading.current_thread() is threading.main_thread()) or work())

    for name, beside in (("plain", False), ("beside", True)):
        with monkeypatch.context() as patch:
            patch.setattr(Configuration, "overlaps", beside)
            patch.setattr(Finisher, "submit", noted)
            assert command(*args, "--out", tmp_path / name).code == 0
    assert threads == {False, True}
    for cell in ("adm-ddpm-2-seed0", "adm-ddpm-3-seed0"):
        one, other = (tmp_path / name / "cells" / cell for name in ("plain", "beside"))
        files = {path.name for path in one.iterdir()}
        assert files == {path.name for path in other.iterdir()}
        for file in files - {"metrics.json"}:
            assert (one / file).read_bytes() == (other / file).read_bytes(), file


def test_a_full_disk_met_beside_is_one_line(tmp_path, command, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device", str(tmp_path / "out"))

    monkeypatch.setattr(Configuration, "overlaps", True)
    monkeypatch.setattr("bench.suite.store.store.write_shard", full)
    found = command("--models", "adm", "--steps", "2", "--samples", "8", "--quiet", "--out", tmp_path / "out")
    assert (found.code, found.out) == (2, "")
    assert found.err.startswith(f"error: {tmp_path / 'out'}: No space left on device")
    assert len(found.err.splitlines()) == 1
