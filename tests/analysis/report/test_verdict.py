"""Every number of the verdict's three sentences, on records made by hand."""

import numpy as np
import pandas as pd
import pytest

from analysis.records.load import load_results
from analysis.report.verdict import norm_sentence, quality_sentence, variance_sentence, verdict

TEST = "the paired kernel test (shared seeds, |z| > 1.96, not corrected for the number of tests)"
ONE_SEED = "ddpm, N = 20 samples a seed, 1 seed (0), so the spread over seeds is unknown"


def rows(arm, quantity, values, std=0.1, n=100):
    """Per-step rows of an arm, the first value at the least noisy level."""
    return [[arm, i, 0, 100.0 * i, 0.7, 0.7, n, quantity, value, std] for i, value in enumerate(values)]


def record(cell, *groups):
    """Leave per-step records in a cell."""
    columns = ["arm", "i", "stage", "t", "alpha", "sigma", "n", "quantity", "value", "std"]
    pd.DataFrame([row for group in groups for row in group], columns=columns).to_csv(cell / "steps.csv", index=False)


def quality(folder):
    return quality_sentence(load_results(folder.root))


def test_the_best_model_and_where_the_test_tells_it_from_the_baseline(folder, terms):
    for steps, ip_level in ((10, 0.8), (20, 1.0)):
        folder.cell("adm", steps, value=0.9 - steps / 100, terms=terms(1.0, seed=1), probes=False)
        folder.cell("ip", steps, value=0.6 - steps / 100, terms=terms(ip_level, seed=2), probes=False)
    assert quality(folder) == (
        f"ip has the lowest fd_toy at 2 of 2 step counts (the lowest of all: 0.400, ip at 20 steps; {ONE_SEED}); {TEST}"
        " tells ip from the baseline adm at 1 of 2 step counts: closer to the data in 1, farther in 0."
    )


def test_a_lower_frechet_distance_that_the_test_contradicts(folder, terms):
    folder.cell("adm", value=0.5, terms=terms(1.0, seed=1), probes=False)
    folder.cell("ip", value=0.4, terms=terms(1.2, seed=2), probes=False)
    assert "at 1 of 1 step count: closer to the data in 0, farther in 1." in quality(folder)


def test_a_lead_that_the_test_cannot_tell_from_the_baseline(folder, terms):
    folder.cell("adm", value=0.5, terms=terms(1.0, seed=1), probes=False)
    folder.cell("ip", value=0.4, terms=terms(1.0, seed=2), probes=False)
    assert quality(folder).endswith(f"{TEST} cannot tell ip from the baseline adm (0 of 1 step count).")


def test_a_baseline_that_leads_is_compared_with_every_other_model(folder, terms):
    for position, (model, level) in enumerate((("a", 1.0), ("b", 1.2), ("c", 1.0))):
        for steps in (10, 20):
            folder.cell(model, steps, value=0.5 + position, terms=terms(level, seed=position), probes=False)
    sentence = quality(folder)
    assert sentence.startswith(
        "a has the lowest fd_toy at 2 of 2 step counts (the lowest of all: 0.500, a at 10 steps;"
    )
    assert sentence.endswith("tells a from b and c in 2 of 4 comparisons: closer to the data in 2, farther in 0.")


def test_models_that_lead_equally_often(folder, terms):
    for position, (model, values) in enumerate({"a": (0.5, 0.5), "b": (0.4, 0.6), "c": (0.6, 0.4)}.items()):
        for steps, value in zip((10, 20), values, strict=True):
            folder.cell(model, steps, value=value, terms=terms(1.0, seed=position), probes=False)
    sentence = quality(folder)
    assert sentence.startswith("b and c share the lead, each with the lowest fd_toy at 1 of 2 step counts")
    assert sentence.endswith("cannot tell b and c from the baseline a (0 of 4 comparisons).")


