"""The true standard error of the commands, with whatever the libraries would say there."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def commands(room):
    """Return a command line of each program, each with a hostile file."""
    weights, out = room / "in" / "weights.pt", ("--out", room / "out")
    run = [ROOT / "run_bench.py", "--models", f"adm={weights}", "--steps", "2", *out]
    return {
        "run": run,
        "edm": [*run[:2], f"edm={room / 'in' / 'weights.pkl'}", "--steps", "2", "--sampler", "heun", *out],
        "measure": ["-m", "bench.measure", room / "in" / "a.npz", "--reference", "digits", "--features", "digits"],
        "train": ["-m", "bench.models.train", "--recipe", "adm", "--out", room / "in", "--iterations", "1"],
        "analysis": ["-m", "analysis", room / "in"],
    }


@pytest.mark.slow
@pytest.mark.parametrize("program", ["run", "edm", "measure", "train", "analysis"])
def test_one_line_and_no_more(room, hostile, marker, program):
    for name in ("weights.pkl", "a.npz"):
        (room / "in" / name).write_bytes(pickle.dumps({"ema": hostile}))
    for name in ("weights.pt", "resume.pt"):
        torch.save({"recipe": hostile, "a": torch.eye(3).to_sparse()}, room / "in" / name)
    words = [str(word) for word in commands(room)[program]]
    environment = {"PYTHONPATH": str(ROOT), "HOME": str(room / "cache"), "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=120, cwd=room / "cwd", env=environment
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not marker.exists()
    assert not (room / "out").exists()
    assert not list((room / "cwd").iterdir())
