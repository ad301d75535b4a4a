"""Measurements of latents: the rows of an exact sampler, and bookkeeping of samples and conditions."""

import numpy as np
import pandas as pd
import pytest
import torch

from bench.data import DataError
from bench.diffusion.schedules import edm_levels, levels
from bench.diffusion.solvers import DDIM, Ancestral, Heun
from bench.diffusion.types import Prediction
from bench.latent.measurement import measure_latents
from bench.measure.instruments.floors import GaussianFloors
from bench.measure.instruments.gaussian import LinearGaussian
from bench.measure.instruments.step_table import STEP_COLUMNS
from bench.models.denoisers.oracles import GaussianOracle

PATH = levels("cosine", 1000, 6)
LATENTS = torch.randn(10, 4, 6, 5, generator=torch.Generator().manual_seed(0))


class Recording:
    """An eps-network in closed form that keeps what it was asked with, and answers by the condition."""

    def __init__(self):
        self.conds, self.sizes = [], []

    def __call__(self, x, level, cond=None):
        self.sizes.append(len(x))
        self.conds.append(None if cond is None else cond.tolist())
        eps = torch.tanh(x) if cond is None else torch.tanh(x) + 0.1 * cond.to(x).reshape(-1, 1, 1, 1)
        return Prediction(eps, (x - level.sigma * eps) / level.alpha)


def test_an_exact_denoiser_gives_the_recursions_rows():
    """Means of 3000 samples within five standard errors of the closed form, at each of six levels.

    The table's std over images gives the error; the recursion takes the true moments, the table those of the 3000
    latents, whose variance differs by sqrt(2 / 3000) / sqrt(effective elements), counted as one more such error.
    """
    count, rng = 3000, np.random.default_rng(3)
    vectors, values = np.linalg.qr(rng.normal(size=(16, 16)))[0], np.geomspace(0.004, 0.6, 16)
    mean, cov = rng.uniform(-0.5, 0.5, 16), (vectors * values) @ vectors.T
    oracle = GaussianOracle(torch.from_numpy(mean).reshape(1, 4, 4), torch.from_numpy(cov))
    images = oracle.sample(count, torch.Generator().manual_seed(0)).float()
    table = measure_latents(oracle, images, PATH, DDIM(), 1, count, batch=1000)
    recursion = GaussianFloors(LinearGaussian(mean, cov), PATH, range(6), DDIM()).rows
    exact = {(row.arm, row.i, row.quantity): row.value for row in recursion}
    compared = 0
    for row in table.itertuples():
        key = ({"free": "gaussian", "forced": "gaussian-forced"}[row.arm], row.i, row.quantity)
        if row.quantity in ("eps_norm", "variance_ratio") and key in exact:
            error = 2**0.5 * 5 * row.std / count**0.5
            assert abs(row.value - exact[key]) < error, key
            compared += 1
    assert compared >= 6


def test_the_table_is_that_of_steps():
    table = measure_latents(Recording(), LATENTS, PATH, Ancestral("fixed-small"), 0, 7, batch=3)
    assert tuple(table.columns) == STEP_COLUMNS
    assert set(table["arm"]) == {"free", "forced"}
    assert set(table.loc[table["arm"] == "free", "n"]) == {7}
    free, forced = (set(table.loc[table["arm"] == arm, "quantity"]) for arm in ("free", "forced"))
    assert free - forced == {"floor_std", "delta_t_floor", "excess_std"}
    assert forced - free == {"x0_bias", "x0_nu", "x0_rmse", "var_conditional"}
    # Of the last, least noisy call: its x0_hat at least must be what it says.
    row = table[(table["arm"] == "forced") & (table["quantity"] == "x0_norm")].iloc[-1]
    assert row["i"] == 0
    assert 0 < row["value"] < 100


def test_nothing_is_clipped():
    """A state of ten standard deviations stays what it is; clipped, x0_hat's norm would be at most sqrt(elements)."""
    table = measure_latents(Recording(), 10 * LATENTS, PATH, DDIM(), 0, 4)
    largest = table.loc[(table["arm"] == "forced") & (table["quantity"] == "x0_norm"), "value"].max()
    assert largest > 3 * (4 * 6 * 5) ** 0.5


@pytest.mark.parametrize("batch", [1, 3, 7, 100])
def test_the_batch_size_changes_nothing_but_rounding(batch):
    """Noise belongs to the sample; the means are float64 sums of the same float32 numbers in another order."""
    tables = [
        measure_latents(Recording(), LATENTS, PATH, Ancestral("fixed-small"), 3, 7, batch=size) for size in (4, batch)
    ]
    pd.testing.assert_frame_equal(*tables, rtol=1e-5, atol=1e-6)


def test_the_seed_decides():
    one, same, other = (measure_latents(Recording(), LATENTS, PATH, DDIM(), seed, 5) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(one, same, check_exact=True)
    assert not np.allclose(one["value"], other["value"], equal_nan=True)


def test_each_sample_keeps_its_condition():
    """Seven samples of three latents in batches of four: sample k has the condition of latent k mod 3."""
    denoiser, cond = Recording(), torch.tensor([5, 6, 7])
    measure_latents(denoiser, LATENTS[:3], PATH, DDIM(), 0, 7, batch=4, cond=cond)
    steps = len(PATH) - 1
    free = denoiser.conds[: 2 * steps]
    assert free[:steps] == [[5, 6, 7, 5]] * steps
    assert free[steps:] == [[6, 7, 5, 6]] * steps
    assert denoiser.conds[2 * steps :] == [[5, 6, 7]] * steps  # forced: as many as there are latents


def test_only_chosen_indices_are_forced_and_recorded():
    denoiser = Recording()
    table = measure_latents(denoiser, LATENTS, PATH, DDIM(), 0, 10, batch=10, indices=[0, 3])
    assert len(denoiser.sizes) == 6 + 2
    assert set(table.loc[table["quantity"] == "variance_ratio", "i"]) == {-1, 2}


def test_two_stage_solvers_have_rows_of_both_calls():
    path = edm_levels(4, 0.01, 20.0)
    table = measure_latents(Recording(), LATENTS, path, Heun(None), 0, 4)
    assert set(table["stage"]) == {0, 1}
    assert np.isfinite(table.loc[table["quantity"] == "var_marginal", "value"]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": LATENTS[0]}, "must be floats"),
        ({"latents": LATENTS.long()}, "must be floats"),
        ({"latents": LATENTS[:1]}, "at least two latents"),
        ({"latents": LATENTS[..., :1]}, "at least 2 high"),
        ({"latents": LATENTS * float("nan")}, "not finite"),
        ({"samples": 1}, "two samples"),
        ({"batch": 0}, "batches of one"),
        ({"cond": torch.zeros(3, dtype=torch.long)}, r"int64 \[10\]"),
        ({"cond": torch.zeros(10)}, r"int64 \[10\]"),
    ],
)
def test_what_cannot_be_measured(change, message):
    arguments = {"latents": LATENTS, "samples": 4} | change
    with pytest.raises(DataError, match=message):
        measure_latents(Recording(), levels=PATH, solver=DDIM(), seed=0, **arguments)
