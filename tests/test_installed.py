"""The wheel in a fresh environment: what it holds, and its command from an empty folder."""

import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from bench.__main__ import COMMANDS, main

ROOT = Path(__file__).parent.parent
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


def done(command, folder):
    """Run a command in a folder without this checkout on its path; return its output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    ended = subprocess.run(list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy of what it is made of, so that no build folder is left in the checkout."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "run_bench.py", "bench", "analysis", "benchmarks", "tests"):
        (source / name).symlink_to(ROOT / name)
    done([*PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, source], folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory):
    """Return the folder of the programs of an environment that has the wheel, and this one's other packages."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    done([*PIP, "--python", folder / "bin" / "python", "install", "--no-deps", "--no-index", wheel], folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    # A plain path: an editable install of this checkout is not followed through it.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


@pytest.mark.ci
def test_the_wheel_has_the_suite_and_the_analysis_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    folders = {name.split("/")[0] for name in names}
    assert {name for name in folders if not name.endswith(".dist-info")} == {"bench", "analysis"}
    data = {
        path.relative_to(ROOT) for top in ("bench", "analysis") for path in (ROOT / top).rglob("*") if path.is_file()
    }
    assert {str(path) for path in data if "__pycache__" not in path.parts} <= set(names)


@pytest.mark.ci
def test_the_command_runs_from_an_empty_folder(programs, tmp_path):
    command = programs / "exposure-bias-bench"
    small = ["--models", "adm", "--steps", "2", "--samples", "4", "--features", "none", "--no-probes", "--quiet"]
    done([command, *small], tmp_path)
    (run,) = (tmp_path / "results").iterdir()
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
    assert (run / "report.html").exists()
    assert str(programs.parent) in done([programs / "python", "-c", "import bench; print(bench.__file__)"], tmp_path)


@pytest.mark.parametrize(("command", "module"), COMMANDS.items())
def test_commands_by_name_are_those_of_the_modules(command, module, monkeypatch):
    asked = []
    monkeypatch.setattr(f"{module}.main", lambda arguments: asked.append(arguments) or 3)
    assert main([command, "a", "--b"]) == 3
    assert asked == [["a", "--b"]]


def test_the_entry_imports_nothing_slow(tmp_path):
    slow = "{'torch', 'numpy', 'pandas', 'matplotlib', 'diffusers'}"
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import bench.__main__; print({slow} & set(sys.modules))"
    assert done([sys.executable, "-c", code], tmp_path) == "set()\n"


def test_the_lowest_versions_of_ci_are_those_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    stated = [Requirement(text) for text in (*project["dependencies"], *extras["tensorboard"], *extras["test"])]
    lines = (ROOT / ".ci" / "lowest.txt").read_text().splitlines()
    lowest = dict(line.split("==") for line in lines if not line.startswith("#"))
    for requirement in stated:
        if requirement.name != project["name"]:
            (bound,) = requirement.specifier
            assert bound.operator == ">="
            assert Version(lowest[requirement.name]) == Version(bound.version), requirement
