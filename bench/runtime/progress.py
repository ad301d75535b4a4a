"""Progress of long work: a bar on a terminal, a line a minute in a file or pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_MINUTE = 60.0


class _Lines:
    """A file that writes each state of a bar as a line of stderr."""

    def write(self, text: str) -> None:
        state = text.strip()
        if state:
            print(state, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(work: Iterable[Any] | None = None, *, shown: bool, **settings: Any) -> tqdm[Any]:
    """Return a progress bar.

    Args:
        work: what to count while it is iterated; None where ``update`` counts.
        shown: show it at all.
        settings: of :class:`tqdm.tqdm`.
    """
    if sys.stderr.isatty():
        return tqdm(work, disable=not shown, dynamic_ncols=True, **settings)
    # No columns: counts, times and speed without the bar itself.
    return tqdm(work, disable=not shown, file=_Lines(), ncols=0, mininterval=_MINUTE, maxinterval=_MINUTE, **settings)
