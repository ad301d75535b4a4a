"""The small copy: smaller, readable, says what it is, and gives the same main table."""

import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from cases import at_first

from analysis.__main__ import main
from analysis.comparison.paired_tests import compare
from analysis.normality.error_normality import normality_table, per_cell
from analysis.publish import publish
from analysis.quality.main_table import quality_table
from analysis.records.arrays import cell_terms, recorded_ratios
from analysis.records.load import ResultsError, load_results
from bench.data import load
from bench.measure.features.extractors import open_extractor
from bench.measure.quality.frechet import feature_moments
from bench.suite.cli import run

ROOT = Path(__file__).parents[2]
COMMITTED = sorted((ROOT / "results").glob("*/records.zip"))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A real run of the embedded models, small."""
    root = tmp_path_factory.mktemp("original") / "run"
    command = ["--models", "adm", "--steps", "2,24", "--samples", "66", "--seeds", "0-1", "--out", str(root)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.suite.experiments.exact._MANY", 64)  # exact samples walked: how many is no matter here
        patch.setattr("bench.suite.experiments.exact._FEW", 64)
        assert run([*command, "--quiet"])[0] == 0
    return root


@pytest.fixture(scope="module")
def copy(original, tmp_path_factory):
    (original / "training" / "adm").mkdir(parents=True)
    (original / "training" / "adm" / "loss.csv").write_text("iteration,images,mse,bound\n")
    target = tmp_path_factory.mktemp("copy") / "small"
    assert publish(original, target).problems == []
    return target


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_copy_is_small_and_sound(original, copy):
    results = load_results(copy)
    assert (results.problems, len(results.cells)) == ([], 4)
    assert {path.name for path in copy.iterdir()} == {"records.zip", "run.json", "training"}
    assert (copy / "training" / "adm" / "loss.csv").read_text() == "iteration,images,mse,bound\n"
    assert size(copy) < size(original / "cells") / 3
    assert all(record.facts["published"] is True for record in results.cells)


def test_tables_agree(original, copy):
    whole, small = load_results(original), load_results(copy)
    first, second = quality_table(whole), quality_table(small)
    # Kernel terms are kept in single precision, which no verdict hangs on; everything else is the same number.
    assert second.markdown() == first.markdown()
    assert whole.metrics.equals(small.metrics)
    first, second = map(recorded_ratios, (whole, small))  # the floors of a network's variance, at all levels
    assert len(first) > 0
    assert second.equals(first)
    first, second = (results.steps.astype({"arm": str, "quantity": str}) for results in (whole, small))
    keys = ["model", "sampler", "steps", "seed", "arm", "quantity", "i"]
    joined = second.merge(first, on=keys, suffixes=("", "_full"), how="left")
    assert len(joined) == len(second)
    # Five significant digits are kept: half a unit of the fifth is 5e-5 of the value at most.
    assert np.allclose(joined["value"], joined["value_full"], rtol=5e-5, atol=0)


def test_levels_are_thinned_to_those_with_errors(original, copy):
    record = next(r for r in load_results(copy).cells if r.key()["steps"] == 24 and r.key()["seed"] == 0)
    kept = set(record.steps().query("quantity == 'eps_norm' and arm == 'free'")["i"])
    errors = record.arrays("errors.npz")
    assert set(errors["i"]) <= kept
    assert len(errors["i"]) == len(errors["errors"]) == 4
    assert errors["errors"].dtype == np.float16
    assert len(record.arrays("moments.npz")["i"]) == 8 < 24
    assert len(record.arrays("samples.npz")["arr_0"]) == 16


def test_tests_of_normality_stay_at_all_levels(original, copy):
    first, second = (normality_table(per_cell(load_results(root))) for root in (original, copy))
    most = first[(first["steps"] == 24) & (first["seeds"] == 2)]
    assert len(second) == len(most) > 4
    assert second["i"].tolist() == most["i"].tolist()


def test_a_run_refuses_the_copy(copy, capsys):
    assert run(["--models", "adm", "--steps", "2", "--samples", "66", "--out", str(copy)])[0] == 2
    assert "small copy" in capsys.readouterr().err


def test_a_target_with_something_in_it_is_refused(original, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ResultsError, match="not empty"):
        publish(original, tmp_path)
    assert main([str(original), "--publish", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_labels_of_the_kept_samples_stay(folder, tmp_path):
    cell = folder.cell(probes=False)
    images = np.load(cell / "samples.npz")["arr_0"]
    np.savez(cell / "samples.npz", arr_0=images, arr_1=np.arange(len(images)))
    publish(folder.root, tmp_path / "small")
    kept = load_results(tmp_path / "small").cells[0].arrays("samples.npz")
    assert kept["arr_1"].tolist() == list(range(len(kept["arr_0"])))


def test_equal_records_make_equal_archives(copy, tmp_path):
    publish(copy, tmp_path / "again")
    assert (tmp_path / "again" / "records.zip").read_bytes() == (copy / "records.zip").read_bytes()


@pytest.mark.parametrize("damage", ["steps.csv", "samples.npz", "moments.npz"])
def test_a_damaged_cell_is_named_and_not_half_copied(folder, tmp_path, damage):
    folder.cell("adm", probes=False)
    bad = folder.cell("bad", probes=False)
    if damage == "steps.csv":
        (bad / damage).write_bytes(b"rubbish")
    else:
        np.savez(bad / damage, other=np.zeros(3))
    (problem,) = publish(folder.root, tmp_path / "small").problems
    assert "bad-ddpm-10-seed0" in problem
    assert [record.folder.name for record in load_results(tmp_path / "small").cells] == ["adm-ddpm-10-seed0"]


@pytest.mark.parametrize("damage", [b"", b"PK", b"no archive"])
def test_a_damaged_archive_is_one_line(tmp_path, capsys, damage):
    (tmp_path / "records.zip").write_bytes(damage)
    assert main([str(tmp_path)]) == 2
    assert "records.zip is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("edit", ["score", "member"])
def test_an_edited_archive_is_one_line(copy, tmp_path, capsys, edit):
    shutil.copytree(copy, tmp_path, dirs_exist_ok=True)
    with zipfile.ZipFile(copy / "records.zip") as old, zipfile.ZipFile(tmp_path / "records.zip", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if edit == "score" and name.endswith("metrics.json"):
                content = content.replace(b'"value": 0.', b'"value": 9.')
            new.writestr(name, content + (b"\n" if edit == "member" and name.endswith("steps.csv") else b""))
    assert main([str(tmp_path)]) == 2
    assert "records.zip is damaged (it was edited" in capsys.readouterr().err
    (tmp_path / "run.json").unlink()  # without the archive's checksum the cells have theirs
    assert main([str(tmp_path)]) == 2
    assert ("its numbers were edited" if edit == "score" else "steps.csv is missing") in capsys.readouterr().err


def full(triangle, d):
    """Return the symmetric matrix [d, d] of its upper triangle by rows."""
    matrix = np.zeros((d, d))
    matrix[np.triu_indices(d)] = triangle
    return matrix + np.triu(matrix, 1).T


def reference(features):
    """Return mean and covariance of the training images' features."""
    if features == "digits":
        with np.load(ROOT / "tests" / "golden" / "digits_features.npz") as file:
            return file["mean"], full(file["covariance"], len(file["mean"]))
    name = features.replace("_", "-")
    with np.load(ROOT / "bench" / "measure" / "weights" / f"{name}-statistics.npz") as file:
        return file["mu"].astype(np.float64), file["sigma"].astype(np.float64)


