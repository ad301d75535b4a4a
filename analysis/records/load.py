"""Read a results folder, loose or published as one archive: complete cells only, each damaged one named."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from numpy.typing import NDArray

from analysis.records.checks import check_facts, check_steps, walk_name
from analysis.records.experiments import read_exact, read_misfits
from analysis.records.files import (
    ARCHIVE,
    Place,
    children,
    file_hash,
    npz_names,
    open_records,
    read_json,
    read_npy,
    read_npz,
    read_table,
)
from analysis.records.run_record import read_run

T = TypeVar("T")
_KEY = ("model", "sampler", "steps", "seed")
# Of ``moments.npz``: one entry a level, and what is read of the arms.
LEVEL_ARRAYS = ("i", "t", "alpha_next", "sigma_next")
MOMENT_ARRAYS = (
    "free/spectrum_", "free/haar_", "forced-train/spectrum_x0", "forced-train/haar_x0", "forced-train/error/",
    "recorded/",
)  # fmt: skip
_SHARED = ("spacing", "clip", "quantize", "precision", "samples", "data")  # what cells of one folder agree in
_CLOSED_FORM = "gaussian"  # begins the arms of exact samplers that are formulas; others are walks
_EXTRAPOLATED = "_inf"  # ends a score of older records that is computed no more
# Endings of scores that belong to a distance.
_DERIVED = (_EXTRAPOLATED, "_exact", "_exact_sd", "_exact_low", "_exact_high", "_strat")


class ResultsError(ValueError):
    """A results folder, or a cell of it, cannot be read; the message says which and why."""


@dataclass(frozen=True)
class CellRecord:
    """One complete cell: its folder, the configuration it was made with, and its scores."""

    folder: Place
    cell: dict[str, Any]
    facts: dict[str, Any]
    _unchanged: set[str] = field(default_factory=set, repr=False, compare=False)  # names of files, once they are known

    def key(self) -> dict[str, Any]:
        """Return model, sampler, steps and seed."""
        return {name: self.cell[name] for name in _KEY}

    def steps(self) -> pd.DataFrame | None:
        """Return the per-step table with the cell's key, None where no probes ran.

        Rows of a Heun step's correcting call (stage 1) are left out: a walk has one call a level that it fed itself.

        Raises:
            ResultsError: the table is damaged.
        """

        def read(path: Place) -> pd.DataFrame:
            table = read_table(path)
            check_steps(table, self.cell["steps"])
            table = table.astype({"t": float, "n": float, "value": float, "std": float})
            return table[table["stage"] == 0].reset_index(drop=True).assign(**self.key())

        return self._read("steps.csv", read)

    def array(self, name: str) -> NDArray[Any] | None:
        """Return the array of an npy file, or None where there is none.

        Raises:
            ResultsError: the file is damaged.
        """
        return self._read(name, read_npy)

    def arrays(self, name: str, chosen: Callable[[str], bool] | None = None) -> dict[str, NDArray[Any]] | None:
        """Return the arrays of an npz file, all or those whose names are chosen, or None where there is none.

        Raises:
            ResultsError: the file is damaged.
        """
        return self._read(name, lambda path: read_npz(path, chosen))

    @cached_property
    def moments(self) -> dict[str, NDArray[Any]]:
        """The analysed arrays of ``moments.npz``, empty where there is none; the file is unpacked once.

        Raises:
            ResultsError: the file is damaged.
        """
        return self.arrays("moments.npz", is_analysed) or {}

    def array_names(self, name: str) -> list[str] | None:
        """Return the names of an npz file's arrays without unpacking them, or None where there is none.

        Raises:
            ResultsError: the file is damaged.
        """
        return self._read(name, npz_names)

    def _read(self, name: str, read: Callable[[Place], T]) -> T | None:
        path = self.folder / name
        if not path.exists():
            return None
        try:
            self._refuse_changed(path)
            return read(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = str(error).strip()  # pandas ends its lines
            raise ResultsError(f"{path} is damaged ({reason}); delete the cell and run again") from None

    def _refuse_changed(self, path: Place) -> None:
        """Refuse a file whose sha256 is not that of the record, which a published copy's archive has in its place."""
        sums = self.facts.get("sha256")
        digest = sums.get(path.name) if isinstance(sums, dict) else None
        if digest is not None and path.name not in self._unchanged:
            if file_hash(path) != digest:
                raise ValueError("its sha256 is not the one in metrics.json")
            self._unchanged.add(path.name)


