"""Radial spectra, on images whose spectrum is known."""

import numpy as np
import pandas as pd
import pytest
import torch
from synthetic_results import band_arrays, drawn_texts, make_cell

from analysis.output.entries import Output
from analysis.records.load import load_results
from analysis.spectra import radial as spectra
from analysis.spectra.radial import analyse, draw_heat, spectrum_table
from bench.measure.instruments.spectra import RadialBins

SIZE, IMAGES = 8, 400
BINS = RadialBins(SIZE, SIZE)
RINGS = BINS.count


def power(images):
    """Ring power of each image, [levels, images, rings], from [levels, images, H, W]."""
    found = [BINS.density(torch.tensor(level[:, None], dtype=torch.float32)) for level in images]
    return torch.stack(found).double().numpy()


def ring_of():
    rows = np.fft.fftfreq(SIZE, 1 / SIZE)
    return np.floor(np.hypot(rows[:, None], rows[None]) + 0.5).astype(int)


def filtered(images, gain):
    """Multiply the amplitude of each ring by its gain."""
    return np.fft.ifft2(np.fft.fft2(images) * np.asarray(gain)[ring_of()]).real


def white(seed, levels=1, images=IMAGES):
    return np.random.default_rng(seed).standard_normal((levels, images, SIZE, SIZE))


def test_white_noise_has_power_one_in_every_ring(tmp_path):
    make_cell(tmp_path, "adm", moments=band_arrays("spectrum", {"free/state": power(white(0))}, np.ones(RINGS)))
    table = spectrum_table(load_results(tmp_path))
    # The mean over a ring of m frequencies has m degrees of freedom, for u and -u are one: variance 2 / m of one image.
    members = np.bincount(ring_of().ravel())
    exact = np.sqrt(2 / members / IMAGES)
    assert (np.abs(np.log(table["state"])) < 4 * exact).all()
    assert (table["state_log_ratio"].abs() < 4 * table["state_log_ratio_se"]).all()
    # Relative error of a standard error: sqrt((kurtosis - 1) / N) / 2, chi-square's kurtosis being 3 + 12 / m.
    assert (np.abs(table["state_log_ratio_se"] / exact - 1) < 4 * np.sqrt((2 + 12 / members) / IMAGES) / 2).all()
    assert (table["n"] == IMAGES).all()
    assert (table["n_forced"] == IMAGES).all()


def test_noised_images_have_the_closed_form(tmp_path):
    alpha, sigma = np.array([1.0, 0.6, 0.1]), np.array([0.0, 0.8, 0.99])
    gain = np.linspace(2, 0.2, RINGS)
    x0 = filtered(white(0, 3), gain)
    state = alpha[:, None, None, None] * x0 + sigma[:, None, None, None] * white(1, 3)
    make_cell(
        tmp_path, "adm", moments=band_arrays("spectrum", {"free/state": power(state)}, gain**2, alpha, sigma)
    )  # fmt: skip
    table = spectrum_table(load_results(tmp_path))
    assert (table["state_log_ratio"].abs() < 4 * table["state_log_ratio_se"]).all()
    assert table["state_log_ratio_se"].max() < 0.08  # so that a missing alpha^2 or sigma^2 would show


@pytest.mark.parametrize("ring", [0, 3, 6])
def test_power_removed_from_a_ring_is_recovered(tmp_path, ring):
    gain = np.ones(RINGS)
    gain[ring] = np.sqrt(0.7)
    state = power(filtered(white(ring), gain))
    x0 = {"free/x0": power(filtered(white(7), 1 / gain)), "forced-train/x0": power(white(8))}
    make_cell(tmp_path, "adm", moments=band_arrays("spectrum", {"free/state": state} | x0, np.ones(RINGS)))
    table = spectrum_table(load_results(tmp_path)).set_index("frequency")
    injected = np.where(np.arange(RINGS) == ring, np.log(0.7), 0)
    assert (np.abs(table["state_log_ratio"] - injected) < 4 * table["state_log_ratio_se"]).all()
    assert (np.abs(table["x0_hat_log_ratio"] + injected) < 4 * table["x0_hat_log_ratio_se"]).all()
    # Both x0 powers are those of as much white noise, so the errors of their ratio are sqrt(2) times one's.
    assert np.allclose(table["x0_hat_log_ratio_se"] / table["state_log_ratio_se"], np.sqrt(2), rtol=0.4)


