"""Results folders written by hand, as the suite would leave them."""

import json

import numpy as np
import pandas as pd
import pytest
from made import cell_facts


def score(metric, value, n, reason=""):
    return {"metric": metric, "value": value, "n": n, "reference": "toy-train (30)", "reason": reason}


def step_rows(steps, shift):
    """Rows of every arm and quantity that the figures draw."""
    rows = []
    ts = np.linspace(0, 999, steps).round()
    quantities = {
        "free": ("eps_norm", "variance_ratio", "excess_std"),
        "forced-train": ("eps_norm", "x0_rmse"),
        "forced-heldout": ("eps_norm", "x0_rmse"),
        "gaussian": ("eps_rms", "variance_ratio", "excess_std"),
    }
    for arm, names in quantities.items():
        for name in names:
            for i, t in enumerate(ts):
                n, std = (None, float("nan")) if arm == "gaussian" else (20, 0.1)  # the exact arm has no error
                rows.append([arm, i, 0, t, 0.7, 0.7, n, name, 1 + shift + t / 5000, std])
    return pd.DataFrame(rows, columns=["arm", "i", "stage", "t", "alpha", "sigma", "n", "quantity", "value", "std"])


class Folder:
    """A results folder under construction."""

    def __init__(self, root):
        self.root = root

    def cell(self, model="adm", steps=10, seed=0, value=1.0, sampler="ddpm", terms=None, probes=True, n=20):
        """Add a complete cell and return its folder."""
        folder = self.root / "cells" / f"{model}-{sampler}-{steps}-seed{seed}"
        folder.mkdir(parents=True)
        scores = [score("nn_ratio", 0.9, n), score("fd_toy", value, n, "" if value else "too few images")]
        facts = cell_facts(model, sampler, steps, seed, n) | {"scores": scores}
        (folder / "metrics.json").write_text(json.dumps(facts))
        images = np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
        np.savez(folder / "samples.npz", arr_0=images)
        if terms is not None:
            np.save(folder / "kernel.npy", terms)
        if probes:
            step_rows(steps, 0.01 * seed).to_csv(folder / "steps.csv", index=False)
        return folder

    def seal(self, cell):
        """List a cell's files and their sizes in its ``metrics.json``, as the suite does."""
        path = cell / "metrics.json"
        facts = json.loads(path.read_text())
        facts["files"] = {file.name: file.stat().st_size for file in cell.iterdir() if file != path}
        path.write_text(json.dumps(facts))

    def order(self, *models):
        """Record the order in which the run named its models."""
        (self.root / "run.json").write_text(json.dumps({"configuration": {"models": {name: {} for name in models}}}))


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "results")


@pytest.fixture
def terms():
    """Return a function that makes per-sample kernel terms whose mean(within) - 2 mean(cross) is ``level``."""

    def make(level, seed=0, n=200, noise=0.1):
        rng = np.random.default_rng(seed)
        within, cross = rng.normal(0, noise, (2, n))
        return np.stack([within - within.mean() + level, cross - cross.mean()], axis=1)

    return make
