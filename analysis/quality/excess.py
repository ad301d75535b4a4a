"""What a model adds to the distance that an exact sampler has at the same N."""

from __future__ import annotations

import pandas as pd

from analysis.output.entries import Entry, Output
from analysis.quality.main_table import QualityTable, quality_table
from analysis.records.load import Results

_CAPTION = (
    "What the network and the steps add: the distance less that of as many images drawn from the data, with the"
    " standard error of the distance. A ratio of 1 is an exact sampler's."
)


def excess_table(quality: QualityTable) -> pd.DataFrame:
    """Return one row a sampler, model and step count: its distance less an exact sampler's at this N.

    Columns ``sampler, model, steps, distance, exact, excess, error, ratio``. ``error`` is the standard error of the
    distance, empty where no influence functions were recorded; that of the exact sampler's mean, from 500 draws, is
    small beside it. Empty where no exact sampler was scored.
    """
    rows = [
        (row["sampler"], row["model"], steps, row[f"{steps}"], exact, row[f"{steps}_error"])
        for row in quality.table.to_dict("records")
        for steps, (exact, _) in quality.exact.items()
        if not pd.isna(row[f"{steps}"])
    ]
    table = pd.DataFrame(rows, columns=["sampler", "model", "steps", "distance", "exact", "error"])
    table.insert(5, "excess", table["distance"] - table["exact"])
    return table.assign(ratio=table["distance"] / table["exact"])


def analyse(results: Results, out: Output) -> None:
    """Write the table, where an exact sampler was scored."""
    quality = results.once(quality_table)
    table = pd.DataFrame() if quality is None else excess_table(quality)
    if len(table):
        out.text("excess.csv", table.to_csv(index=False))
        out.entries.append(Entry("excess", "Quality", "Distance beyond an exact sampler's", _CAPTION, table))
