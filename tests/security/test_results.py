"""Results folders of strangers: drawn by ``python -m analysis``, gone on with by ``run_bench.py``."""

import gzip
import hashlib
import io
import json
import shutil

import matplotlib.figure
import numpy as np
import pytest
from records import edited

from bench.suite.cli import run
from bench.suite.store.store import Store

NESTED = "[" * 200_000


@pytest.fixture(scope="module")
def finished(sound, tmp_path_factory):
    """A complete run of the tiny network, one cell a seed."""
    out = tmp_path_factory.mktemp("finished") / "run"
    flags = ("--samples", "8", "--steps", "2", "--seeds", "0-6", "--features", "digits", "--measure", "steps")
    models = ("--models", f"m={sound / 'own.safetensors'}")
    assert run([*models, *flags, "--quiet", "--out", str(out)]) == (0, out)
    return out


@pytest.fixture
def results(finished, room):
    return shutil.copytree(finished, room / "in" / "run")


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Drawing takes seconds and reads nothing."""
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda self, path, **_: path.write_bytes(b""))
    monkeypatch.setattr("analysis.output.style._save_png", lambda figure, path: path.write_bytes(b""))


def relisted(cell, name):
    """Let a cell's record say that a file has the size that it has: whoever spoils the file can do that too."""
    with edited(cell / "metrics.json") as facts:
        facts["files"].pop("steps.csv" if name == "steps.csv.gz" else name, None)


def lead_out(path, hostile):
    with edited(path) as facts:
        facts["cell"]["model"] = "../../m"


def bomb(path, hostile):
    (path.parent / "steps.csv").unlink()
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(257):
            file.write(bytes(2**20))


SPOILED = {
    "nested record": ("metrics.json", lambda path, hostile: path.write_text(NESTED)),
    "record that leads out": ("metrics.json", lead_out),
    "edited record": (
        "metrics.json", lambda path, hostile: path.write_text(path.read_text().replace('"samples": 8', '"samples": 9'))
    ),
    "objects": ("moments.npz", lambda path, hostile: np.savez(path, i=np.array([hostile], dtype=object))),
    "bomb": ("steps.csv.gz", bomb),
    "other table": ("steps.csv", lambda path, hostile: path.write_bytes(b"\xff\xfea,b\n1\n")),
}  # fmt: skip


@pytest.mark.usefixtures("unrendered")
def test_each_spoiled_cell_is_named_in_one_line_and_left_out(results, hostile, marker, call):
    cells = sorted((results / "cells").iterdir())
    assert len(cells) == len(SPOILED) + 1
    for cell, (name, spoil) in zip(cells, SPOILED.values(), strict=False):
        spoil(cell / name, hostile)
        if name != "metrics.json":
            relisted(cell, name)
    outcome = call("analysis", results, "--quiet")
    assert (outcome.code, outcome.out) == (1, "")
    lines = outcome.err.splitlines()
    assert all(line.startswith("warning: ") and line.isprintable() and len(line) < 400 for line in lines)
    unnamed = [how for how, cell in zip(SPOILED, cells, strict=False) if not any(str(cell) in line for line in lines)]
    assert unnamed == []
    assert not any(str(cells[-1]) in line for line in lines)
    assert not marker.exists()
    assert (results / "report.html").exists()


def emptied(results):
    shutil.rmtree(results / "cells")


def all_spoiled(results):
    for path in results.glob("cells/*/metrics.json"):
        path.write_text(NESTED)


def elsewhere(results):
    """Lead a file of tables, or the whole folder, out of the results."""
    (results.parent / "victim.csv").write_text("mine")
    (results / "tables").mkdir()
    (results / "tables" / "metrics.csv").symlink_to(results.parent / "victim.csv")


def folder_elsewhere(results):
    (results.parent / "victim").mkdir()
    (results / "figures").symlink_to(results.parent / "victim")


@pytest.mark.parametrize("spoil", [shutil.rmtree, emptied, all_spoiled, elsewhere, folder_elsewhere])
def test_folders_that_cannot_be_drawn(results, refused, spoil):
    spoil(results)
    assert refused("analysis", results, "--quiet").startswith("error: ")


@pytest.mark.usefixtures("unrendered")
def test_a_list_of_files_to_delete_cannot_lead_out(results, room, call):
    victims = [room / "in" / "victim", room / "cwd" / "victim"]
    for victim in victims:
        victim.write_text("mine")
    (results / "written.json").write_text(json.dumps(["../victim", "tables/../../victim", str(victims[1]), "run.json"]))
    with edited(results / "run.json") as record:
        record["configuration"]["models"] = {"<script>alert(1)</script>": {}}
        record |= {"command": [1]}
    assert call("analysis", results, "--quiet").code == 0
    assert all(victim.read_text() == "mine" for victim in victims)
    assert (results / "run.json").exists()
    assert "<script>alert" not in (results / "report.html").read_text()


@pytest.fixture
def going_on(room, sound, call):
    """A function that calls the same run again, without instruments, in a folder."""

    def again(folder, features="none"):
        models = ("--models", f"m={sound / 'own.safetensors'}", "--steps", "2", "--samples", "8", "--no-probes")
        return call("run_bench", *models, "--features", features, "--quiet", "--out", folder)

    return again


@pytest.mark.parametrize("name", ["metrics.json", "run.json"])
def test_a_spoiled_record_is_made_anew(room, going_on, name):
    out = room / "out"
    assert going_on(out).code == 0
    (path,) = out.rglob(name)
    path.write_text(NESTED)
    (out / "cells" / "m-ddpm-2-seed0" / "metrics.json").unlink(missing_ok=True)
    outcome = going_on(out)
    assert (outcome.code, outcome.err) == (0, "")
    json.loads(path.read_text())


def test_hostile_parts_of_a_run_are_refused(room, going_on, hostile, marker, monkeypatch):
    """Shards, which an interrupted run leaves, and samples, which are scored again with other features."""
    out = room / "out"

    def interrupted(self, cell, metrics):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "finish", interrupted)
        assert going_on(out).code == 130
    shards = list(out.rglob("arrays.npz"))
    assert shards
    np.savez(shards[0], x=np.array([hostile], dtype=object))
    sums = shards[0].with_name("SHA256SUMS")
    sums.write_text(f"{hashlib.sha256(shards[0].read_bytes()).hexdigest()}  arrays.npz\n")  # vouched for, yet not read
    assert (going_on(out).code, marker.exists()) == (0, False)
    (samples,) = out.rglob("samples.npz")
    size = samples.stat().st_size
    with edited(samples.with_name("metrics.json")) as facts:
        del facts["checksum"], facts["sha256"]
    file = io.BytesIO()
    np.savez(file, arr_0=np.array([hostile], dtype=object))
    samples.write_bytes(file.getvalue().ljust(size, b"\0"))
    assert samples.stat().st_size == size
    # A record without its checksum is no complete cell: it is made anew, and the file is never read.
    assert (going_on(out, "digits").code, marker.exists()) == (0, False)


@pytest.mark.parametrize("place", ["cells", "cells/m-ddpm-2-seed0", "run.json"])
def test_nothing_is_written_through_links(room, going_on, marker, place):
    victim = room / "in" / "victim"
    victim.mkdir()
    (room / "out" / place).parent.mkdir(parents=True)
    (room / "out" / place).symlink_to(victim)
    assert going_on(room / "out").refused("is a link or no plain file")
    assert not marker.exists()
    assert list(victim.iterdir()) == []