def test_equal_distances_make_equal_leaders(folder):
    for model in ("adm", "ip"):
        folder.cell(model, value=0.5, probes=False)
    sentence = quality(folder)
    assert sentence.startswith("adm and ip share the lead, each with the lowest fd_toy at 1 of 1 step count")
    assert sentence.endswith("the paired kernel test has no shared seeds to compare models on.")


def test_seeds_are_counted_and_their_spread_is_given(folder):
    for seed in range(3):
        folder.cell("adm", seed=seed, value=1.0 + seed, probes=False)
    folder.cell("ip", value=5.0, probes=False)
    sentence = quality(folder)
    assert "2.000 ± 1.000, adm at 10 steps" in sentence
    assert "3 seeds (0 to 2), 1 to 3 of them a model and step count" in sentence


def test_the_run_names_the_baseline(folder, terms):
    folder.cell("adm", value=0.4, terms=terms(1.0, seed=1), probes=False)
    folder.cell("ip", value=0.5, terms=terms(1.0, seed=2), probes=False)
    folder.order("ip", "adm")
    assert "from the baseline ip" in quality(folder)


def test_one_model_is_compared_with_nothing(folder, terms):
    folder.cell("adm", 10, value=0.5, terms=terms(1.0), probes=False)
    folder.cell("adm", 20, value=0.6, terms=terms(1.0), probes=False)
    assert quality(folder) == (
        f"Only adm was scored, with nothing to compare: its lowest fd_toy is 0.500, adm at 10 steps ({ONE_SEED})."
    )


def test_models_at_different_step_counts_are_not_compared(folder):
    folder.cell("adm", 10, value=0.5, probes=False)
    folder.cell("ip", 20, value=0.4, probes=False)
    assert quality(folder).startswith("No two models were scored at one step count: the lowest fd_toy is 0.400, ip at")


def test_scores_refused_leave_the_test(folder, terms):
    for position, model in enumerate(("adm", "ip")):
        folder.cell(model, value=None, terms=terms(1.0 - position / 5, seed=position), probes=False)
    assert quality(folder) == (
        f"No fd_toy could be computed (too few images); {TEST} tells ip from the baseline adm at 1 of 1 step count:"
        f" closer to the data in 1, farther in 0 ({ONE_SEED})."
    )


def test_nothing_was_measured(folder):
    cell = folder.cell(probes=False)
    (cell / "metrics.json").write_text((cell / "metrics.json").read_text().replace("fd_toy", "other"))
    sentences = verdict(load_results(folder.root))
    assert len(sentences) == 3
    assert all("was not measured" in sentence for sentence in sentences)


def test_one_sampler_is_spoken_of(folder):
    folder.cell("adm", 10, value=0.1, sampler="ddim", probes=False)
    folder.cell("adm", 10, value=0.5, probes=False)
    sentence = quality(folder)
    assert "fd_toy is 0.500" in sentence
    assert "(ddpm, " in sentence


def variance(folder):
    return variance_sentence(load_results(folder.root))


def test_the_variance_beside_that_of_an_exact_denoiser(folder):
    # Standard error .1 / sqrt(100) = .01. At 10 steps .85 is 5 errors above the exact .80; at 20, .95 is 1 below .96.
    for steps, ratio, exact in ((10, 0.85, 0.80), (20, 0.95, 0.96)):
        cell = folder.cell("adm", steps, probes=False)
        none = rows("gaussian", "variance_ratio", [exact, 1], std=np.nan, n=None)
        record(cell, rows("free", "variance_ratio", [ratio, 1.5]), none)
    assert variance(folder) == (
        "The variance of the finished samples differs by more than two standard errors from that of an exact denoiser"
        " (Gaussian data, same levels) in 1 of 2 pairs of model and step count, higher in 1 and lower in 0: adm ends"
        " with 0.850 ± 0.020 at 10 steps (exact denoiser: 0.800) and 0.950 ± 0.020 at 20 steps (exact denoiser: 0.960)"
        " of the true variance (ddpm, 100 images, ± two standard errors)."
    )


