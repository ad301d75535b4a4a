"""Folders of jobs that wrote apart, joined: what comes out, what is refused, and what strangers' folders can do."""

import hashlib
import json
import os
import shutil
from functools import partial, reduce
from itertools import chain

import numpy as np
import pytest
from cases import at_first
from hostile import touch
from refusals import outcome_of
from results_of_runs import assert_same_results

from bench.suite import plan
from bench.suite.__main__ import main
from bench.suite.cli import run

BASE = ("--models", "adm", "--steps", "2,3", "--samples", "24", "--batch-size", "8", "--quiet", "--compile", "off")
CELLS = ("adm-ddpm-2-seed0", "adm-ddpm-3-seed0")
JOBS = 3
IDLE = ("--shard", "98/99")  # a job without work, which sets the cells up


@pytest.fixture(autouse=True, scope="module")
def small_units():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "SHARD", 8)
        yield


def make(out, *args):
    assert run([*map(str, args), "--out", str(out)])[0] == 0
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run in one go."""
    return make(tmp_path_factory.mktemp("whole") / "run", *BASE)


@pytest.fixture(scope="module")
def made_parts(tmp_path_factory):
    room = tmp_path_factory.mktemp("parts")
    return [make(room / f"part{job}", *BASE, "--shard", f"{job}/{JOBS}") for job in range(JOBS)]


@pytest.fixture
def parts(made_parts, tmp_path):
    """What three jobs left, each in a folder of its own."""
    return [shutil.copytree(part, tmp_path / part.name) for part in made_parts]


@pytest.fixture
def merge(capsys):
    """Return a function that runs the command and returns (exit code, stdout, stderr)."""
    return partial(outcome_of, capsys, main, "merge")


def some(values):
    """Return every third value as it is and the others as slow ones."""
    marks = (pytest.mark.slow,)
    return [pytest.param(one, id=str(k), marks=marks if k % 3 else ()) for k, one in enumerate(values)]


def tree(root):
    """Return every file below a folder with its content, but for locks and logs, which are no results."""
    found = {path.relative_to(root): path for path in root.rglob("*") if path.is_file()}
    return {
        str(name): path.read_bytes() for name, path in found.items() if name.parts[0] not in (".locks", "log.jsonl")
    }


def assert_same_cells(out, whole, cells=CELLS):
    assert {path.name for path in (out / "cells").iterdir()} >= set(cells)
    for cell in cells:
        assert_same_results(out / "cells" / cell, whole / "cells" / cell)


def assert_refused(found, *words, out=None):
    """One line, code 2, and nothing written."""
    assert found.refused(*words), found
    assert found.out == ""
    assert out is None or not out.exists()


# --- jobs that wrote apart ----------------------------------------------------------------------------------------


def test_the_parts_of_an_array_make_the_run_in_one_go(parts, whole, merge, tmp_path):
    for part in parts:
        assert not list(part.glob("cells/*/metrics.json"))  # no job had a whole cell
        assert len(list(part.glob("cells/*/shard-*"))) in (4, 5)  # of 14 units
    before, out = [tree(part) for part in parts], tmp_path / "out"
    outcome = merge(*parts, "--out", out)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == f"joined in {out}; tables and figures: python -m analysis {out}\n"
    assert_same_cells(out, whole)
    assert [tree(part) for part in parts] == before
    ours, theirs = (json.loads((root / "run.json").read_text()) for root in (out, whole))
    assert all(ours[name] == theirs[name] for name in ("configuration", "network_calls"))
    joined = tree(out)
    make(out, *BASE)  # the same command has nothing to do
    assert tree(out) == joined


@pytest.mark.parametrize("way", at_first(["computed there", "joined later"], 1))
def test_missing_parts_are_named_and_can_be_made_up_for(parts, whole, merge, tmp_path, way):
    out, late = tmp_path / "out", parts.pop(0)
    outcome = merge(*parts, "--out", out)
    assert outcome.code == 1
    units = {cell: sum(len(list((part / "cells" / cell).glob("shard-*"))) for part in parts) for cell in CELLS}
    missing = [f"missing: {cell} has {units[cell]} of its 7 units" for cell in CELLS]
    assert outcome.err.splitlines() == [*missing, "missing: exact samplers of cosine-1000-ddpm-2 is not measured"]
    if way == "joined later":
        assert merge(late, "--out", out)[::2] == (0, "")
    else:
        make(out, *BASE)
    assert_same_cells(out, whole)


WAYS = ["into a part", "a finished part", "one part twice", "parts within"]


@pytest.mark.parametrize("way", [*at_first(WAYS, 2), pytest.param("overlapping", marks=pytest.mark.slow)])
def test_parts_may_overlap_and_lie_anywhere(parts, whole, merge, tmp_path, way):
    out = tmp_path / "out"
    if way == "one part twice":
        parts = [parts[0], *parts, parts[0]]
    elif way == "into a part":
        out = parts[1]
    elif way == "parts within":
        parts = [shutil.copytree(part, out / part.name) for part in parts]
    elif way == "a finished part":
        parts[2] = whole
    else:
        parts[1:2] = [make(tmp_path / f"half{job}", *BASE, "--shard", f"{job}/2") for job in range(2)]
    assert merge(*parts, "--out", out)[::2] == (0, "")
    assert_same_cells(out, whole)


def test_units_of_another_batch_size_do_not_fit_and_are_told(parts, merge, tmp_path):
    other = make(tmp_path / "other", *BASE, "--batch-size", "12", "--shard", f"2/{JOBS}")
    found = merge(*parts[:2], other, "--out", tmp_path / "out")
    assert found.code == 1
    assert "missing: adm-ddpm-2-seed0 has " in found.err


# --- runs of other models, steps and seeds ------------------------------------------------------------------------


OTHERS = [("--models", "adm-ip"), ("--seeds", "4"), ("--steps", "4"), ("--sampler", "ddim")]


@pytest.mark.parametrize("flags", [OTHERS[0], *(pytest.param(flags, marks=pytest.mark.ci) for flags in OTHERS[1:])])
def test_other_runs_are_joined_as_they_are(whole, merge, tmp_path, flags):
    other = make(tmp_path / "other", *BASE, "--steps", "2", *flags)
    found = merge(whole, other, "--out", tmp_path / "out")
    assert (found.code, found.err) == (0, "")
    cells = {part: [path.name for path in (part / "cells").iterdir()] for part in (whole, other)}
    assert sorted(path.name for path in (tmp_path / "out" / "cells").iterdir()) == sorted(chain(*cells.values()))
    for part, names in cells.items():
        for name in names:
            assert tree(tmp_path / "out" / "cells" / name) == tree(part / "cells" / name)


@pytest.mark.parametrize(("flags", "word"), [(("--no-clip", "--steps", "2"), "clip"), (("--samples", "25"), "samples")])
def test_other_settings_are_refused(whole, merge, tmp_path, flags, word):
    other = make(tmp_path / "other", *BASE, "--steps", "4", *flags, *IDLE)
    for pair in ((whole, other), (other, whole)):
        assert_refused(merge(*pair, "--out", tmp_path / "out"), f"another {word}", "other", out=tmp_path / "out")
    before = tree(other)
    assert_refused(merge(whole, "--out", other), f"another {word}")  # nor those of the folder to join in
    assert tree(other) == before


def test_another_setting_of_a_second_sampler_is_refused(whole, merge, tmp_path):
    ddim = [
        make(tmp_path / f"ddim{eta}", *BASE, "--sampler", "ddim", "--steps", steps, "--eta", eta, *IDLE)
        for steps, eta in (("2", "0"), ("3", "0.5"))
    ]
    assert_refused(merge(whole, *ddim, "--out", tmp_path / "out"), "another eta", out=tmp_path / "out")


@pytest.mark.parametrize("of", ["the same cells", "others"])
def test_other_features_are_refused(whole, merge, tmp_path, of):
    other = shutil.copytree(whole, tmp_path / "other")
    for cell in CELLS:
        edit(other / "cells" / cell / "metrics.json", features="digits-2-scores5")
        if of == "others":
            (other / "cells" / cell).rename(other / "cells" / f"more-{cell}")
    for pair in ((whole, other), (other, whole)):
        assert_refused(merge(*pair, "--out", tmp_path / "out"), "other features", out=tmp_path / "out")


@pytest.mark.ci
def test_a_cell_without_scores_goes_with_any_features(whole, merge, tmp_path):
    other = make(tmp_path / "other", *BASE, "--steps", "2", "--seeds", "4", "--features", "none")
    found = merge(whole, other, "--out", tmp_path / "out")
    assert (found.code, found.err) == (0, "")


@pytest.mark.ci
def test_units_that_were_measured_otherwise_are_not_mixed(parts, whole, merge, tmp_path):
    """A unit's shard holds records only of what its run measured: in a cell of more they would be missing."""
    plain = [make(tmp_path / f"plain{job}", *BASE, "--no-probes", "--shard", f"{job}/2") for job in range(2)]
    found = merge(*parts[:2], *plain, "--out", tmp_path / "out")
    assert found.code == 1
    assert "left out: " in found.err
    found = merge(parts[2], "--out", tmp_path / "out")
    assert found.code == 0
    assert_same_cells(tmp_path / "out", whole)


