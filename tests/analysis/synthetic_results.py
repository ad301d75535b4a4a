"""Records of cells as the suite would leave them, for tests of the analysis."""

import json

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.text import Text
from PIL import Image

from bench.suite.plan import RECORD_VERSION
from bench.suite.settings import short_hash


def score(metric, value, n, reason=""):
    return {"metric": metric, "value": value, "n": n, "reference": "toy-train (30)", "reason": reason}


def cell_facts(model, sampler, steps, seed, n):
    """What metrics.json says of a sound cell, without its scores and files."""
    cell = {
        "version": RECORD_VERSION, "model": model, "sampler": sampler, "steps": steps, "seed": seed, "samples": n,
        "spacing": "plain", "clip": True, "quantize": "round", "data": "toy",
    }  # fmt: skip
    return {"key": short_hash(cell), "cell": cell, "files": {}, "nfe": 2 * steps - 1 if sampler == "heun" else steps}


def run_record(configuration=None, **changes):
    """What run.json holds, with changes of its configuration and of its other entries."""
    usual = {
        "models": {"adm": {"T": 1000}}, "dataset": "toy", "sampler": "ddpm", "steps": [10], "seeds": [0], "samples": 16,
        "features": "toy", "measure": ["steps"],
    }  # fmt: skip
    return {
        "configuration": usual | (configuration or {}), "hash": "a", "command": ["run_bench.py"], "arguments": [],
        "packages": {}, "python": "3.11", "commit": None, "device": "cpu", "processes": 1, "threads": 1,
        "batch_size": 8, "compiled": False, "start": "s", "end": None, "network_calls": None,
        "network_calls_per_second": 1.5, "images_per_second": 2,
    } | changes  # fmt: skip


def make_cell(root, model, seed=0, sampler="ddpm", steps=4, n=50, scores=(), **arrays):
    folder = root / "cells" / f"{model}-{sampler}-{steps}-seed{seed}"
    folder.mkdir(parents=True)
    facts = cell_facts(model, sampler, steps, seed, n) | {"scores": list(scores)}
    (folder / "metrics.json").write_text(json.dumps(facts))
    for name, content in arrays.items():
        if name == "kernel":
            np.save(folder / "kernel.npy", content)
        else:
            np.savez(folder / f"{name}.npz", **content)
    return folder


def band_arrays(kind, arms, data, alpha=(1.0,), sigma=(0.0,), t=None):
    """Arrays of moments.npz for spectra (kind "spectrum") or Haar energies ("haar").

    ``arms``: power of single images [levels, images, bands] by record, e.g. ``free/state``, ``forced-train/x0``; what
    is not given is the data's power, of as many images, without spread.
    """
    levels, bands = len(alpha), len(data)
    made = {
        "i": np.arange(levels), "t": np.linspace(0, 999, levels) if t is None else np.array(t),
        "alpha_next": np.array(alpha), "sigma_next": np.array(sigma), f"data/{kind}": np.array(data),
    }  # fmt: skip
    images = next(iter(arms.values())).shape[1]
    for name in ("free/state", "free/x0", "forced-train/x0"):
        arm, of = name.split("/")
        power = arms.get(name, np.broadcast_to(data, (levels, images, bands)))
        moments = {"count": np.full(levels, float(power.shape[1])), "mean": power.mean(1), "second": (power**2).mean(1)}
        made |= {f"{arm}/{kind}_{of}/{key}": value for key, value in moments.items()}
    return made


def drawn_texts(monkeypatch, module):
    """Collect the texts of every figure that a module would save, a list a figure, without rendering it."""
    drawn = []
    monkeypatch.setattr(
        module, "save", lambda figure, folder, name: drawn.append(texts(figure)) or [folder / f"{name}.png"]
    )
    return drawn


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text)]


def assert_figures(paths, name, kinds=("png",)):
    assert [path.name for path in paths] == [f"{name}.{kind}" for kind in kinds]
    for path in paths:
        if path.suffix == ".pdf":
            assert path.read_bytes().startswith(b"%PDF")
            assert b"%%EOF" in path.read_bytes()[-32:]
        else:
            with Image.open(path) as image:
                image.load()
                assert image.width > 120
                assert len(image.convert("L").getcolors()) > 10  # something is drawn
    assert plt.get_fignums() == []  # and closed
