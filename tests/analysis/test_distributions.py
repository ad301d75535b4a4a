"""Normality of errors, spectra and pairs, on records made by hand whose answer is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from made import make_cell
from matplotlib.text import Text
from PIL import Image

from analysis import normality, pairs, spectra
from analysis.load import load_results
from analysis.normality import benjamini_hochberg, draw_normality, level_statistics, normality_table, power_table
from analysis.pairs import draw_pairs, pairs_table
from analysis.regenerate import regenerate
from analysis.select import first_sampler
from analysis.spectra import draw_spectra, spectrum_table
from analysis.style import save


def errors_of(draw, images=200):
    errors = draw((2, images, 1, 8, 8)).astype(np.float32)
    return {"errors": errors, "i": np.array([0, 3]), "t": np.array([0.0, 999.0]), "part": np.array(["train"] * images)}


def test_gaussian_errors_are_rejected_at_the_level(tmp_path):
    rng = np.random.default_rng(0)
    make_cell(tmp_path, "adm", errors=errors_of(lambda size: 0.3 * rng.standard_normal(size)))
    table = normality_table(load_results(tmp_path))
    # 64 independent pixels at level .05: standard error sqrt(.05 * .95 / 64) = .027; four of them. Kurtosis: over 64
    # pixels of 200 images sqrt(24 / 200 / 64) = .043, bias -6 / 200 = -.03. nu: .3 / sqrt(2 * 200 * 64) = .002.
    assert (table["rejected"] < 0.05 + 0.11).all()
    assert (table["rejected_fdr"] < 0.05).all()
    assert (table["excess_kurtosis"].abs() < 0.03 + 4 * 0.043).all()
    assert (table["nu"] - 0.3).abs().max() < 0.008
    assert table["t"].tolist() == [0.0, 999.0]


def test_laplace_errors_are_found_out(tmp_path):
    rng = np.random.default_rng(0)
    make_cell(tmp_path, "adm", errors=errors_of(lambda size: rng.laplace(size=size)))
    table = normality_table(load_results(tmp_path))
    assert (table["rejected"] > 0.9).all()  # the power at n = 200 is above .98
    assert (table["excess_kurtosis"] > 1).all()  # 3 in the limit


def test_constant_pixels_are_left_out_and_counted():
    errors = np.random.default_rng(0).standard_normal((50, 1, 2, 2))
    errors[:, 0, 0, 0] = 0.25
    found = level_statistics(errors)
    assert (found["pixels"], found["constant_pixels"]) == (3, 1)
    assert np.isnan(level_statistics(np.zeros((50, 1, 2, 2)))["rejected"])


def test_benjamini_hochberg_on_the_authors_own_example():
    # Benjamini & Hochberg 1995, section 3.2: fifteen p-values, of which the procedure rejects the first four.
    p = [
        0.0001,
        0.0004,
        0.0019,
        0.0095,
        0.0201,
        0.0278,
        0.0298,
        0.0344,
        0.0459,
        0.3240,
        0.4262,
        0.5719,
        0.6528,
        0.7590,
        1,
    ]
    assert benjamini_hochberg(np.array(p)).tolist() == [True] * 4 + [False] * 11
    assert not len(benjamini_hochberg(np.zeros(0)))


def test_power_table_knows_normal_from_heavy_tails():
    table = power_table(50).set_index("distribution")["rejected"]
    # Shares of 2000 draws: standard error at most .011.
    assert abs(table["normal"] - 0.05) < 0.02
    assert table["normal"] < table["logistic"] < table["Laplace"]


def moments_of(data, x0=1.0):
    alpha, sigma = np.array([1.0, 0.6]), np.array([0.0, 0.8])
    return {
        "i": np.array([0, 3]),
        "t": np.array([0.0, 999.0]),
        "alpha_next": alpha,
        "sigma_next": sigma,
        "data/spectrum": data,
        "free/spectrum_state/mean": 1.1 * (alpha[:, None] ** 2 * data + sigma[:, None] ** 2),
        "free/spectrum_x0/mean": np.tile(x0 * data, (2, 1)),
        "forced-train/spectrum_x0/mean": np.tile(data, (2, 1)),
    }


def test_spectral_ratios_are_those_put_in(tmp_path):
    make_cell(tmp_path, "adm", moments=moments_of(np.array([5.0, 2.0, 0.5]), x0=0.5))
    table = spectrum_table(load_results(tmp_path))
    assert np.allclose(table["state_log_ratio"], np.log(1.1), atol=1e-12)
    assert np.allclose(table["x0_hat_log_ratio"], np.log(0.5), atol=1e-12)
    assert table["frequency"].max() == 2


@pytest.fixture
def two_models(tmp_path):
    rng = np.random.default_rng(0)
    for model, shift in (("adm", 0.0), ("adm-ip", 0.5)):
        terms = np.stack([1 + 0.1 * rng.standard_normal(300), 1 + shift + 0.1 * rng.standard_normal(300)], axis=1)
        make_cell(tmp_path, model, kernel=terms, moments=moments_of(np.array([5.0, 2.0])), errors=errors_of(rng.random))
    return load_results(tmp_path)


def test_pairs_are_antisymmetric_and_find_the_closer_model(two_models):
    table = pairs_table(two_models).set_index(["model", "other"])
    assert table.loc[("adm-ip", "adm"), "verdict"] == "win"  # larger cross terms: closer to the reference
    assert table.loc[("adm", "adm-ip"), "verdict"] == "loss"
    assert table.loc[("adm", "adm-ip"), "z"] == -table.loc[("adm-ip", "adm"), "z"]


def test_figures_are_drawn(two_models, tmp_path):
    paths = draw_normality(normality_table(two_models), power_table(100), tmp_path)
    paths += draw_spectra(spectrum_table(two_models), tmp_path)
    paths += draw_pairs(pairs_table(two_models), tmp_path)
    assert [path.suffix for path in paths] == [".png", ".pdf"] * 3
    for path in paths[::2]:
        with Image.open(path) as image:
            assert min(image.size) > 200


@pytest.mark.parametrize("counts", [{"ddim": 4, "ddpm": 8}, {"ddim": 8, "ddpm": 4}])
def test_figures_take_the_ancestral_sampler_then_the_most_steps(tmp_path, monkeypatch, counts):
    rng = np.random.default_rng(0)
    for model in ("adm", "adm-ip"):
        for sampler, steps in (*counts.items(), ("ddpm", 2)):
            records = {"moments": moments_of(np.array([5.0, 2.0])), "errors": errors_of(rng.random)}
            make_cell(tmp_path, model, 0, sampler, steps, kernel=1 + rng.random((50, 2)), **records)
    results, drawn = load_results(tmp_path), []
    for module in (normality, pairs, spectra):
        monkeypatch.setattr(module, "save", lambda figure, *args: drawn.append(texts(figure)) or save(figure, *args))
    draw_normality(normality_table(results), power_table(20), tmp_path)
    draw_spectra(spectrum_table(results), tmp_path)
    draw_pairs(pairs_table(results), tmp_path)
    for said in drawn[:2]:
        assert f"t (levels of {counts['ddpm']} steps)" in said
    assert {"2 steps", f"{counts['ddpm']} steps"} <= set(drawn[2])
    assert f"{counts['ddim']} steps" not in drawn[2]
    assert any("Paired kernel test, ddpm" in text for text in drawn[2])
    assert regenerate(tmp_path).problems == []
    assert {path.stem for path in (tmp_path / "figures").iterdir()} >= {
        "error_normality", "spectrum_ratio", "win_tie_loss"
    }  # fmt: skip


def texts(figure):
    """Return every text of a figure."""
    return [text.get_text() for text in figure.findobj(Text)]


def test_the_first_sampler_is_the_ancestral_one():
    both = pd.DataFrame({"sampler": ["ddim", "ddpm", "ddim"], "steps": [4, 8, 9]})
    table, sampler = first_sampler(both)
    assert (table["steps"].tolist(), sampler) == ([8], "ddpm")
    table, sampler = first_sampler(both[both["sampler"] == "ddim"])
    assert (table["steps"].tolist(), sampler) == ([4, 9], "ddim")


def test_a_folder_without_records_gives_empty_tables(tmp_path):
    make_cell(tmp_path, "adm")
    results = load_results(tmp_path)
    assert normality_table(results).empty
    assert spectrum_table(results).empty
    assert pairs_table(results).empty