# --- damage ---------------------------------------------------------------------------------------------------------


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_shard_is_left_out_and_told(parts, whole, made_parts, merge, tmp_path):
    shard = sorted(parts[1].glob("cells/*/shard-*"))[0]
    flip(shard / "arrays.npz")
    found = merge(*parts, "--out", tmp_path / "out")
    assert found.code == 1
    assert found.err.splitlines() == [
        f"left out: {shard} is damaged", f"missing: {shard.parent.name} has 6 of its 7 units"
    ]  # fmt: skip
    assert not (tmp_path / "out" / shard.relative_to(parts[1])).exists()
    assert merge(made_parts[1], "--out", tmp_path / "out")[::2] == (0, "")
    assert_same_cells(tmp_path / "out", whole)


DAMAGE = [
    ("samples.npz", flip), ("steps.csv", flip), ("moments.npz", flip), ("metrics.json", flip), ("kernel.npy", flip),
    ("metrics.json", os.remove), ("features.npz", os.remove),
]  # fmt: skip


@pytest.mark.parametrize("damage", some(DAMAGE))
def test_a_damaged_cell_is_left_out_and_told(whole, merge, tmp_path, damage):
    name, how = damage
    part, out = shutil.copytree(whole, tmp_path / "part"), tmp_path / "out"
    cell = part / "cells" / CELLS[0]
    how(cell / name)
    found = merge(part, "--out", out)
    assert found.code == 1
    assert found.err.splitlines()[0].startswith(f"left out: {cell} ")
    assert found.err.splitlines()[1:] == [f"missing: {CELLS[0]} has 0 of its 7 units"]
    for order in ((part, whole), (whole, part)):
        shutil.rmtree(out)
        assert merge(*order, "--out", out).code == 0
        assert_same_cells(out, whole)