@dataclass(frozen=True)
class Results:
    """A results folder's complete cells, and a line for each cell that cannot be read."""

    root: Path
    cells: list[CellRecord]
    problems: list[str] = field(default_factory=list)
    records: Place | None = None
    run: dict[str, Any] = field(default_factory=dict)  # run.json, empty where there is none
    _tables: dict[Any, Any] = field(default_factory=dict, repr=False)

    def once(self, make: Callable[[Results], T]) -> T:
        """Return what a function makes of these results; it is called once."""
        if make not in self._tables:
            self._tables[make] = make(self)
        table: T = self._tables[make]
        return table

    def folder(self, name: str) -> list[Any]:
        """Return what lies in ``chains/``, ``response/``, ``tuning/`` and their like, without hidden places."""
        return [place for place in children((self.records or self.root) / name) if not place.name.startswith(".")]

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """Return every score, long: model, sampler, steps, nfe, seed, n, reference, metric, value, reason."""
        columns = ["model", "sampler", "steps", "nfe", "seed", "n", "reference", "metric", "value", "reason"]
        rows = [
            {**score, **record.key(), "nfe": record.facts["nfe"]}
            for record in self.cells
            for score in record.facts["scores"]
            if not score["metric"].endswith(_EXTRAPOLATED)
        ]
        return pd.DataFrame(rows, columns=columns)

    @cached_property
    def misfits(self) -> dict[str, str]:
        """Return what shows, of each model whose description does not fit its network, that it does not."""
        misfits: dict[str, str] = {}
        for network, text in read_misfits(self.folder("slopes"), self.problem):
            for cell in (record.cell for record in self.cells):
                if all(cell.get(name) == value for name, value in network.items()):
                    misfits.setdefault(cell["model"], text)
        return misfits

    def each(self, read: Callable[[CellRecord], T | None]) -> list[T]:
        """Return what ``read`` makes of every cell that has it; a damaged cell is left out and becomes a problem."""
        values = []
        for record in self.cells:
            try:
                value = read(record)
            except ResultsError as error:
                self.problem(str(error))
                continue
            if value is not None:
                values.append(value)
        return values

    def problem(self, line: str) -> None:
        """Note what is wrong, once, on one line."""
        line = one_line(line)
        if line not in self.problems:
            self.problems.append(line)

    @cached_property
    def steps(self) -> pd.DataFrame:
        """The per-step tables of all cells, joined; empty where nothing was measured."""
        tables = self.each(CellRecord.steps)
        if not tables:
            return pd.DataFrame()
        tables += self._exact_steps(tables)
        return pd.concat(tables, ignore_index=True).astype({"arm": "category", "quantity": "category"})

    def _exact_steps(self, measured: list[pd.DataFrame]) -> list[pd.DataFrame]:
        """Return the rows of exact samplers for each cell on whose levels they walked, as if they were arms of it.

        Closed forms stand beside every seed, walks beside the first alone, for they are no more images for more seeds.
        """
        exact = read_exact(self.folder("exact"), self.problem)
        tables, has_walks = [], set()
        for table in measured if exact else []:
            key = {name: table[name].iloc[0] for name in _KEY}
            record = next(record for record in self.cells if record.key() == key)
            place = (key["model"], key["sampler"], key["steps"])
            for walked, rows in exact:
                if all(record.cell.get(name) == value for name, value in walked.items()):
                    closed = rows["arm"].str.startswith(_CLOSED_FORM)
                    tables.append((rows[closed] if place in has_walks else rows).assign(**key))
                    has_walks.add(place)
        return tables

    def account(self, sampler: str | None = None) -> str:
        """Return N, seeds and data for captions, e.g. ``N = 256 samples a seed, 5 seeds (0 to 4), digits``."""
        cells = [record.cell for record in self.cells if sampler in (None, record.cell["sampler"])]
        sizes = "/".join(str(n) for n in sorted({cell["samples"] for cell in cells}))
        seeds = sorted({cell["seed"] for cell in cells})
        run = seeds == list(range(seeds[0], seeds[-1] + 1)) and len(seeds) > 2
        named = f"{seeds[0]} to {seeds[-1]}" if run else ", ".join(map(str, seeds))
        text = f"N = {sizes} samples a seed, {len(seeds)} seed{'s' if len(seeds) > 1 else ''} ({named})"
        precision = cells[0].get("precision", "fp32")  # which all cells share
        return text if precision == "fp32" else f"{text}, network calls in {precision}"


