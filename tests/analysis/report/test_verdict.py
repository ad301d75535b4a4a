"""Every number of the verdict's findings, on records made by hand, and a sentence a case."""

import json

import numpy as np
import pandas as pd
import pytest

from analysis.records.load import load_results
from analysis.report.verdict import (
    Level,
    Quality,
    Walks,
    guided_sentence,
    norm_sentence,
    norms,
    quality,
    quality_sentence,
    variance,
    variance_sentence,
    verdict,
)
from bench.suite.settings import short_hash

BASIS = "ddpm, N = 20"


def rows(arm, quantity, values, std=0.1, n=100):
    """Per-step rows of an arm, the first value at the least noisy level."""
    return [[arm, i, 0, 100.0 * i, 0.7, 0.7, n, quantity, value, std] for i, value in enumerate(values)]


def record(cell, *groups):
    """Leave per-step records in a cell."""
    columns = ["arm", "i", "stage", "t", "alpha", "sigma", "n", "quantity", "value", "std"]
    pd.DataFrame([row for group in groups for row in group], columns=columns).to_csv(cell / "steps.csv", index=False)


def of(find, folder):
    return find(load_results(folder.root))


def test_guided_models_are_told_that_their_law_is_another(folder):
    folder.cell("plain")
    assert len(of(verdict, folder)) == 3
    cell = folder.cell("guided")
    facts = json.loads((cell / "metrics.json").read_text())
    about = facts["cell"] | {"guidance": 3.0}
    changed = facts | {"cell": about, "key": short_hash(about), "nfe": 20}
    (cell / "metrics.json").write_text(json.dumps(changed))
    *_, sentence = of(verdict, folder)
    assert sentence == guided_sentence(["guided"])
    assert "of guided away from the data's" in sentence
    (cell / "metrics.json").write_text(json.dumps(changed | {"nfe": 21}))
    assert "nfe is 21 at 10 steps" in load_results(folder.root).problems[0]


# --- quality


def test_what_stands_after_the_correction_is_found(folder, terms):
    for steps, ip, es in ((10, 0.8, 1.3), (20, 1.0, 1.0)):
        for position, (model, level) in enumerate({"adm": 1.0, "ip": ip, "es": es}.items()):
            folder.cell(model, steps, value=0.9 - steps / 100, terms=terms(level, seed=position), probes=False)
    folder.order("adm", "ip", "es")
    finding = of(quality, folder)
    assert (finding.metric, finding.baseline, finding.models, finding.compared) == ("fd_toy", "adm", 3, 4)
    assert (finding.closer, finding.farther, finding.lowest) == ({"ip": [10]}, {"es": [10]}, "0.700, adm at 20 steps")


def test_one_sampler_is_spoken_of_and_the_run_names_the_baseline(folder, terms):
    folder.cell("adm", value=0.1, sampler="ddim", terms=terms(0.5), probes=False)
    for position, model in enumerate(("adm", "ip")):
        folder.cell(model, value=0.5 + position, terms=terms(1.0, seed=position), probes=False)
    folder.order("ip", "adm")
    finding = of(quality, folder)
    assert (finding.baseline, finding.compared, finding.lowest) == ("ip", 1, "0.500, adm at 10 steps")


def test_a_reason_stands_in_the_place_of_a_refused_score(folder, terms):
    for position, model in enumerate(("adm", "ip")):
        folder.cell(model, value=None, terms=terms(1.0, seed=position), probes=False)
    finding = of(quality, folder)
    assert (finding.lowest, finding.reason, finding.compared) == ("", "too few images", 1)


ENDS = "by the paired test with Holm's correction (4 comparisons with adm); the lowest fd is .7 (ddpm, N = 20)."


@pytest.mark.parametrize(
    ("finding", "sentence"),
    [
        (Quality(None), "Which model is best was not measured: no Frechet distance was computed."),
        (
            Quality("fd", "adm", 1, 0, lowest=".5, adm at 10 steps"),
            "Only adm is there, with nothing to compare: the lowest fd is .5, adm at 10 steps (ddpm, N = 20).",
        ),
        (
            Quality("fd", "adm", 2, 0, lowest=".5"),
            "No model shares seeds and step counts with adm for a paired test: the lowest fd is .5 (ddpm, N = 20).",
        ),
        (
            Quality("fd", "adm", 2, 0, reason="too few"),
            "No model shares seeds and step counts with adm for a paired test: no fd could be computed (too few)"
            " (ddpm, N = 20).",
        ),
        (Quality("fd", "adm", 3, 4, lowest=".7"), f"No model is told from the baseline adm {ENDS}"),
        (
            Quality("fd", "adm", 3, 4, {"ip": [10, 20]}, lowest=".7"),
            f"ip at 10 and 20 steps is closer to the data than adm, {ENDS}",
        ),
        (
            Quality("fd", "adm", 3, 4, {"ip": [10], "y": [20]}, {"es": [10]}, ".7"),
            "ip at 10 steps and y at 20 steps are closer to the data than adm and es at 10 steps is farther from the"
            f" data than adm, {ENDS}",
        ),
    ],
)  # fmt: skip
def test_sentences_of_quality(finding, sentence):
    assert quality_sentence(finding, BASIS) == sentence


# --- variance and norms