def test_a_folder_with_a_name_that_no_run_gives_is_left_out_and_told(whole, merge, tmp_path):
    part, out = shutil.copytree(whole, tmp_path / "part"), tmp_path / "out"
    strange = part / "cells" / "<b>x<b>"
    shutil.copytree(part / "cells" / CELLS[0], strange)
    found = merge(part, "--out", out)
    assert found.err.splitlines() == [
        f"left out: {strange} has a name that no run gives; rename it as its model is called"
    ]
    assert not (out / "cells" / strange.name).exists()
    assert_same_cells(out, whole)


def test_a_damaged_cell_in_the_folder_to_join_in_is_mended(whole, merge, tmp_path):
    out = shutil.copytree(whole, tmp_path / "out")
    flip(out / "cells" / CELLS[1] / "samples.npz")
    assert merge(whole, "--out", out)[::2] == (0, "")
    assert_same_cells(out, whole)


@pytest.mark.parametrize("kind", ["missing", "file", "empty"])
def test_what_is_no_results_folder_is_refused(whole, merge, tmp_path, kind):
    strange, out = tmp_path / "strange", tmp_path / "out"
    if kind == "file":
        strange.write_text("x")
    elif kind == "empty":
        strange.mkdir()
    for order in ((strange, whole), (whole, strange)):
        assert_refused(merge(*order, "--out", out), f"{strange} is not a results folder", out=out)


