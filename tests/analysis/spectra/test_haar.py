"""Haar sub-band energies, on images whose energies are known."""

import numpy as np
import pytest
import torch
from synthetic_results import band_arrays, drawn_texts, make_cell

from analysis.output.entries import Output
from analysis.records.load import load_results
from analysis.spectra import haar
from analysis.spectra.haar import analyse, haar_table
from bench.measure.instruments.spectra import haar_energy

SIZE, IMAGES = 8, 400
BANDS = ["LL", "LH", "HL", "HH"]


def images_of(stds, seed):
    """White images whose sub-bands (LL, LH, HL, HH) have given standard deviations, [1, images, H, W]."""
    half = SIZE // 2
    ll, lh, hl, hh = np.random.default_rng(seed).standard_normal((4, IMAGES, half, half)) * np.reshape(
        stds, (4, 1, 1, 1)
    )
    images = np.empty((1, IMAGES, SIZE, SIZE))
    for row, down in ((0, 1), (1, -1)):  # the inverse of one orthonormal step: first letter vertically
        for column, across in ((0, 1), (1, -1)):
            images[0, :, row::2, column::2] = (ll + across * lh + down * hl + down * across * hh) / 2
    return images


def energy(images):
    return np.stack([haar_energy(torch.tensor(level[:, None])).numpy() for level in images])


@pytest.mark.parametrize("band", range(4))
def test_energy_removed_from_a_band_is_recovered(tmp_path, band):
    stds = np.ones(4)
    stds[band] = np.sqrt(0.9)
    arms = {"free/state": stds, "free/x0": 1 / stds, "forced-train/x0": np.ones(4)}
    powers = {name: energy(images_of(s, 10 * band + seed)) for seed, (name, s) in enumerate(arms.items())}
    make_cell(tmp_path, "adm", moments=band_arrays("haar", powers, np.ones(4)))
    table = haar_table(load_results(tmp_path))
    assert table["band"].tolist() == BANDS
    # Means of 400 images x 16 squares of variance 2: standard error sqrt(2 / 6400) = .0177, itself known to about 4 %.
    assert np.allclose(table["state_log_ratio_se"], 0.0177, rtol=0.16)
    injected = np.where(np.arange(4) == band, np.log(0.9), 0)
    assert (np.abs(table["state_log_ratio"] - injected) < 4 * table["state_log_ratio_se"]).all()
    assert (np.abs(table["x0_hat_log_ratio"] + injected) < 4 * table["x0_hat_log_ratio_se"]).all()
    # The injected .105 is six standard errors of .0177, so it is told from nothing.
    assert abs(table["state_log_ratio"][band]) > 2 * table["state_log_ratio_se"][band]


def test_the_figure_has_a_panel_a_band_and_every_model(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    models = [f"model-{number}" for number in range(8)]
    for model in models:
        state = {"free/state": 1 + rng.random((4, 20, 4))}
        make_cell(tmp_path, model, moments=band_arrays("haar", state, np.ones(4), np.ones(4), np.zeros(4)))
    drawn, out = drawn_texts(monkeypatch, haar), Output(tmp_path)
    analyse(load_results(tmp_path), out)
    assert {*BANDS, *models, "t (levels of 4 steps)"} <= set(drawn[0])
    assert [entry.name for entry in out.entries] == ["haar", "haar_ratio"]
    assert "N = 50 samples a seed, 1 seed (0)" in out.entries[1].caption
