"""The folders of the house import only what stands left of them."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Each row reads from left to right: a name may import those left of it, and those of a set do not import one another.
BENCH = (
    "runtime",
    "files",
    "data",
    "diffusion",
    {"models", "measure"},
    "latent",
    "suite",
    {"exact", "injected", "hooks", "check"},
    "__main__",
)
ROWS = {
    "bench": BENCH,
    "bench.diffusion": ({"types", "noise"}, {"posterior", "schedules"}, {"solvers", "corrections"}, "samplers"),
    "bench.models": ("interface", {"networks", "denoisers"}, "checkpoints", "acceleration", "train", "inspect"),
    "bench.measure": ({"instruments", "features"}, "quality", "__main__"),
    "bench.suite": (
        "settings", {"registry", "processes"}, "config", "plan", "store", "cells", "experiments", "run",
        "run_record", {"cost", "tuning"}, "execution", "cli", "__main__",
    ),
    "bench.hooks": (
        "frames", {"loops", "quality", "updates"}, "real_data", {"capture", "results", "custom_loop"}, "record",
    ),
    "analysis": (
        "records", "output", {"comparison", "published", "exposure_bias", "normality", "spectra"}, "quality", "report",
        "regenerate", "publish", "doctor", "__main__",
    ),
}  # fmt: skip
MOST_MODULES = 9


@cache
def imported(path: Path) -> set[str]:
    """Return the absolute names a file imports; relative imports are not used in this project."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def within(name: str, folder: str) -> bool:
    return name == folder or name.startswith(folder + ".")


def sources(name: str) -> list[Path]:
    """Return the files of a module or package."""
    path = ROOT / name.replace(".", "/")
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def columns(row: tuple) -> list[list[str]]:
    return [sorted(entry) if isinstance(entry, set) else [entry] for entry in row]


CASES = [(parent, name) for parent, row in ROWS.items() for column in columns(row) for name in column]


@pytest.mark.parametrize(("parent", "name"), CASES, ids=lambda value: value)
def test_a_folder_imports_only_what_stands_left_of_it(parent, name):
    allowed = [f"{parent}.{name}"]
    for column in columns(ROWS[parent]):
        if name in column:
            break
        allowed += [f"{parent}.{left}" for left in column]
    if name == "diffusion":
        allowed = [f"{parent}.{name}"]  # the mathematics imports nothing of ours
    for path in sources(f"{parent}.{name}"):
        for target in imported(path):
            if within(target, parent):
                assert any(within(target, left) for left in allowed), f"{path.relative_to(ROOT)} imports {target}"


@pytest.mark.parametrize("parent", ROWS)
def test_the_table_names_every_file(parent):
    folder = ROOT / parent.replace(".", "/")
    there = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    assert there - {"__init__"} == {name for column in columns(ROWS[parent]) for name in column}


@pytest.mark.parametrize("top", ["bench", "analysis"])
def test_no_folder_is_a_hall(top):
    for folder in [ROOT / top, *(path for path in (ROOT / top).rglob("*") if path.is_dir())]:
        modules = [path for path in folder.glob("*.py") if path.stem != "__init__"]
        assert len(modules) <= MOST_MODULES, f"{folder.relative_to(ROOT)} has {len(modules)} modules"


def test_analysis_imports_neither_bench_nor_torch():
    for path in (ROOT / "analysis").rglob("*.py"):
        for name in imported(path):
            assert not any(within(name, library) for library in ("bench", "torch", "torch_fidelity")), path


def test_the_entry_script_stays_short():
    assert len((ROOT / "run_bench.py").read_text().splitlines()) < 60