def test_seeds_narrow_the_band_and_other_models_are_counted(folder):
    for model, ratio in (("adm", 1.0), ("ip", 0.9)):
        for seed in range(4):
            exact = rows("gaussian", "variance_ratio", [1], std=np.nan, n=None)
            record(folder.cell(model, seed=seed, probes=False), rows("free", "variance_ratio", [ratio]), exact)
    sentence = variance(folder)
    assert (
        "in 1 of 2 pairs of model and step count, higher in 0 and lower in 1: adm ends with 1.000 ± 0.010" in sentence
    )
    assert "400 images" in sentence


def test_the_variance_without_an_exact_denoiser(folder):
    record(folder.cell(probes=False), rows("free", "variance_ratio", [0.85]))
    assert variance(folder) == (
        "adm ends with 0.850 ± 0.020 at 10 steps of the true variance (ddpm, 100 images, ± two standard errors); no"
        " exact denoiser was computed, so what few steps alone cause is unknown."
    )


def test_the_variance_without_errors(folder):
    exact = rows("gaussian", "variance_ratio", [1], std=np.nan, n=None)
    record(folder.cell(probes=False), rows("free", "variance_ratio", [0.85], std=np.nan), exact)
    assert variance(folder).startswith("adm ends with 0.850 at 10 steps (exact denoiser: 1.000) of the true variance")
    assert variance(folder).endswith("without standard errors nothing can be tested.")


def test_variances_of_teacher_forced_states_alone_are_no_drift(folder):
    record(folder.cell(probes=False), rows("forced-train", "variance_ratio", [1.0]))
    assert "was not measured" in variance(folder)


def norms(folder):
    return norm_sentence(load_results(folder.root))


def test_norms_over_held_out_images(folder):
    # The ratio's standard error is near .014 throughout: 1.1 and 1.2 are beyond two of it, .9 below, 1.01 within.
    cell = folder.cell(probes=False)
    groups = [rows(arm, "eps_norm", [1.0] * 4) for arm in ("forced-train", "forced-heldout")]
    record(cell, rows("free", "eps_norm", [0.9, 1.01, 1.1, 1.2]), *groups)
    assert norms(folder) == (
        "The norm of the predicted noise, free running over real noised held-out images, is above 1 by more than two"
        " standard errors at 2 of 4 levels and below at 1 (by chance alone about 2 in 100 each); its median over a walk"
        " is 1.055 at 10 steps for adm (ddpm, 100 free-running and 100 real images)."
    )


def test_norms_over_training_images_where_nothing_was_held_out(folder):
    cell = folder.cell(probes=False)
    record(cell, rows("free", "eps_norm", [1.1]), rows("forced-train", "eps_norm", [1.0], n=50))
    sentence = norms(folder)
    assert "over real noised training images, is above 1 by more than two standard errors at 1 of 1 level" in sentence
    assert "100 free-running and 50 real images" in sentence


def test_norms_of_several_models(folder):
    for model, value in (("adm", 1.1), ("ip", 1.3), ("es", 0.8)):
        for steps in (5, 10):
            free = rows("free", "eps_norm", [value + steps / 1000])
            record(folder.cell(model, steps, probes=False), free, rows("forced-heldout", "eps_norm", [1.0]))
    assert (
        "is 1.105 at 5 steps and 1.110 at 10 steps for adm and over all runs from 0.805 (es, 5 steps) to 1.310 (ip, 10"
        " steps)" in norms(folder)
    )


def test_norms_without_errors(folder):
    cell = folder.cell(probes=False)
    free = rows("free", "eps_norm", [1.1], std=np.nan)
    record(cell, free, rows("forced-heldout", "eps_norm", [1.0], std=np.nan))
    assert "is without standard errors and cannot be tested; its median over a walk is 1.100" in norms(folder)


@pytest.mark.parametrize("arm", ["free", "forced-heldout"])
def test_norms_of_one_arm_are_no_ratio(folder, arm):
    record(folder.cell(probes=False), rows(arm, "eps_norm", [1.0]))
    assert "was not measured" in norms(folder)
