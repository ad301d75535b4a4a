"""Records beside the cells: ``chains/``, ``response/``, the exact samplers of ``exact/`` and ``slopes/``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.records.checks import NAME, check_files, check_key, check_steps, check_unchanged, walk_name
from analysis.records.files import Place, read_json, read_npz, read_table

T = TypeVar("T")
_VERSIONS = {"chain": 1, "response": 1, "exact": 1, "slopes": 1}  # of the records this package reads
_TEXTS = {"model", "method", "quantity", "part", "reference", "note"}
_COLUMNS = {  # that must be there: those never empty, and others
    "chain": (("model", "method", "quantity", "seed"), ("start", "n", "value", "std", "reference", "note")),
    "response": (("model", "part", "steps", "s", "t", "n", "norm"), ("norm_std",)),
}


def read_records(places: Iterable[Any], kind: str, problem: Callable[[str], None]) -> pd.DataFrame:
    """Return the joined tables of all sound records of a kind; each unsound one is a problem.

    Args:
        places: of the folder.
        kind: ``chain`` or ``response``, after which the file that completes a record is named.
        problem: is told what is wrong.
    """
    tables = _each(places, kind, problem, lambda path: _table(path, kind))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def read_exact(places: Iterable[Any], problem: Callable[[str], None]) -> list[tuple[Mapping[str, Any], pd.DataFrame]]:
    """Return the settings of each exact sampler, named as in a cell, and its per-step table; unsound ones are problems.

    Rows without a quantity, whose note says why something is missing, are left out.
    """

    def read(path: Place) -> tuple[Mapping[str, Any], pd.DataFrame]:
        settings = _exact_settings(path)
        table = read_table(path / "record.csv", dtype={"note": str})
        table = table[table["quantity"].notna()].drop(columns="note")
        if len(table):
            check_steps(table, settings["steps"])
        return settings, table[table["stage"] == 0]

    return _each(places, "exact", problem, read)


def read_exact_spectra(
    places: Iterable[Any], problem: Callable[[str], None]
) -> list[tuple[Mapping[str, Any], Mapping[str, NDArray[Any]]]]:
    """Return the settings of each exact sampler, named as in a cell, and its mean band energies ``<arm>/<band>``."""

    def read(path: Place) -> tuple[Mapping[str, Any], Mapping[str, NDArray[Any]]]:
        return _exact_settings(path), read_npz(path / "spectra.npz")

    return _each(places, "exact", problem, read)


def _exact_settings(path: Place) -> dict[str, Any]:
    settings = {name: value for name, value in _facts(path, "exact").items() if name != "version"}
    return settings | {"sampler": walk_name(settings)}  # as cells are called


def read_misfits(places: Iterable[Any], problem: Callable[[str], None]) -> list[tuple[Mapping[str, Any], str]]:
    """Return the settings of each network whose description does not fit, and what shows it; see ``slopes/``.

    The slope of the true noise on the predicted one is 1 at every level for a network that is rightly described.
    """

    def read(path: Place) -> tuple[Mapping[str, Any], str]:
        settings = {"prediction": None, **_facts(path, "slopes")}  # which cells of eps do not name
        del settings["version"]
        table = read_table(path / "record.csv")
        off = table[table["off"] == "yes"].astype({"sigma": float, "slope": float, "error": float})
        if not len(off):
            return settings, ""
        row = off.iloc[int((off["slope"].fillna(np.inf) - 1).abs().to_numpy().argmax())]
        return settings, f"at sigma {row['sigma']:.3g} the slope is {row['slope']:.2f} ± {row['error']:.2f}, not 1"

    return [(settings, text) for settings, text in _each(places, "slopes", problem, read) if text]


def _each(places: Iterable[Any], kind: str, problem: Callable[[str], None], read: Callable[[Place], T]) -> list[T]:
    """Return what is read of every record; one that cannot be read is a problem."""
    records = []
    for path in (place for place in places if place.is_dir()):
        try:
            records.append(read(path))
        except FileNotFoundError:
            problem(f"{path} is incomplete and left out; run again to finish it")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            problem(f"{path} is damaged and left out ({error}); delete it and run again")
    return records


def _facts(path: Place, kind: str) -> Mapping[str, Any]:
    """Return what a record says that it is, after checking it and its files."""
    facts: dict[str, dict[str, Any]] = read_json(path / f"{kind}.json")
    version = facts[kind]["version"]
    if version != _VERSIONS[kind]:
        raise ValueError(f"it was recorded by version {version} of the suite, this is {_VERSIONS[kind]}")
    check_unchanged(facts)
    if not NAME.fullmatch(re.sub("[(),]", "", path.name)):  # flow(3) and linear(START,END) are schedules
        raise ValueError("its folder has a name that no run gives")
    check_key(facts["key"], facts[kind])
    check_files(path, facts["files"])
    return facts[kind]


def _table(path: Place, kind: str) -> pd.DataFrame:
    """Return the table of a record, after checking both."""
    _facts(path, kind)
    table = read_table(path / "record.csv", dtype=dict.fromkeys(_TEXTS, str))
    filled, others = _COLUMNS[kind]
    missing = [name for name in (*filled, *others) if name not in table]
    if missing or not len(table) or table[list(filled)].isna().any(axis=None):
        raise ValueError(f"record.csv has no {missing[0]!r}" if missing else "record.csv has empty entries")
    for name in table["model"].unique():
        if not NAME.fullmatch(name):
            raise ValueError(f"record.csv has a model {name!r:.100}, which is no name")
    numbers = table.drop(columns=list(_TEXTS), errors="ignore")
    wrong = [name for name, kind in numbers.dtypes.items() if not pd.api.types.is_numeric_dtype(kind)]
    if wrong or np.isinf(numbers.to_numpy(dtype=float)).any():
        raise ValueError("record.csv holds something that is not a finite number")
    return table


def read_pictures(places: Iterable[Any], name: str, problem: Callable[[str], None]) -> dict[str, NDArray[Any]] | None:
    """Return the pictures of one chain, ``original`` and ``reconstruction`` uint8 [K, H, W, C]; None without any.

    Damaged ones are a problem.
    """
    path = next((place / "pictures.npz" for place in places if place.name == name), None)
    if path is None or not path.exists():
        return None
    try:
        pictures = read_npz(path)
        images = [pictures.get(name, np.empty(0)) for name in ("original", "reconstruction")]
        sound = images[0].ndim == 4 and images[0].size and images[0].shape[3] in (1, 3)
        if not (sound and all(i.dtype == np.uint8 and i.shape == images[0].shape for i in images)):
            raise ValueError("it does not hold two rows of images")
        return pictures
    except (OSError, ValueError) as error:
        problem(f"{path} is damaged ({error}); delete its folder and run again")
        return None
