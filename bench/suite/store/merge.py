"""Join results folders: ``python -m bench.suite merge PART... --out DIR``.

The parts are of ``--shard i/n`` jobs that wrote apart, or of runs over other models, steps or seeds. Everything is
copied; cells whose units are then all there are completed as the command that made them would have done.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.files.writing import drop_partials, read_json, read_record, unchanged, write_atomic
from bench.suite.settings import ConfigError, is_folder_name
from bench.suite.store.shards import ARRAYS, SUMS, is_intact, write_folder
from bench.suite.store.store import ARCHIVE, differing, refuse_links

_EXTRAS = {"chains": "chain", "response": "response", "exact": "exact", "slopes": "slopes"}


def refuse_mixed(parts: Sequence[Path], out: Path) -> None:
    """Refuse what cannot be joined, before anything is written.

    Args:
        parts: to be joined.
        out: the folder to join them in, which need not be there.

    Raises:
        ConfigError: a part is no results folder, holds links, or does not go with another or with what is there.
    """
    for root in (*parts, out):
        refuse_links(root)
    for part in parts:
        if read_json(part / "run.json") is None:
            raise ConfigError(f"{part} is not a results folder (it has no run.json); name folders that --out named")
    _refuse_mixed_cells([out, *parts])
    _refuse_mixed_extras([out, *parts])


def join_folders(parts: Sequence[Path], out: Path) -> list[str]:
    """Copy what is complete and intact in the parts, and return a line for each thing that was left out.

    Args:
        parts: results folders that :func:`refuse_mixed` has checked.
        out: the folder to join them in; what is there and intact stays.

    Raises:
        OSError: something cannot be read or written.
    """
    drop_partials(out)
    left_out: list[str] = []
    for part in parts:
        for room, kind in {"cells": "", **_EXTRAS}.items():
            for folder in _folders(part / room):
                target = out / room / folder.name
                if not is_folder_name(folder.name):
                    left_out.append(f"{folder} has a name that no run gives; rename it as its model is called")
                else:
                    left_out += _copy_record(folder, target, f"{kind}.json") if kind else _copy_cell(folder, target)
        if not (out / "run.json").exists():
            _copy_file(part / "run.json", out / "run.json")
    return left_out


def _folders(room: Path, pattern: str = "[!.]*") -> list[Path]:
    return sorted(path for path in room.glob(pattern) if path.is_dir())


def _cells(root: Path) -> Iterator[tuple[Path, dict[str, Any], object]]:
    """Yield a results folder's cells with their descriptions and the features they were scored with."""
    if (root / ARCHIVE).exists():
        raise ConfigError(f"{root} is a small copy for publication, which cannot be joined")
    for folder in _folders(root / "cells"):
        record = read_record(folder / "metrics.json") or read_record(folder / "cell.json") or {}
        if isinstance(record.get("cell"), dict):
            yield folder, record["cell"], record.get("features")


def _refuse_mixed_cells(roots: Sequence[Path]) -> None:
    """Refuse cells that would share a table and do not share their settings or features."""
    firsts: dict[tuple[str, str], tuple[Path, dict[str, Any]]] = {}
    features: tuple[Path, str] | None = None
    for folder, cell, scored in (entry for root in roots for entry in _cells(root)):
        # Settings of a sampler are shared by its cells alone, and all settings by cells of one name.
        for kind, which in (("all", ""), ("sampler", str(cell.get("sampler"))), ("name", folder.name)):
            against, settings = firsts.setdefault((kind, which), (folder, cell))
            name = differing(settings, cell, kind == "name")
            if name is not None:
                raise ConfigError(f"{folder} was made with another {name} than {against}; they cannot be joined")
        if isinstance(scored, str) and not scored.startswith("none-"):
            key = scored.rsplit("-scores", 1)[0]
            features = features or (folder, key)
            if features[1] != key:
                raise ConfigError(
                    f"{folder} was scored with other features or another reference than {features[0]}; run it again"
                    " with the same"
                )


def _refuse_mixed_extras(roots: Sequence[Path]) -> None:
    """Refuse measurements of one name and other settings; that of another seed is as good."""
    firsts: dict[str, tuple[Path, dict[str, Any]]] = {}
    rooms = ((root / room, kind) for root in roots for room, kind in _EXTRAS.items())
    for folder, kind in ((folder, kind) for room, kind in rooms for folder in _folders(room)):
        about = (read_record(folder / f"{kind}.json") or {}).get(kind)
        if isinstance(about, dict):
            against, settings = firsts.setdefault(f"{kind}/{folder.name}", (folder, about))
            name = differing(settings | {"seed": None}, about | {"seed": None}, True)
            if name is not None:
                raise ConfigError(f"{folder} was made with another {name} than {against}; they cannot be joined")


def _copy_cell(source: Path, target: Path) -> list[str]:
    """Copy a complete cell as it is; of one in work the shards that are not there yet."""
    if _is_whole(target, "metrics.json"):
        return []
    if (source / "metrics.json").exists():
        return _copy_record(source, target, "metrics.json")
    begun, there = read_record(source / "cell.json"), read_record(target / "cell.json")
    if begun is None:
        return [f"{source} holds nothing that is complete"]
    if there is None:
        _copy_file(source / "cell.json", target / "cell.json")
    elif there.get("key") != begun.get("key"):
        return [f"{source} is measured otherwise than the same cell of another part; join it elsewhere"]
    left_out = []
    for shard in _folders(source, "shard-*"):
        if is_intact(target / shard.name):
            continue
        if is_intact(shard):
            _replace(shard, target / shard.name, (ARRAYS, SUMS))
        else:
            left_out.append(f"{shard} is damaged")
    return left_out


def _copy_record(source: Path, target: Path, name: str) -> list[str]:
    """Copy a complete folder whose file ``name`` lists the others; one that is there and whole stays."""
    if _is_whole(target, name):
        return []
    if not _is_whole(source, name):
        return [f"{source} is damaged"]
    _replace(source, target, (*(read_record(source / name) or {})["files"], name))
    return []


def _is_whole(folder: Path, name: str) -> bool:
    """Tell whether a folder has every file that its file ``name`` lists, as it was written, and none elsewhere."""
    facts = read_record(folder / name) or {}
    sizes, sums = facts.get("files"), facts.get("sha256")
    if facts.get("key") is None or not isinstance(sizes, dict) or not isinstance(sums, dict):
        return False
    plain = all(file not in (name, "cell.json") and Path(file).name == file for file in sizes)
    return plain and unchanged(folder, sizes, sums)


def _copy_file(source: Path, target: Path) -> None:
    write_atomic(target, lambda partial: shutil.copyfile(source, partial))


def _replace(source: Path, target: Path, names: Sequence[str]) -> None:
    """Copy files of a folder to a new one, atomically, in the place of what was there."""

    def fill(partial: Path) -> None:
        for name in names:
            shutil.copyfile(source / name, partial / name)

    write_folder(target, fill)