def test_seeds_are_more_samples_but_not_more_forced_images(tmp_path):
    everything = {name: power(white(position)) for position, name in enumerate(("free/state", "free/x0"))}
    forced = power(white(9))
    for seed, part in enumerate((slice(0, 100), slice(100, IMAGES))):
        arms = {name: array[:, part] for name, array in everything.items()} | {"forced-train/x0": forced}
        make_cell(tmp_path, "adm", seed, moments=band_arrays("spectrum", arms, np.ones(RINGS)))
    table = spectrum_table(load_results(tmp_path))
    errors = {name: array[0].std(0, ddof=1) / array[0].mean(0) / np.sqrt(IMAGES) for name, array in everything.items()}
    assert len(table) == RINGS
    assert np.allclose(table["state"], everything["free/state"][0].mean(0), rtol=1e-12)
    assert np.allclose(table["state_log_ratio_se"], errors["free/state"], rtol=1e-9)
    once = forced[0].std(0) / forced[0].mean(0) / np.sqrt(IMAGES)
    # The pooled variance of twice the same images divides by 2 N - 1, not by 2 (N - 1): a relative 1 / (4 N).
    assert np.allclose(table["x0_hat_log_ratio_se"], np.hypot(errors["free/x0"], once), rtol=1 / IMAGES)
    assert (table["n_forced"] == IMAGES).all()


def test_an_empty_ring_has_no_ratio(tmp_path):
    state = np.ones((1, 10, 3))
    state[..., 1] = 0
    make_cell(tmp_path, "adm", moments=band_arrays("spectrum", {"free/state": state}, np.array([1.0, 0.0, 2.0])))
    table = spectrum_table(load_results(tmp_path))
    assert table["state_log_ratio"].isna().tolist() == [False, True, False]
    assert np.allclose(table["state_log_ratio"][[0, 2]], [0, -np.log(2)])


DAMAGE = [
    ("free/spectrum_state/mean", np.ones((1, 4))), ("free/spectrum_x0/second", np.full((1, 3), np.nan)),
    ("forced-train/spectrum_x0/mean", -np.ones((1, 3))), ("alpha_next", np.ones(2)),
    ("data/spectrum", np.array(["a", "b", "c"])),
]  # fmt: skip


@pytest.mark.parametrize(("name", "wrong"), DAMAGE)
def test_damaged_records_are_left_out_and_named(tmp_path, name, wrong):
    sound = band_arrays("spectrum", {"free/state": np.ones((1, 10, 3))}, np.ones(3))
    make_cell(tmp_path, "adm", 0, moments=sound)
    make_cell(tmp_path, "adm", 1, moments=sound | {name: wrong})
    results = load_results(tmp_path)
    assert (spectrum_table(results)["n"] == 10).all()
    (problem,) = results.problems
    assert "adm-ddpm-4-seed1" in problem
    assert "moments.npz" in problem


def spectra_of(images, levels=4):
    return band_arrays(
        "spectrum", {"free/state": images}, np.array([5.0, 2.0, 0.5]), np.ones(levels), np.zeros(levels)
    )  # fmt: skip


