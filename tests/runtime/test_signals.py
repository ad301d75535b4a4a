import signal
import threading

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


def test_outside_the_main_thread_nothing_is_heard():
    def listen():
        with Signals() as signals:
            heard.append((signal.getsignal(signal.SIGTERM), signals.received))

    heard, before = [], signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert heard == [(before, 0)]
