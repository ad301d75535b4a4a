"""Records of measurements that made network calls of their own: ``chains/`` and ``response/`` of a results folder."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.records.checks import check_files, check_key
from analysis.records.files import Place, read_json, read_npz, read_table
from analysis.records.load import Results

_VERSIONS = {"chain": 1, "response": 1}  # of the records this package reads
_TEXTS = {"model", "method", "quantity", "part", "reference", "note"}
_COLUMNS = {  # that must be there: those never empty, and others
    "chain": (("model", "method", "quantity", "seed"), ("start", "n", "value", "std", "reference", "note")),
    "response": (("model", "part", "steps", "s", "t", "n", "norm"), ("norm_std",)),
}


def read_records(results: Results, folder: str, kind: str) -> pd.DataFrame:
    """Return the joined tables of all sound records in a folder; each unsound one becomes a problem of the results.

    Args:
        results: of the run.
        folder: ``chains`` or ``response``.
        kind: ``chain`` or ``response``, after which the file that completes a record is named.
    """
    tables = []
    for path in (place for place in results.folder(folder) if place.is_dir()):
        try:
            tables.append(_read(path, kind))
        except FileNotFoundError:
            results.problem(f"{path} is incomplete and left out; run again to finish it")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            results.problem(f"{path} is damaged and left out ({error}); delete it and run again")
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _read(path: Place, kind: str) -> pd.DataFrame:
    facts: dict[str, Any] = read_json(path / f"{kind}.json")
    version = facts[kind]["version"]
    if version != _VERSIONS[kind]:
        raise ValueError(f"it was recorded by version {version} of the suite, this is {_VERSIONS[kind]}")
    check_key(facts["key"], facts[kind])
    check_files(path, facts["files"])
    table = read_table(path / "record.csv", dtype=dict.fromkeys(_TEXTS, str))
    filled, others = _COLUMNS[kind]
    missing = [name for name in (*filled, *others) if name not in table]
    if missing or not len(table) or table[list(filled)].isna().any(axis=None):
        raise ValueError(f"record.csv has no {missing[0]!r}" if missing else "record.csv has empty entries")
    numbers = table.drop(columns=[name for name in _TEXTS if name in table])
    wrong = [name for name, kind in numbers.dtypes.items() if not pd.api.types.is_numeric_dtype(kind)]
    if wrong or np.isinf(numbers.to_numpy(dtype=float)).any():
        raise ValueError("record.csv holds something that is not a finite number")
    return table


def read_pictures(results: Results, name: str) -> dict[str, NDArray[Any]] | None:
    """Return the pictures of one chain, ``original`` and ``reconstruction`` uint8 [K, H, W, C]; None without any.

    Damaged ones become a problem of the results.
    """
    path = next((place for place in results.folder("chains") if place.name == name), None)
    if path is None or not (path / "pictures.npz").exists():
        return None
    try:
        pictures = read_npz(path / "pictures.npz")
    except (OSError, ValueError) as error:
        results.problem(f"{path / 'pictures.npz'} is damaged ({error}); delete its folder and run again")
        return None
    images = [pictures.get(name, np.empty(0)) for name in ("original", "reconstruction")]
    sound = images[0].ndim == 4 and images[0].size and images[0].shape[3] in (1, 3)
    if not (sound and all(i.dtype == np.uint8 and i.shape == images[0].shape for i in images)):
        reason = "it does not hold two rows of images"
        results.problem(f"{path / 'pictures.npz'} is damaged ({reason}); delete its folder and run again")
        return None
    return pictures