def test_figures_show_eight_models(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    models = [f"model-{number}" for number in range(8)]
    for model in models:
        make_cell(tmp_path, model, moments=spectra_of(1 + rng.random((4, 20, 3))))
    drawn, out = drawn_texts(monkeypatch, spectra), Output(tmp_path)
    analyse(load_results(tmp_path), out)
    assert [entry.name for entry in out.entries] == [
        "spectra", "sample_spectrum", "spectrum_curves", "spectrum_ratio", "x0_spectrum_ratio"
    ]  # fmt: skip
    assert all(set(models) <= set(said) for said in drawn)


@pytest.mark.parametrize("levels", [1, 2, 50])
def test_figures_of_very_few_steps_and_the_table_of_many(tmp_path, monkeypatch, levels):
    rng = np.random.default_rng(0)
    make_cell(tmp_path, "adm", steps=levels, moments=spectra_of(1 + rng.random((levels, 20, 3)), levels))
    results, out, drawn = load_results(tmp_path), Output(tmp_path), drawn_texts(monkeypatch, spectra)
    analyse(results, out)
    assert (len(drawn), results.problems) == (4, [])
    table = out.entries[0].frame
    assert len(table) == min(levels, 12) * 3
    assert {0, levels - 1} <= set(table["i"])  # the last among them


def test_heat_greys_what_is_within_two_standard_errors(tmp_path, monkeypatch):
    # Powers 2 +- 1 of 100 images: standard error .05 of the logarithm. Ring 0 has .04 too much, ring 1 has .2 too much.
    pair = np.tile([1.0, 3.0], 50)
    images = np.repeat(pair[None, :, None], 2, axis=2)
    data = np.array([2 / np.exp(0.04), 2 / np.exp(0.2)])
    make_cell(tmp_path, "adm", moments=band_arrays("spectrum", {"free/state": images}, data, [1.0], [0.0]))
    meshes = []
    monkeypatch.setattr(spectra, "save", lambda figure, *args: meshes.append(figure.axes[0].collections[0].get_array()))
    draw_heat(spectrum_table(load_results(tmp_path)), "state", tmp_path, "heat")
    assert (np.ma.getmaskarray(meshes[0]).ravel().tolist(), meshes[0].ravel()[1]) == ([True, False], pytest.approx(0.2))


@pytest.mark.parametrize("counts", [{"ddim": 4, "ddpm": 8}, {"ddim": 8, "ddpm": 4}])
def test_figures_take_the_ancestral_sampler_then_the_most_steps(tmp_path, monkeypatch, counts):
    rng = np.random.default_rng(0)
    for sampler, steps in (*counts.items(), ("ddpm", 2)):
        make_cell(tmp_path, "adm", 0, sampler, steps, moments=spectra_of(1 + rng.random((4, 20, 3))))
    drawn, out = drawn_texts(monkeypatch, spectra), Output(tmp_path)
    analyse(load_results(tmp_path), out)
    for said in drawn:
        assert not any(f"{counts['ddim']} steps" in text for text in said)
    assert sum(f"t (levels of {counts['ddpm']} steps)" in said for said in drawn) == 2
    assert {"2 steps", f"{counts['ddpm']} steps"} <= set(drawn[0])


def test_exact_denoisers_stand_beside_the_models(tmp_path, make_record):
    made = band_arrays("spectrum", {"free/state": power(white(0))}, np.ones(RINGS))
    make_cell(tmp_path, "adm", moments=made)
    energies = {"gaussian/spectrum_state": 2.0, "gaussian/spectrum_x0": 3.0, "gaussian-forced/spectrum_x0": 6.0}
    folder = tmp_path / "exact" / "cosine"
    folder.mkdir(parents=True)
    arrays = {name: np.full((1, RINGS), value) for name, value in energies.items()}
    np.savez(folder / "spectra.npz", i=np.array([0]), **arrays)
    rows = pd.DataFrame(columns=["arm", "i", "stage", "t", "alpha", "sigma", "n", "quantity", "value", "std", "note"])
    make_record(folder, "exact", rows, sampler="ddpm", steps=4)
    table = spectrum_table(load_results(tmp_path))
    assert table["state_exact_gaussian"].to_numpy() == pytest.approx(np.log(2))  # the truth is 1
    assert table["x0_hat_exact_gaussian"].to_numpy() == pytest.approx(np.log(0.5))
    assert not any(name.startswith("gaussian") or name == "truth" for name in table)
    make_record(folder, "exact", rows, sampler="ddim", steps=4)  # of other walks
    assert "state_exact_gaussian" not in spectrum_table(load_results(tmp_path))