def load_results(root: Path) -> Results:
    """Read every complete cell of a folder, ancestral sampling first, models in the order of the last run.

    Raises:
        ResultsError: there is no results folder here, no complete cell in it, or its ``run.json`` is damaged.
    """
    try:
        records = open_records(root)
    except (OSError, ValueError) as error:
        raise ResultsError(one_line(f"{root / ARCHIVE} is damaged ({error}); fetch it again")) from None
    if not (records / "cells").is_dir():
        raise ResultsError(f"{root} is not a results folder (no cells/ and no {ARCHIVE} in it)")
    try:
        run = read_run(root)
    except ValueError as error:
        raise ResultsError(one_line(str(error))) from None
    cells: list[CellRecord] = []
    problems: list[str] = []
    for folder in (place for place in children(records / "cells") if place.is_dir()):
        try:
            facts = read_json(folder / "metrics.json")
            check_facts(folder, facts)
            cells.append(CellRecord(folder, {**facts["cell"], "sampler": walk_name(facts["cell"])}, facts))
        except FileNotFoundError:
            problems.append(f"{folder} is incomplete and left out; run again to finish it")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            what = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
            problems.append(f"{folder} is damaged and left out ({what}); delete it and run again")
    cells = _alike(cells, problems)
    if not cells:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ResultsError(one_line(f"{root} holds no complete cell" + (f": {problems[0]}{more}" if problems else "")))
    order = {name: position for position, name in enumerate(run.get("configuration", {}).get("models", ()))}

    def place(record: CellRecord) -> tuple[Any, ...]:
        model, sampler, steps, seed = record.key().values()
        # A model that the last run did not name was there before it.
        return sampler != "ddpm", sampler, order.get(model, -1), steps, seed

    return Results(root, sorted(cells, key=place), [one_line(problem) for problem in problems], records, run)


def one_line(text: str) -> str:
    """Return text that a terminal shows on one line, whatever folders and files are called."""
    return "".join(character if character.isprintable() else " " for character in text)


def _alike(cells: list[CellRecord], problems: list[str]) -> list[CellRecord]:
    """Keep the cells that share the settings of most; they alone may stand in one table."""
    settings = Counter(json.dumps({name: record.cell.get(name) for name in _SHARED}) for record in cells)
    shared, alike = json.loads(settings.most_common(1)[0][0]) if cells else {}, []
    for record in cells:
        other = [name for name, value in shared.items() if record.cell.get(name) != value]
        if other:
            problems.append(f"{record.folder} is left out: its {other[0]} is not that of the other cells")
        else:
            alike.append(record)
    return alike


def is_analysed(name: str) -> bool:
    """Tell whether an analysis reads an array of ``moments.npz``."""
    return name in LEVEL_ARRAYS or name.startswith(("data/", *MOMENT_ARRAYS))


def frechet_name(names: Iterable[str]) -> str | None:
    """Return the Frechet distance on pooled features, the plain one; None where there is none."""
    plain = (name for name in names if not name.endswith(_DERIVED))
    return next((name for name in plain if re.fullmatch(r"(clean_)?(fid|fd_\w+)", name)), None)


def score_name(names: Iterable[str], kind: str) -> str | None:
    """Return what ``precision``, ``recall``, ``is`` (the Inception score) or ``kid`` goes by, None without any."""
    return next((name for name in names if re.fullmatch(rf"(clean_)?{kind}(_\w+)?", name)), None)


def kid_name(names: Iterable[str]) -> str | None:
    """Return what the kernel distance goes by, its error being a score of its own; None where there is none."""
    return score_name((name for name in names if not name.endswith("_error")), "kid")


def main_metric(metrics: pd.DataFrame) -> str | None:
    """Return the distance that a folder was scored with, None where there is none.

    It is the Frechet distance on pooled features; where N or the reference gave no cell one, the kernel distance, if
    any cell has that.
    """
    given = metrics.loc[metrics["value"].notna(), "metric"].unique()
    frechet, kid = frechet_name(map(str, metrics["metric"].unique())), kid_name(map(str, given))
    return kid if kid is not None and frechet not in given else frechet
