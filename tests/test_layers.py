"""The rooms of the house import only what the architecture allows."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMON = (
    "bench.runtime.errors",
    "bench.runtime.signals",
    "bench.memory",
    "bench.runtime.tensorboard",
)  # of rooms with a command
# room -> the rooms of ours it may import, besides itself
ALLOWED = {
    "bench/diffusion": (),
    "bench/runtime/errors.py": (),
    "bench/runtime/signals.py": (),
    "bench/memory.py": (),
    "bench/runtime/tensorboard.py": (),
    "bench/files": (),
    "bench/data/dataset.py": ("bench.files",),
    "bench/models": (*COMMON, "bench.diffusion", "bench.files", "bench.data"),
    "bench/measure": (*COMMON, "bench.diffusion", "bench.files", "bench.data"),
    "bench/suite": (*COMMON, "bench.diffusion", "bench.files", "bench.data", "bench.models", "bench.measure"),
    "analysis": (),
    "run_bench.py": ("bench.runtime.signals", "bench.suite", "analysis"),
}


def imported(path: Path) -> set[str]:
    """Return the absolute names a file imports; relative imports are not used in this project."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names.add(node.module or "")
    return names


def files(room: str) -> list[Path]:
    path = ROOT / room
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def within(name: str, room: str) -> bool:
    return name == room or name.startswith(room + ".")


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_what_it_may(room):
    own = room.removesuffix(".py").replace("/", ".")
    assert files(room)
    for path in files(room):
        for name in imported(path):
            if within(name, "bench") or within(name, "analysis") or within(name, "run_bench"):
                assert any(within(name, allowed) for allowed in (own, *ALLOWED[room])), f"{path} imports {name}"


def test_the_table_covers_every_file():
    covered = {path for room in ALLOWED for path in files(room)}
    ours = set((ROOT / "bench").rglob("*.py")) | set((ROOT / "analysis").rglob("*.py"))
    assert ours - covered == {ROOT / "bench" / "__init__.py"}


def test_analysis_never_imports_torch():
    for path in files("analysis"):
        assert not any(within(name, library) for name in imported(path) for library in ("torch", "torch_fidelity"))


def test_the_entry_script_stays_short():
    assert len((ROOT / "run_bench.py").read_text().splitlines()) < 60