def test_a_file_is_no_folder_to_join_in(whole, merge, tmp_path):
    (tmp_path / "out").write_text("x")
    assert_refused(merge(whole, "--out", tmp_path / "out"), str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "x"


def test_a_published_copy_is_refused(whole, merge, tmp_path):
    part = shutil.copytree(whole, tmp_path / "part")
    (part / "records.zip").write_bytes(b"")
    assert_refused(merge(part, "--out", tmp_path / "out"), "small copy for publication", out=tmp_path / "out")


@pytest.mark.parametrize("args", [(), ("--out", "x"), ("part",), ("part", "--out", "x", "--nonsense")])
def test_a_mistaken_command_is_one_line(merge, args):
    assert_refused(merge(*args))


# --- measurements, and what came from a configuration file ----------------------------------------------------------


@pytest.fixture(scope="module")
def short_toml(save_tiny, pictures, tmp_path_factory):
    """A configuration of a model with few training steps, whose chains are short."""
    path = tmp_path_factory.mktemp("config") / "bench.toml"
    weights = save_tiny("short", description={"T": 5})
    path.write_text(f'[models.short]\nweights = "{weights}"\n[datasets.pictures]\npath = "{pictures}"\n')
    return path


@pytest.fixture(scope="module")
def configured(short_toml, tmp_path_factory):
    """A run of a configuration with all measurements, in one go and as two parts."""
    room = tmp_path_factory.mktemp("configured")
    args = ("--models", "short", "--dataset", "pictures", "--features", "none", "--steps", "2", "--samples", "10")
    args += ("--batch-size", "8", "--measure", "all", "--config", short_toml, "--quiet", "--compile", "off")
    return make(room / "whole", *args), [make(room / f"p{job}", *args, "--shard", f"{job}/2") for job in range(2)]


@pytest.mark.ci
def test_chains_and_responses_are_joined(configured, short_toml, merge, tmp_path):
    whole, parts = configured
    out = tmp_path / "out"
    found = merge(parts[0], "--out", out, "--config", short_toml)
    assert found.code == 1
    names = [line.removeprefix("missing: ") for line in found.err.splitlines()]
    assert len(names) > 3
    assert any(name.startswith("short-ddpm-2-seed0 has ") for name in names)
    assert any(name.startswith("short-mean-") and name.endswith(" is not measured") for name in names)
    found = merge(parts[1], "--out", out, "--config", short_toml)
    assert (found.code, found.err) == (0, "")
    assert_same_cells(out, whole, [path.name for path in (whole / "cells").iterdir()])
    for kind in ("chains", "response"):
        records = [path.relative_to(whole) for path in whole.glob(f"{kind}/*/record.csv")]
        assert records == [path.relative_to(out) for path in out.glob(f"{kind}/*/record.csv")] != []
        for record in records:
            assert (out / record).read_bytes() == (whole / record).read_bytes()


def test_a_damaged_measurement_is_left_out_and_told(configured, short_toml, merge, tmp_path):
    whole, _ = configured
    part = shutil.copytree(whole, tmp_path / "part")
    record = sorted(part.glob("chains/*/record.csv"))[0]
    flip(record)
    found = merge(part, "--out", tmp_path / "out", "--config", short_toml)
    assert (found.code, found.err.splitlines()[0]) == (1, f"left out: {record.parent} is damaged")
    assert merge(whole, "--out", tmp_path / "out", "--config", short_toml)[::2] == (0, "")


def test_other_settings_of_a_measurement_are_refused(configured, short_toml, merge, tmp_path):
    whole, _ = configured
    args = ("--models", "short", "--dataset", "pictures", "--features", "none", "--steps", "2", "--samples", "9")
    args += ("--measure", "chains", "--config", short_toml, "--quiet", "--compile", "off")
    other = make(tmp_path / "other", *args)
    shutil.rmtree(other / "cells")
    found = merge(whole, other, "--out", tmp_path / "out", "--config", short_toml)
    assert_refused(found, "was made with another n", out=tmp_path / "out")


def test_a_configuration_file_must_be_named_again(configured, merge, tmp_path):
    _, parts = configured
    found = merge(*parts, "--out", tmp_path / "out")
    assert_refused(found, "was made with --config", "name it to merge, too", out=tmp_path / "out")


# --- folders of strangers -------------------------------------------------------------------------------------------


def edit(path, **changes):
    """Change a record as a stranger can, who leaves the checksum out."""
    found = json.loads(path.read_text())
    found.pop("checksum", None)
    path.write_text(json.dumps({**found, **changes}))


@pytest.fixture
def stranger(made_parts, tmp_path):
    """A part to spoil, in a folder whose other content must stay, and its arguments."""
    (tmp_path / "room" / "precious").mkdir(parents=True)
    (tmp_path / "room" / "precious" / "file").write_text("precious")
    return shutil.copytree(made_parts[0], tmp_path / "room" / "part")


ODD_ARGUMENTS = [
    ["--help"], ["--list-models"], ["--dry-run"], ["--nonsense\nerror: all is lost\x1b[2J"], ["--samples", "many"],
    [1, None, {"a": []}], [["--models", "adm"]], [*BASE[:6], "--out", "../precious"], ["--out=../precious", *BASE],
    [*BASE, "--tune", "b=fit"], [*BASE, "--config", "evil.toml"], [*BASE, "--models", "adm=../precious/file"],
    [*BASE, "--models", "\x1b[31m"], [*BASE, "--shard", "5/1"], "--models adm", {"--models": "adm"}, None, 3,
]  # fmt: skip
NESTED = reduce(lambda nested, _: [nested], range(800), [])


@pytest.mark.parametrize("record", some([{"end": NESTED}, *({"arguments": odd} for odd in ODD_ARGUMENTS)]))
def test_an_odd_record_of_a_run_does_no_harm(stranger, merge, tmp_path, monkeypatch, record):
    edit(stranger / "run.json", **record)
    monkeypatch.chdir(stranger)
    before, out = tree(tmp_path / "room"), tmp_path / "out"
    found = merge(stranger, "--out", out)
    assert tree(tmp_path / "room") == before
    assert {path.name for path in tmp_path.iterdir()} <= {"room", "out"}
    assert "Traceback" not in found.err
    assert "usage:" not in found.out
    for line in found.err.splitlines():
        assert line.startswith(("error: ", "missing: "))
        assert line.isprintable()
    assert found.code in (1, 2)
    assert (found.code == 2) == found.err.startswith("error: ")
    if found.code == 2:
        assert len(found.err.splitlines()) == 1


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"hash": 3, "arguments": []}', "[" * 100_000, '{"a": ' * 50_000, "\xff", "null", '{"hash": NaN}'],
)
def test_a_record_of_a_run_that_says_nothing_is_refused(stranger, merge, tmp_path, content):
    (stranger / "run.json").write_text(content)
    assert_refused(merge(stranger, "--out", tmp_path / "out"), str(stranger), out=tmp_path / "out")


