"""SIGINT and SIGTERM, in one process and in several."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training_ranks import interrupted, launch

ROOT = Path(__file__).parents[3]
LINE = "interrupted; the same command goes on where it stopped\n"
CODES = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


def words(out, iterations=5):
    return ["--recipe", "adm", "--iterations", str(iterations), "--quiet", "--out", str(out)]


@pytest.mark.parametrize(("number", "code"), CODES)
@pytest.mark.parametrize(("rank", "said"), [(None, LINE), ("0", LINE), ("1", "")])
def test_while_python_imports_a_signal_ends_the_process(number, code, rank, said):
    script = (
        "import os, signal, bench.runtime.signals as i; i.end_at_once(); "
        f"os.kill(os.getpid(), {int(number)}); signal.pause()"
    )
    launched = {} if rank is None else {"TORCHELASTIC_RUN_ID": "x", "RANK": rank}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, env=launched, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "", said)


@pytest.mark.parametrize(("number", "code", "size", "by"), [(*CODES[0], 1, 0), (*CODES[0], 2, 0), (*CODES[1], 2, 1)])
def test_a_training_stops_after_its_iteration_and_goes_on(tmp_path, number, code, size, by):
    """Whichever process hears it; resumed by one process, it ends as if nothing had been."""
    first, *others = launch(size, interrupted, words(tmp_path / "torn"), number, by)
    assert first == (code, "", LINE)
    assert all(other == (code, "", "") for other in others)
    state = torch.load(tmp_path / "torn" / "resume.pt")
    assert (state["iteration"], len(state["window"])) == (4, 0)
    assert not list(tmp_path.rglob("*.safetensors"))
    if size == 1:
        for out in ("torn", "whole"):
            ((done, _, _),) = launch(1, interrupted, words(tmp_path / out), number, "nobody")
            assert done == 0
        for name in ("adm.safetensors", "loss.csv"):
            assert (tmp_path / "torn" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_before_the_first_iteration_there_is_nothing_to_save(tmp_path):
    assert launch(1, interrupted, words(tmp_path), signal.SIGINT, 0, None) == [(130, "", LINE)]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), CODES)
@pytest.mark.parametrize("launcher", [[], ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]])
def test_the_command_itself(tmp_path, number, code, launcher):
    """The exit code of torchrun is its own."""
    process = subprocess.Popen(
        [sys.executable, *launcher, "-m", "bench.models.train", *words(tmp_path, 8000)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (tmp_path / "loss.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert (out, err.count(LINE)) == ("", 1)
    assert (tmp_path / "resume.pt").exists()
    if not launcher:
        assert (process.returncode, err) == (code, LINE)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), CODES)
@pytest.mark.parametrize("wait", [1.0, 2.0, 3.5, 5.0])
def test_whenever_it_comes(tmp_path, number, code, wait):
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.models.train", *words(tmp_path, 8000)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    time.sleep(wait)
    process.send_signal(number)
    assert process.communicate(timeout=120) == ("", LINE)
    assert process.returncode == code
