"""Results folders written by hand, as the suite would leave them."""

import json
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from records import edited
from synthetic_results import make_cell, run_record, score

from analysis.output import style
from bench.diffusion.noise import Noise
from bench.diffusion.samplers import Draws, prior, teacher_forced, walk
from bench.diffusion.schedules import levels
from bench.diffusion.solvers import DDIM, Ancestral
from bench.measure.instruments.floors import GaussianFloors
from bench.measure.instruments.gaussian import LinearGaussian
from bench.measure.instruments.probes import WalkProbe
from bench.measure.instruments.step_table import PixelStatistics, to_table
from bench.models.denoisers.oracles import GaussianOracle
from bench.suite.settings import short_hash


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
        scores = [score("nn_ratio", 0.9, n), score("fd_toy", value, n, "" if value else "too few images")]
        images = np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
        arrays = {"samples": {"arr_0": images}} | ({} if terms is None else {"kernel": terms})
        folder = make_cell(self.root, model, seed, sampler, steps, n, scores, **arrays)
        if probes:
            step_rows(steps, 0.01 * seed).to_csv(folder / "steps.csv", index=False)
        return folder

    def seal(self, cell):
        """List a cell's files and their sizes in its ``metrics.json``, as the suite does."""
        path = cell / "metrics.json"
        with edited(path) as facts:
            facts["files"] = {file.name: file.stat().st_size for file in cell.iterdir() if file != path}

    def order(self, *models):
        """Record the order in which the run named its models."""
        (self.root / "run.json").write_text(json.dumps(run_record({"models": {name: {} for name in models}})))


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """Draw with few pixels."""
    monkeypatch.setitem(style._SETTINGS, "figure.dpi", 40)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "results")


@pytest.fixture(scope="session")
def folder_at():
    """Return a function that starts a results folder anywhere, for fixtures that outlive one test."""
    return Folder


@pytest.fixture
def terms():
    """Return a function that makes per-sample kernel terms whose mean(within) - 2 mean(cross) is ``level``."""

    def make(level, seed=0, n=200, noise=0.1):
        rng = np.random.default_rng(seed)
        within, cross = rng.normal(0, noise, (2, n))
        return np.stack([within - within.mean() + level, cross - cross.mean()], axis=1)

    return make


@pytest.fixture(scope="session")
def exact_steps():
    """Return a function from a variance mode (None is DDIM) to the per-step table of an exact denoiser's cell.

    4000 images 1x4x4 of a Gaussian, 20 cosine steps, no clipping: free, teacher forced, and the closed forms.
    """

    @cache
    def make(mode):
        shape, n, path = (1, 4, 4), 4000, levels("cosine", 1000, "20")
        root = torch.randn(16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        mean, cov = torch.linspace(-0.5, 0.5, 16, dtype=torch.float64), 0.02 * root @ root.T + 0.05 * torch.eye(16)
        oracle = GaussianOracle(mean.reshape(shape), cov)
        draws, solver = Draws(Noise(1), torch.arange(n)), DDIM() if mode is None else Ancestral(mode)
        x0 = oracle.sample(n, torch.Generator().manual_seed(1)).float().reshape(n, *shape)
        walks = {
            "free": walk(oracle, path, prior(path[0], draws, shape), solver, draws, clip=False),
            "forced-train": teacher_forced(oracle, path, x0, solver, draws, clip=False),
            "forced-heldout": teacher_forced(oracle, path, -x0.flip(0), solver, draws, clip=False),
        }
        data = PixelStatistics(mean.reshape(shape).numpy(), cov.diagonal().reshape(shape).numpy())
        rows = GaussianFloors(LinearGaussian(mean.numpy(), cov.numpy()), path, range(20), solver).rows
        for arm, steps in walks.items():
            probe = WalkProbe(20, range(20), mean.reshape(shape).float(), arm != "free")
            for step in steps:
                probe.update(step)
            rows += WalkProbe.result(arm, probe.state(), range(20), path, data)
        return to_table(rows).assign(model="exact", sampler="ddim" if mode is None else "ddpm", steps=20, seed=0)

    return make


@pytest.fixture
def make_record():
    """Return a function that writes a complete record of a measurement with network calls of its own."""

    def make(path, kind, table, pictures=None, version=1, **settings):
        path.mkdir(parents=True, exist_ok=True)
        table.to_csv(path / "record.csv", index=False)
        if pictures is not None:
            np.savez(path / "pictures.npz", **pictures)
        description = {"version": version, **(settings or {"name": path.name, "made": "by hand"})}
        files = {file.name: file.stat().st_size for file in path.iterdir() if file.suffix != ".json"}
        facts = {"key": short_hash(description), kind: description, "files": files}
        (path / f"{kind}.json").write_text(json.dumps(facts))

    return make
