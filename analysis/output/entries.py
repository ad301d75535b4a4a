"""Where analyses put what they make: ``tables/`` and ``figures/`` of a results folder, in the order of the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.output.text import latex, markdown, without_constants
from analysis.output.writing import write_text
from analysis.records.files import read_json
from analysis.records.load import ResultsError

_READABLE = 80  # rows: longer tables are for machines, as CSV alone
_WRITTEN = "written.json"
_OURS = ("tables", "figures", _WRITTEN, "report.html")  # what is written into a results folder


@dataclass(frozen=True)
class Entry:
    """A figure, or a table with its contents: file name without suffix, section, title, and caption.

    The caption has formula, N, seeds and how to read it.
    """

    name: str
    section: str
    title: str
    caption: str
    frame: pd.DataFrame | None = None  # of a table


class Output:
    """A results folder's tables and figures, and what was put there.

    Args:
        root: the results folder.

    Raises:
        ResultsError: a link in the place of what is to be written.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.tables, self.figures = root, root / "tables", root / "figures"
        self.entries: list[Entry] = []
        self._written: list[Path] = []
        for folder in (self.root, self.tables, self.figures):  # through links, files of others would be overwritten
            for path in sorted(folder.glob("*")):
                if path.is_symlink() and (folder != self.root or path.name in _OURS):
                    raise ResultsError(f"{path} is a link, and nothing is written through it; delete it")
        for folder in (self.tables, self.figures):
            folder.mkdir(exist_ok=True)

    def table(self, section: str, name: str, frame: pd.DataFrame, title: str, caption: str) -> None:
        """Write a table as CSV (six digits), short ones as Markdown and LaTeX (booktabs) too; nothing if empty.

        Only the CSV has columns that are empty or the same in every row.
        """
        if not len(frame):
            return
        self.text(f"{name}.csv", frame.to_csv(index=False, float_format="%.6g"))
        if len(frame) <= _READABLE:
            readable, repeated = without_constants(frame)
            about = f"{caption} {repeated}".strip()
            self.text(f"{name}.md", f"{about}\n\n{markdown(readable)}")
            self.text(f"{name}.tex", f"% {about}\n{latex(readable)}")
        self.entries.append(Entry(name, section, title, caption, frame))

    def text(self, name: str, text: str) -> None:
        """Write a file of ``tables/``."""
        write_text(self.tables / name, text)
        self._written.append(self.tables / name)

    def figure(self, section: str, paths: Sequence[Path], title: str, caption: str) -> None:
        """Enter a figure that was drawn into ``figures/``, one path a format; nothing if there was none to draw."""
        if paths:
            self._written += paths
            self.entries.append(Entry(paths[0].stem, section, title, caption))

    def join(self, other: Output) -> None:
        """Take over what was put into the same folder by way of another output."""
        self.entries += other.entries
        self._written += other._written

    def finish(self) -> None:
        """Delete what an earlier call wrote and this one did not, and remember what was written."""
        index = self.root / _WRITTEN
        names = sorted({str(path.relative_to(self.root)) for path in self._written})
        try:
            earlier = [str(name) for name in read_json(index)]
        except (OSError, ValueError, TypeError):
            earlier = []
        for name in set(earlier) - set(names):
            path = (self.root / name).resolve()
            if path.parent in (self.tables.resolve(), self.figures.resolve()):  # never outside, whatever the file says
                path.unlink(missing_ok=True)
        write_text(index, json.dumps(names, indent=0) + "\n")