def test_the_variance_beside_exact_denoisers(folder):
    # Standard error .1 / sqrt(100) = .01. At 10 steps .85 is 5 errors above the exact .80; at 20, .95 is 1 below .96.
    for steps, ratio, exact in ((10, 0.85, 0.80), (20, 0.95, 0.96)):
        cell = folder.cell("adm", steps, probes=False)
        none = rows("gaussian", "variance_ratio", [exact, 1], std=np.nan, n=None)
        record(cell, rows("free", "variance_ratio", [ratio, 1.5]), none)
    finding = of(variance, folder)
    assert finding.images == "100"
    values = [(level.steps, level.value, level.error, level.low) for level in finding.levels["adm"]]
    assert values == [(10, 0.85, pytest.approx(0.01), 0.80), (20, 0.95, pytest.approx(0.01), 0.96)]
    assert [level.outside for level in finding.levels["adm"]] == [1, 0]


def test_a_value_between_the_stand_ins_is_not_outside():
    assert [Level(10, value, 0.01, 0.79, 0.94).outside for value in (0.85, 0.76, 0.97)] == [0, -1, 1]
    assert Level(10, 0.97).outside == 0


def test_seeds_narrow_the_error_and_all_models_are_counted(folder):
    for model, ratio in (("adm", 1.0), ("ip", 0.9)):
        for seed in range(4):
            exact = rows("gaussian", "variance_ratio", [1], std=np.nan, n=None)
            record(folder.cell(model, seed=seed, probes=False), rows("free", "variance_ratio", [ratio]), exact)
    finding = of(variance, folder)
    assert (finding.images, list(finding.levels), len(finding.tested)) == ("400", ["adm", "ip"], 2)
    assert finding.levels["adm"][0].error == pytest.approx(0.005)


def test_norms_over_held_out_images_and_those_of_exact_denoisers(folder):
    cell = folder.cell(probes=False)
    forced = [rows(arm, "eps_norm", [1.0] * 3, n=50) for arm in ("forced-train", "forced-heldout")]
    exact = [rows(arm, "eps_rms", [norm] * 3) for arm, norm in (("gaussian", 1.01), ("gaussian-forced", 1.0))]
    record(cell, rows("free", "eps_norm", [0.9, 1.01, 1.1]), *forced, *exact)
    finding = of(norms, folder)
    assert (finding.forced, finding.images) == ("held-out images", "100 free-running and 50 real images")
    [level] = finding.levels["adm"]
    assert (level.value, level.low, level.high) == pytest.approx((1.01, 1.01, 1.01))


def test_norms_over_training_images_where_nothing_was_held_out(folder):
    cell = folder.cell(probes=False)
    record(cell, rows("free", "eps_norm", [1.1]), rows("forced-train", "eps_norm", [1.0]))
    assert of(norms, folder).forced == "training images"


@pytest.mark.parametrize("arm", ["free", "forced-heldout"])
def test_one_arm_is_no_ratio_and_no_drift(folder, arm):
    record(folder.cell(probes=False), rows(arm, "eps_norm", [1.0]))
    assert of(norms, folder) is None
    assert of(variance, folder) is None


ENDS_AT = "adm ends with 0.850 ± 0.020 at 10 steps{} of the true variance (ddpm, 99 images, ± two standard errors)"


@pytest.mark.parametrize(
    ("level", "start", "end"),
    [
        (Level(10, 0.85, 0.01), ENDS_AT.format(""), "; there is no exact denoiser to tell what few steps alone cause."),
        (
            Level(10, 0.85, 0.01, 0.79, 0.94),
            "The variance of the finished samples lies outside the range of the exact denoisers on the same levels by"
            " more than two standard errors in 0 of 1 pair of model and step count, above it in 0 and below in 0: ",
            ENDS_AT.format(" (exact: 0.790 to 0.940)") + ".",
        ),
        (
            Level(10, 0.85, low=0.8, high=0.8),
            "adm ends with 0.850 at 10 steps (exact: 0.800)",
            "no error to tell what few steps alone cause.",
        ),
    ],
)  # fmt: skip
def test_sentences_of_variance(level, start, end):
    sentence = variance_sentence(Walks({"adm": [level]}, "99"), "ddpm")
    assert sentence.startswith(start)
    assert sentence.endswith(end)


def test_sentences_of_norms():
    levels = [Level(5, 1.1, low=1.0, high=1.02), Level(7, 2.0), Level(10, 1.05, low=1.0, high=1.0)]
    assert norm_sentence(Walks({"adm": levels}, "9 images", "held-out images"), "ddpm") == (
        "The norm of the predicted noise, free running over real noised held-out images, has the median over a walk of"
        " 1.100 at 5 steps (exact: 1.000 to 1.020) and 1.050 at 10 steps (exact: 1.000) for adm (ddpm, 9 images)."
    )
    unknown = norm_sentence(Walks({"adm": [Level(5, 1.1)]}, "9 images", "training images"), "ddim")
    assert unknown.endswith("; no exact denoiser was computed, so what few steps alone cause is unknown.")


def test_nothing_was_measured(folder):
    cell = folder.cell(probes=False)
    (cell / "metrics.json").write_text((cell / "metrics.json").read_text().replace("fd_toy", "other"))
    sentences = verdict(load_results(folder.root))
    assert len(sentences) == 3
    assert all("was not measured" in sentence for sentence in sentences)