def distance(mean, cov, other_mean, other_cov):
    """Frechet distance: the trace of the root of C R is the sum of the roots of the eigenvalues of R^.5 C R^.5."""
    values, vectors = np.linalg.eigh(other_cov)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    roots = np.sqrt(np.linalg.eigvalsh(root @ cov @ root).clip(min=0))
    return ((mean - other_mean) ** 2).sum() + np.trace(cov) + np.trace(other_cov) - 2 * roots.sum()


def recomputed(records):
    """Yield the tabled and the recomputed distance of each cell of an archive that keeps its moments."""
    with zipfile.ZipFile(records) as archive:
        for name in archive.namelist():
            if not (name.startswith("cells/") and name.endswith("/influence.npz")):
                continue
            facts = json.loads(archive.read(name.replace("influence.npz", "metrics.json")))
            scores = {score["metric"]: score["value"] for score in facts["scores"]}
            metric = next(metric for metric in scores if f"{metric}_strat" in scores)
            with np.load(io.BytesIO(archive.read(name))) as arrays:
                mean = arrays["mean"].astype(np.float64)
                cov = full(arrays["covariance"].astype(np.float64), len(mean))
            yield scores[metric], distance(mean, cov, *reference(metric.removeprefix("fd_")))


def test_the_distance_by_hand():
    one, two = np.eye(2), np.diag([4.0, 9.0])  # (2 - 1)^2 + (3 - 1)^2, and 3^2 + 4^2 of the means
    assert distance(np.zeros(2), one, np.array([3.0, 4.0]), two) == pytest.approx(1 + 4 + 25)


def test_a_published_cell_keeps_what_its_distance_needs(copy):
    pairs = list(recomputed(copy / "records.zip"))
    assert len(pairs) == 4
    for tabled, found in pairs:
        assert found == pytest.approx(tabled, rel=1e-4)  # moments in single precision


def test_some_of_many_reference_images_give_the_errors_of_all(original, tmp_path, monkeypatch):
    monkeypatch.setattr("analysis.publish._REFERENCE", 100)
    publish(original, tmp_path / "few")
    publish(tmp_path / "few", tmp_path / "again")
    errors = []
    for folder, rows in ((original, 1442), (tmp_path / "few", 97), (tmp_path / "again", 97)):
        by_steps = cell_terms(load_results(folder))
        two, many = (next(iter(by_steps[steps].values())) for steps in (2, 24))
        assert {len(terms.kernel_reference) for terms in two.values()} == {rows}
        errors.append(compare(two, many).error)
    assert errors[0] != errors[1] == errors[2] == pytest.approx(errors[0], rel=0.05)


@pytest.mark.parametrize("records", at_first(COMMITTED, 1), ids=lambda path: path.parent.name)
def test_committed_results(records):
    pairs = list(recomputed(records))
    if not pairs:
        pytest.skip("its cells were published before they kept their features' moments")
    for tabled, found in pairs:
        assert found == pytest.approx(tabled, rel=1e-3)


def test_the_digits_moments_are_those_of_the_classifier():
    mean, cov = feature_moments(open_extractor("digits").extract(load("digits").part("train"))[0])
    kept = reference("digits")
    np.testing.assert_allclose(kept[0], mean, atol=1e-4)
    np.testing.assert_allclose(kept[1], cov, atol=1e-3)
