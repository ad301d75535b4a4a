"""Puts the tables into docs/performance.md: ``python -m benchmarks.document``.

What stands between ``<!-- NAME -->`` and ``<!-- end -->`` is replaced: by the rows of results/performance.csv, and by
the counted tables of :mod:`benchmarks.protocol`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from bench.files.writing import write_atomic
from benchmarks import protocol
from benchmarks.comparison import HEADER, line, read_csv

_ROOT = Path(__file__).parent.parent
DOCUMENT = _ROOT / "docs" / "performance.md"
PUBLISHED = _ROOT / "results" / "performance.csv"
_END = "<!-- end -->"


def measured(path: Path) -> Iterator[str]:
    """Yield where the rows of a file were measured, then their table."""
    rows = read_csv(path)
    if not rows:
        yield "*Not measured yet: `python -m benchmarks --publish`.*"
        return
    for where in sorted({f"torch {row.torch} on {row.device}, {row.threads} threads" for row in rows}):
        yield f"Measured with {where}."
    yield ""
    yield HEADER
    yield from map(line, rows)


def filled(text: str, path: Path) -> str:
    """Return the document with its tables, the measured ones from a CSV file."""
    tables: Mapping[str, Callable[[], Iterator[str]]] = {
        "measured": partial(measured, path),
        "networks": protocol.network_table,
        "growth": protocol.growth,
        "protocol": partial(protocol.protocol, protocol.RATE),
    }
    for name, table in tables.items():
        before, _, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(_END)
        text = "".join((before, f"<!-- {name} -->\n", *(f"{entry}\n" for entry in table()), end, after))
    return text


def fill() -> None:
    """Rewrite the document."""
    text = filled(DOCUMENT.read_text(), PUBLISHED)
    write_atomic(DOCUMENT, lambda path: path.write_text(text))


if __name__ == "__main__":
    fill()
