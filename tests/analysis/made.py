"""Records of cells as the suite would leave them, for tests of the analysis."""

import json

import numpy as np

from bench.suite.config import short_hash
from bench.suite.plan import RECORD_VERSION


def cell_facts(model, sampler, steps, seed, n):
    """What metrics.json says of a sound cell, without its scores and files."""
    cell = {
        "version": RECORD_VERSION, "model": model, "sampler": sampler, "steps": steps, "seed": seed, "samples": n,
        "spacing": "plain", "clip": True, "quantize": "round", "data": "toy",
    }  # fmt: skip
    return {"key": short_hash(cell), "cell": cell, "files": {}, "nfe": steps}


def make_cell(root, model, seed=0, sampler="ddpm", steps=4, **arrays):
    folder = root / "cells" / f"{model}-{sampler}-{steps}-seed{seed}"
    folder.mkdir(parents=True)
    facts = cell_facts(model, sampler, steps, seed, n=50) | {"scores": []}
    (folder / "metrics.json").write_text(json.dumps(facts))
    for name, content in arrays.items():
        if name == "kernel":
            np.save(folder / "kernel.npy", content)
        else:
            np.savez(folder / f"{name}.npz", **content)
