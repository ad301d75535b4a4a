import numpy as np
import pytest
from scipy import stats
from synthetic_results import assert_figures

from analysis.comparison.trainings import analyse, training_of, trainings_sentence, trainings_table, welch
from analysis.output.entries import Output
from analysis.records.load import load_results


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        ("adm", ("adm", 1)), ("adm-t2", ("adm", 2)), ("adm-ip-t12", ("adm-ip", 12)), ("adm-t3-es", ("adm-es", 3)),
        ("adm-ip-t", ("adm-ip-t", 1)), ("adm-ip-t-t2", ("adm-ip-t", 2)), ("adm-t1", ("adm-t1", 1)),
        ("adm-ts", ("adm-ts", 1)), ("t2", ("t2", 1)),
    ],
)  # fmt: skip
def test_names(model, wanted):
    assert training_of(model) == wanted


def test_welch_is_scipys():
    rng = np.random.default_rng(0)
    first, second = rng.normal(1, 1, 3), rng.normal(0, 3, 5)
    found, wanted = welch(first, second), stats.ttest_ind(first, second, equal_var=False)
    assert (found["t"], found["p"], found["freedom"]) == pytest.approx((wanted.statistic, wanted.pvalue, wanted.df))
    assert "p" not in welch(np.ones(3), np.ones(3))  # no spread, no test


def test_the_detectable_difference_is_seen_four_times_in_five():
    rng = np.random.default_rng(0)
    error = (2 / 4) ** 0.5  # of the difference of two means of four
    shift = (stats.t.ppf(0.975, 6) + stats.t.ppf(0.8, 6)) * error
    seen = [welch(rng.normal(shift, 1, 4), rng.normal(0, 1, 4))["p"] < 0.05 for _ in range(1000)]
    assert np.mean(seen) == pytest.approx(0.8, abs=0.05)


def made(folder, trainings, shift=0.0):
    """Two recipes, each with so many trainings of spread .1, on three seeds of spread .01."""
    rng = np.random.default_rng(1)
    for recipe, number in trainings.items():
        for training in range(1, number + 1):
            name, level = recipe if training == 1 else f"{recipe}-t{training}", 1 + 0.1 * rng.normal()
            for seed in range(3):
                value = level + 0.01 * rng.normal() + shift * (recipe == "adm-ip")
                folder.cell(name, 10, seed, value, probes=False)
    return load_results(folder.root)


def test_spread_and_test_by_hand(folder):
    results = made(folder, {"adm": 3, "adm-ip": 4}, shift=-2)
    table = trainings_table(results).set_index(["model", "other"])
    scores = results.metrics[results.metrics["metric"] == "fd_toy"].astype({"value": float})
    means = scores.groupby("model")["value"].mean()
    ours, theirs = (means[[training_of(m)[0] == recipe for m in means.index]] for recipe in ("adm-ip", "adm"))
    own, pair = table.loc["adm", ""], table.loc["adm-ip", "adm"]
    assert (own["trainings"], own["seeds"], own["verdict"]) == (3, 3, "")
    assert own["sd_trainings"] == pytest.approx(theirs.std())
    spread = scores[scores["model"].str.fullmatch("adm(-t.)?")].groupby("model")["value"].std().mean()
    assert own["sd_seeds"] == pytest.approx(spread)
    assert pair["t"] == pytest.approx(stats.ttest_ind(ours, theirs, equal_var=False).statistic)
    assert (pair["trainings"], pair["other_trainings"], pair["verdict"]) == (4, 3, "win")
    assert pair["p_holm"] == pair["p"]  # the only test
    both = stats.ttest_rel(ours[:3], theirs)  # the fourth training has no partner
    assert (pair["paired_t"], pair["paired_p"]) == pytest.approx((both.statistic, both.pvalue))
    assert pair["paired_detectable"] == pytest.approx((4.30265 + 1.06066) * pair["paired_error"])  # t of .975, .8 at 2
    assert "adm-ip is closer than adm at 10 steps" in trainings_sentence(table.reset_index())


def test_fewer_than_three_a_side_is_one_training(folder):
    table = trainings_table(made(folder, {"adm": 3, "adm-ip": 2}))
    [pair] = table[table["other"] != ""].to_dict("records")
    assert (pair["verdict"], np.isnan(pair["p"])) == ("in one training", True)
    assert trainings_sentence(table).startswith("1 of 1 comparisons hold in one training only")


def test_without_a_second_training_there_is_no_table(folder):
    assert trainings_table(made(folder, {"adm": 1, "adm-ip": 1})).empty


def test_noise_is_no_difference_of_recipes(folder):
    """Trainings of one law: a test over samples of these would reject, with errors of .006 beside a spread of .1."""
    results, out = made(folder, {"adm": 3, "adm-ip": 3}), Output(folder.root)
    analyse(results, out)
    assert set(out.entries[0].frame["verdict"]) == {"", "tie"}
    assert "No recipe differs from another over trainings" in out.entries[0].caption
    assert [entry.name for entry in out.entries] == ["trainings", "trainings"]
    assert_figures(sorted(out.figures.glob("*"), reverse=True), "trainings")
    assert (out.tables / "trainings.csv").exists()
