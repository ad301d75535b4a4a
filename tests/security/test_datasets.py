"""Images through ``run_bench.py`` and ``python -m bench.measure``: archives, npz files and CIFAR-10's batches."""

import json
import random
import zipfile
import zlib

import numpy as np
import pytest
from pictures import zipped

FILES = ("images.npz", "images.zip")


@pytest.fixture
def commands(room, sound, bench_args):
    """A function of a path that returns the two commands that read images from it."""

    def both(path):
        (room / "d.toml").write_text(f"[datasets.d]\npath = {json.dumps(str(path))}\n")
        weights = f"m={sound / 'own.safetensors'}"
        files = ("--out", room / "scores.json", "--save-statistics", room / "statistics.npz")
        return [
            ("run_bench", "--config", room / "d.toml", "--dataset", "d", "--models", weights, *bench_args),
            ("measure", path, "--reference", "digits", "--features", "digits", *files),
            ("measure", sound / "images.npz", "--reference", path, "--features", "digits", *files),
        ]

    return both


@pytest.fixture
def refuses(commands, refused):
    """A function of a path that asserts that every command refuses it, and returns what they say."""

    def all_of(path):
        said = {refused(*command) for command in commands(path)}
        assert all(str(path) in line for line in said)
        return " ".join(said)

    return all_of


@pytest.mark.parametrize("name", FILES)
def test_sound_ones_are_read(given, commands, call, name):
    run, measure, _ = commands(given(name))
    for command in (run, measure):
        outcome = call(*command, "--quiet")
        assert (outcome.code, outcome.err) == (0, "")


@pytest.mark.parametrize("name", [*FILES, "images.tar.gz", "images.txt", "folder"])
def test_missing(room, refuses, name):
    assert "does not exist" in refuses(room / "in" / name)


@pytest.mark.parametrize("kept", [1, 0.5])
@pytest.mark.parametrize("name", FILES)
def test_truncated(given, refuses, name, kept):
    path = given(name)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    assert str(path) in refuses(path)


@pytest.mark.parametrize("content", ["empty", "random", "own.safetensors", "released.pt", "edm.pkl", "statistics.npz"])
@pytest.mark.parametrize("suffix", [".npz", ".zip", ".tar.gz", ".png", ""])
def test_another_format_under_this_suffix(room, sound, commands, refused, suffix, content):
    path = room / "in" / f"file{suffix}"
    made = {"empty": b"", "random": random.Random(0).randbytes(3000)}
    path.write_bytes(made[content] if content in made else (sound / content).read_bytes())
    for command in commands(path)[:2]:
        assert str(path) in refused(*command)


@pytest.mark.parametrize("name", ["a/../../out.png", "/abs/out.png", "..\\out.png"])
def test_zips_whose_names_lead_out(room, png, refuses, name):
    image = png(np.zeros((8, 8), np.uint8))
    assert "leads out of the archive" in refuses(zipped(room / "in" / "a.zip", {"0/a.png": image, name: image}))


def bomb_of_bytes():
    return bytes(2**28 + 1)


def bomb_of_pixels():
    """Four thousand million equal pixels: the header says so, and the data would."""
    size = (65_536).to_bytes(4, "big")
    header = b"IHDR" + size + size + b"\x08\x00\x00\x00\x00"
    data = b"IDAT" + zlib.compress(bytes(2**20), 9)
    chunks = [len(c[4:]).to_bytes(4, "big") + c + zlib.crc32(c).to_bytes(4, "big") for c in (header, data, b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("bomb", [bomb_of_bytes, bomb_of_pixels])
def test_zip_bombs(room, refuses, bomb):
    assert "a.zip" in refuses(zipped(room / "in" / "a.zip", {"0/a.png": bomb()}, zipfile.ZIP_DEFLATED))


def test_a_folder_with_a_bomb_and_one_with_a_link_that_leads_nowhere(room, refuses):
    for folder in ("bomb", "link"):
        (room / "in" / folder).mkdir()
    (room / "in" / "bomb" / "a.png").write_bytes(bomb_of_pixels())
    assert "bomb" in refuses(room / "in" / "bomb")
    (room / "in" / "link" / "a.png").symlink_to(room / "nowhere")
    assert "link" in refuses(room / "in" / "link")


def test_an_npz_of_objects(room, hostile, refuses):
    np.savez(room / "in" / "a.npz", arr_0=np.array([hostile], dtype=object))
    assert "not object" in refuses(room / "in" / "a.npz")


def test_labels_of_objects_are_run_by_no_command(room, hostile, marker, commands, call):
    np.savez(room / "in" / "a.npz", arr_0=np.zeros((2, 8, 8, 1), np.uint8), arr_1=np.array([hostile], dtype=object))
    run, *others = commands(room / "in" / "a.npz")
    assert call(*run).code == 2  # a run reads labels
    for command in others:
        call(*command)  # which may need none
    assert not marker.exists()
