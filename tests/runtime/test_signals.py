import io
import signal
import sys
import threading
import zipfile

import pytest

from bench.runtime.signals import Interrupted, Signals

CODES = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


@pytest.mark.parametrize(("number", "code"), CODES)
def test_a_signal_is_raised_once_and_ends_with_its_own_code(number, code):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught, Signals() as signals:
        signal.raise_signal(number)
    assert (caught.value.code, signals.received) == (code, number)
    assert signal.getsignal(number) is before


def test_what_an_import_makes_of_a_signal_is_still_an_interruption():
    def imports():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RecursionError("maximum recursion depth exceeded") from None

    with pytest.raises(Interrupted), Signals():
        imports()


def test_a_held_signal_waits_and_later_ones_are_ignored():
    with Signals() as signals:
        with signals.hold():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert signals.received == signal.SIGTERM


def test_an_archive_that_a_signal_tore_goes_without_a_word_and_other_errors_do_not(capsys, monkeypatch):
    class Other:
        def __del__(self):
            raise ValueError("reported")

    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    archive = zipfile.ZipFile(io.BytesIO(), "w")
    archive._writing = True  # a member is open, as when the signal comes amid its first bytes
    with pytest.raises(Interrupted), Signals():
        signal.raise_signal(signal.SIGINT)
    del archive
    assert capsys.readouterr().err == ""
    Other()
    assert "ValueError: reported" in capsys.readouterr().err


def test_outside_the_main_thread_nothing_is_heard():
    def listen():
        with Signals() as signals:
            heard.append((signal.getsignal(signal.SIGTERM), signals.received))

    heard, before = [], signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert heard == [(before, 0)]
