"""``python -m analysis.published DOCS``: write the page of published numbers and its figure."""

from __future__ import annotations

import argparse
from pathlib import Path

from analysis.published.delta_t import caption, delta_table, draw_published_delta
from analysis.published.tables import page


def main() -> None:
    """Write ``published.md`` and ``figures/published_delta_t.png`` into a folder."""
    parser = argparse.ArgumentParser(prog="python -m analysis.published", description=__doc__)
    parser.add_argument("docs", type=Path, help="the folder of the documentation")
    docs = parser.parse_args().docs
    table = delta_table()
    draw_published_delta(table, docs / "figures")
    (docs / "published.md").write_text(page(caption(table)))


if __name__ == "__main__":
    main()
