"""What a model adds to the distance that an exact sampler has at the same N."""

from __future__ import annotations

import pandas as pd

from analysis.output.entries import Output, TableEntry
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
    rows = []
    for _, row in quality.table.iterrows():
        for steps, (exact, _) in quality.exact.items():
            distance = row[f"{steps}"]
            if not pd.isna(distance):
                rows.append(
                    {"sampler": row["sampler"], "model": row["model"], "steps": steps, "distance": distance}
                    | {"exact": exact, "excess": distance - exact, "error": row[f"{steps}_error"]}
                    | {"ratio": distance / exact}
                )
    return pd.DataFrame(rows)


def analyse(results: Results, out: Output) -> None:
    """Write the table, where an exact sampler was scored."""
    quality = results.once(quality_table)
    table = pd.DataFrame() if quality is None else excess_table(quality)
    if len(table):
        out.text("excess.csv", table.to_csv(index=False))
        out.entries.append(TableEntry("excess", "Quality", "Distance beyond an exact sampler's", _CAPTION, table))
