"""What is said before a run: files passed over, equal weights, a distance that cannot be given; and the repairs."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from bench.measure.features.extractors import INCEPTION_EXTRACTORS, open_extractor
from bench.suite.run import missing_distance

WIDE = SimpleNamespace(
    name=INCEPTION_EXTRACTORS[0], widths=(2048, 2023), metrics={"frechet": "fid", "kid": "kid"}, embedded=False
)


def reference(extractor, known, singles):
    return SimpleNamespace(extractor=extractor, counts=lambda: (known, singles))


CASES = [
    ((1000, 600, 600), "fid needs 2049 samples and 2049 reference images; here 1000 and 600: kid is shown instead;"
     " --features cifar10-resized needs 129 of both"),
    ((1000, 50_000, 50_000), "here 1000 and 50000: kid is shown instead; --samples 2049 gives it"),
    ((1000, None, 0), "here 1000: nor can kid be given (the reference has no images, only statistics); --samples 2049"),
    ((64, 90, 90), "here 64 and 90: nor can kid be given (needs 100 reference images, not 90)"),
    ((2049, 2049, 2049), ""),
]  # fmt: skip


@pytest.mark.parametrize(("counts", "words"), CASES)
def test_a_distance_that_cannot_be_given_is_told(counts, words):
    n, known, singles = counts
    line = missing_distance(reference(WIDE, known, singles), n)
    assert words in line
    assert bool(line) is bool(words)


def test_an_embedded_extractor_needs_no_more_than_its_width():
    assert missing_distance(reference(open_extractor("digits"), 1442, 1442), 65) == ""
    assert "fd_digits needs 65 samples" in missing_distance(reference(open_extractor("digits"), 1442, 1442), 64)
    assert missing_distance(reference(None, 5, 5), 5) == ""


@pytest.fixture
def photos(tmp_path):
    """A folder of 60 grey pictures, a file that is none, and a link."""
    folder = tmp_path / "my photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(60):
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{k}.png")
    (folder / "0.tif").write_bytes(b"")
    return folder


def test_a_folder_of_images_needs_no_config_file(tmp_path, photos, tiny_weights, command):
    weights = tmp_path / "run,lr=1e-4" / "ema.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(tiny_weights.read_bytes())
    args = ("--dataset", f"mine={photos}", "--models", f"a={weights},b={tiny_weights}", "--steps", "2")
    args += ("--samples", "4")
    outcome = command(*args, "--features", "cifar10-resized", "--dry-run", "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert "dataset   mine (60 images" in outcome.out
    assert f"note      {photos}: 1 file passed over (1 .tif)" in outcome.out
    assert "note      a and b have the same weights" in outcome.out
    assert "note      fd_cifar10_resized needs 129 samples and 129 reference images; here 4 and 60" in outcome.out


REFUSED = {
    ("--dataset", "mine="): "names no path; write --dataset mine=PATH",
    ("--dataset", "../x=y"): "is no name",
    ("--dataset", "cifar10=x"): "cifar10 is a known dataset; write --dataset cifar10 --data-dir x",
    ("--dataset", "digits=x"): "choose another name",
    ("--dataset", "mine=x", "--data-dir", "y"): "leave out --data-dir",
    ("--dataset", "nobodys"): "images of your own are --dataset NAME=PATH",
    ("--models", "../../evil=W"): "is no name",
    ("--models", f"{'x' * 101}=W"): "use up to 100 letters",
}


@pytest.mark.parametrize("flags", REFUSED, ids=" ".join)
def test_names_and_paths_that_cannot_be(tmp_path, command, flags):
    assert command("--steps", "2", *flags, "--out", tmp_path / "out").refused(REFUSED[flags])
    assert not (tmp_path / "out").exists()


def test_relative_paths_of_a_config_file_start_in_its_folder(tmp_path, photos, tiny_weights, command, monkeypatch):
    (tmp_path / "w.safetensors").write_bytes(tiny_weights.read_bytes())
    (tmp_path / "c.toml").write_text('[models.m]\nweights = "w.safetensors"\n[datasets.mine]\npath = "my photos"\n')
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    flags = ("--models", "m", "--dataset", "mine", "--steps", "2", "--features", "none", "--dry-run")
    outcome = command("--config", tmp_path / "c.toml", *flags)
    assert outcome.code == 0, outcome.err


def test_cells_that_were_edited_are_named_when_they_are_repaired(tmp_path, tiny_weights, command):
    args = ("--models", f"m={tiny_weights}", "--steps", "2", "--samples", "4", "--features", "none", "--no-probes")
    assert command(*args, "--quiet", "--out", tmp_path).code == 0
    path = tmp_path / "cells" / "m-ddpm-2-seed0" / "metrics.json"
    whole, facts = path.read_bytes(), json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"seconds": 1.0}))
    outcome = command(*args, "--quiet", "--out", tmp_path)
    assert "note: damaged or edited, and computed again: m-ddpm-2-seed0" in outcome.err
    assert json.loads(path.read_text())["sha256"] == json.loads(whole)["sha256"]
    assert "damaged" not in command(*args, "--quiet", "--out", tmp_path).err