@pytest.mark.parametrize(
    "where", ["cells/evil", f"cells/{CELLS[0]}/shard-evil", f"cells/{CELLS[0]}/cell.json", "chains", "a pipe"]
)
def test_links_and_pipes_are_refused(stranger, made_parts, merge, tmp_path, where):
    path, out = stranger / where, tmp_path / "out"
    path.unlink(missing_ok=True)
    if where == "a pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "room" / "precious")
    before = tree(tmp_path / "room") if where != "a pipe" else None
    assert_refused(merge(stranger, "--out", out), str(path), "link", out=out)
    assert_refused(merge(made_parts[0], "--out", stranger), str(path), "link")  # nor in the folder to join in
    assert before is None or tree(tmp_path / "room") == before


NAMES = ["../../../precious/file", "/etc/hostname", "..", ".", "", "sub/file", "a\0b", "metrics.json", "cell.json"]


@pytest.mark.parametrize("name", some(NAMES))
def test_names_of_files_lead_nowhere(whole, stranger, merge, tmp_path, name):
    shutil.rmtree(stranger)
    shutil.copytree(whole, stranger)
    cell = stranger / "cells" / CELLS[0]
    files = json.loads((cell / "metrics.json").read_text())["files"]
    edit(cell / "metrics.json", files={**files, name: 8}, sha256={})
    before = tree(tmp_path / "room")
    found = merge(stranger, "--out", tmp_path / "out")
    assert (found.code, found.err.splitlines()[0]) == (1, f"left out: {cell} is damaged")
    assert tree(tmp_path / "room") == before
    assert {path.name for path in tmp_path.iterdir()} == {"room", "out"}


def test_a_hostile_shard_is_not_one(stranger, whole, made_parts, merge, tmp_path):
    """Its checksum is right and its content is not: objects that would run code, or nothing that can be read."""

    shards = sorted(stranger.glob("cells/*/shard-*"))
    np.savez(shards[0] / "arrays.npz", samples=np.array([touch(tmp_path / "ran")], dtype=object))
    (shards[1] / "arrays.npz").write_bytes(b"PK rubbish")
    for shard in shards[:2]:
        content = (shard / "arrays.npz").read_bytes()
        (shard / "SHA256SUMS").write_text(f"{hashlib.sha256(content).hexdigest()}  arrays.npz\n")
    found = merge(stranger, *made_parts[1:], "--out", tmp_path / "out")
    assert not (tmp_path / "ran").exists()
    assert found.code in (0, 1, 2)
    assert all(line.startswith(("error: ", "missing: ", "left out: ")) for line in found.err.splitlines())
    if found.code == 0:  # they were made anew
        assert_same_cells(tmp_path / "out", whole)
