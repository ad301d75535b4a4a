"""Progress on a terminal and elsewhere."""

import io
import sys

from bench.runtime import progress
from bench.runtime.progress import progress_bar


def test_elsewhere_than_on_a_terminal_it_is_lines(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_MINUTE", 0.0)
    assert list(progress_bar(range(3), shown=True, desc="work")) == [0, 1, 2]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("[")[0].split() for line in (lines[0], lines[-1])] == [
        ["work:", "0%", "0/3"], ["work:", "100%", "3/3"]
    ]  # fmt: skip


def test_a_minute_passes_between_lines(capsys):
    with progress_bar(shown=True, total=1000) as bar:
        for _ in range(1000):
            bar.update(1)
    assert len(capsys.readouterr().err.splitlines()) == 2  # the first and the last


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_a_bar_as_wide_as_it_is_and_no_colour(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar(shown=True, total=10, desc="work") as bar:
        bar.update(10)
        assert bar.dynamic_ncols
    assert "100%|" in terminal.getvalue()
    assert "\x1b" not in terminal.getvalue()


def test_nothing_is_shown_where_it_is_not_wanted(capsys):
    assert list(progress_bar(range(3), shown=False)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
