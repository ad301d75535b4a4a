import numpy as np
import pandas as pd
import pytest

from bench.suite.registry.names import WEIGHTS
from bench.suite.registry.registry import load_registry
from bench.suite.registry.tuned_constant import TunedConstant, parse_tune, with_constant
from bench.suite.settings import RESERVED_SEEDS, ConfigError
from bench.suite.tuning.outcome import choose, refuse_other, tuned_entry, write_chosen, write_entries

GRID = (0.9, 1.0, 1.1, 1.2, 1.3)


def test_a_grid_has_both_ends():
    assert parse_tune("b=0.99:1.06:15") == TunedConstant("b", tuple(round(0.99 + 0.005 * i, 3) for i in range(15)))
    assert parse_tune(" span = -0.04:0.08:4 ").values == (-0.04, 0.0, 0.04, 0.08)
    assert parse_tune("b=fit") == TunedConstant("b", ())


@pytest.mark.parametrize(
    "text",
    ["", "b", "b=", "=1:2:3", "b=1:2", "b=1:2:3:4", "b=2:1:5", "b=1:1:5", "b=1:2:2", "b=1:2:1.5", "b=1:2:201",
     "b=nan:2:5", "b=1:inf:5", "b=one:2:5", "b=1,2,3", "b=fitted"],
)  # fmt: skip
def test_what_is_no_grid(text):
    with pytest.raises(ConfigError, match="is not NAME=LOW:HIGH:COUNT"):
        parse_tune(text)


def test_values_that_nobody_could_tell_apart():
    with pytest.raises(ConfigError, match="equal to six digits"):
        parse_tune("b=1:1.000001:50")


@pytest.mark.parametrize("lowest", [0.93, 1.0, 1.07, 1.26])
def test_the_vertex_of_a_parabola(lowest):
    assert choose(GRID, [3 * (x - lowest) ** 2 + 5 for x in GRID]) == pytest.approx(lowest, abs=1e-5)  # six digits


@pytest.mark.parametrize(("lowest", "best"), [(0.5, 0.9), (2.0, 1.3)])
def test_a_minimum_outside_the_grid_gives_its_nearest_end(lowest, best):
    assert choose(GRID, [(x - lowest) ** 2 for x in GRID]) == best


def test_only_the_neighbours_of_the_best_point_count():
    """Far away the curve is no parabola: what is added there does not move the vertex."""
    values = np.linspace(0.9, 1.2, 13)
    curve = (values - 1.02) ** 2
    walled = curve + np.where(abs(values - 1.02) > 0.08, 5.0, 0.0)
    assert choose(values, walled) == choose(values, curve) == pytest.approx(1.02, abs=1e-5)


def test_a_hill_gives_the_best_point():
    assert choose(GRID, [-((x - 1.02) ** 2) for x in GRID]) == 1.3


@pytest.fixture
def known():
    return load_registry((), "digits")


def test_variants_share_everything_but_the_constant(known):
    tune = TunedConstant("b", (1.0, 1.02))
    models = tune.variants((known.model("adm-es"),), "ddpm", (10, 20))
    assert [model.name for model in models] == ["adm-es@b=1", "adm-es@b=1.02"]
    for model, b in zip(models, tune.values, strict=True):
        assert [model.scale_at("ddpm", steps) for steps in (10, 15, 20)] == [(b, 0.0)] * 3
        assert model.weights == known.model("adm").weights
    assert tune.seeds((0, 4)) == (RESERVED_SEEDS, RESERVED_SEEDS + 4)


def test_the_span_turns_about_the_mean_divisor(known):
    """b + k (steps - 1) / 2 stays: with b = 1.02 and span .04 the divisors run from 1.00 to 1.04."""
    model = known.model("adm-es").rescaled(1.02, 0.0)
    for steps in (2, 11, 100):
        b, k = with_constant(model, "span", [0.04], "ddpm", [steps]).scale_at("ddpm", steps)
        assert (b, b + k * (steps - 1)) == (pytest.approx(1.0), pytest.approx(1.04))
    assert with_constant(model, "span", [0.1], "ddpm", [1]).scale_at("ddpm", 1) == (1.02, 0.0)  # one step has none


def test_other_constants_of_the_remedy_stay(known):
    model = known.model("adm-dcw")
    changed = with_constant(model, "low", [0.02, 0.01], "ddim", [20, 10])
    assert changed.remedies[0].at("ddim", 10) == {"low": 0.01, "high": 0.0}
    assert changed.remedies[0].at("ddim", 20) == {"low": 0.02, "high": 0.0}
    assert changed.remedies[0].at("ddpm", 20) == model.remedies[0].at("ddpm", 20)


UNKNOWN = [
    ("adm", "b", "it has no remedy; add one"), ("adm-es", "c", "has no constant 'c'; its constants are b, k"),
    ("adm-es-tsr", "k", "belongs to several remedies"), ("adm-dcw", "span", "has no constant 'span'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "constant", "message"), UNKNOWN)
def test_a_constant_that_the_model_does_not_have(known, name, constant, message):
    with pytest.raises(ConfigError, match=message):
        TunedConstant(constant, (1.0, 2.0, 3.0)).prepared(known.model(name))


def written(tmp_path, model, steps, *more):
    """Write a tuned entry of a model and read it back, beside other configurations."""
    (tmp_path / "tuned.toml").write_text(tuned_entry(model, "ddpm", steps))
    return load_registry((*more, tmp_path / "tuned.toml"), "digits").model(f"{model.name}-tuned")


def test_the_k_of_another_remedy_is_no_slope(known, tmp_path):
    model = with_constant(known.model("adm-tsr"), "k", [0.97, 1.03], "ddpm", [10, 50])
    read = written(tmp_path, model, [10, 50])
    assert [read.remedies[0].at("ddpm", steps)["k"] for steps in (10, 50)] == [0.97, 1.03]
    with pytest.raises(ConfigError, match="has no constant 'span'"):
        TunedConstant("span", (0.0, 0.1, 0.2)).prepared(model)


def test_an_entry_is_read_as_it_was_written(known, tmp_path):
    model = with_constant(known.model("adm-ts-es").rescaled(1.0, 0.001), "b", [1.01, 1.03], "ddpm", [10, 50])
    read = written(tmp_path, model, [10, 50])
    assert [remedy.kind for remedy in read.remedies] == ["time-shift", "epsilon-scaling"]
    assert read.weights == model.weights
    for steps, b in ((10, 1.01), (50, 1.03)):
        assert read.scale_at("ddpm", steps) == (b, pytest.approx(0.001, rel=1e-5))
        assert read.remedies[0].at("ddpm", steps) == model.remedies[0].at("ddpm", steps)
    assert read.remedies[1].missing("ddim") == "b"  # constants belong to a sampler


@pytest.fixture
def tuned(command, tmp_path):
    """Tune a constant of digits models, and return the outcome and the run's folder."""

    def call(tune, *more, models="adm-es", steps="3", name="out"):
        out = tmp_path / name
        args = ("--models", models, "--tune", tune, "--steps", steps, "--samples", "66", "--out", out, "--quiet")
        return command(*args, *more), out

    return call


def test_entries_of_any_name_are_read(tmp_path):
    (tmp_path / "c.toml").write_text('[models."mine.v2"]\nbase = "adm"\n')
    model = load_registry((tmp_path / "c.toml",), "digits").model("mine.v2-dcw")
    read = written(tmp_path, model, [10], tmp_path / "c.toml")
    assert read.remedies[0].at("ddpm", 10) == model.remedies[0].at("ddpm", 10)


def test_an_entry_names_the_weights_that_were_tuned(known, tmp_path):
    other = WEIGHTS / "digits" / "adm-gp.safetensors"
    model = known.model("adm-es", other).rescaled(1.02, None)
    read = written(tmp_path, model, [10])
    assert read.weights == other
    assert read.weights_hash != known.model("adm").weights_hash


def test_a_network_without_a_plain_entry_cannot_be_based_on(tmp_path):
    """An entry based on 'mine' would have its correction twice."""
    weights = WEIGHTS / "digits" / "adm.safetensors"
    text = f'[models.mine]\nweights = "{weights}"\ncorrections = [{{ kind = "dcw", low = 0.01 }}]\n'
    (tmp_path / "c.toml").write_text(text + '[models.plain]\nweights = "x"\n[models.on]\nbase = "mine"\n')
    known = load_registry((tmp_path / "c.toml",), "digits")
    for name, constant in (("mine", "low"), ("mine-tsr", "k"), ("on", "low"), ("on-tsr", "k")):
        with pytest.raises(ConfigError, match="has no entry without corrections"):
            TunedConstant(constant, (1.0, 2.0, 3.0)).prepared(known.model(name))


def choices(known, names, constant="b", grid=(1.0, 1.1, 1.2)):
    tune, models = TunedConstant(constant, grid), [known.model(name) for name in names]
    return tune, models, {name: [1.1, 1.05] for name in names}, "ddpm", [10, 20], "by hand"


def test_entries_of_other_models_stay(known, tmp_path):
    write_entries(tmp_path, *choices(known, ["adm-es", "adm-ip-es"]))
    first = load_registry((tmp_path / "tuned.toml",), "digits")
    write_entries(tmp_path, *choices(known, ["adm-es", "adm-wd-es"]))
    read = load_registry((tmp_path / "tuned.toml",), "digits")
    assert set(read.entries) == {"adm-es-tuned", "adm-ip-es-tuned", "adm-wd-es-tuned"}
    assert read.entries["adm-ip-es-tuned"] == first.entries["adm-ip-es-tuned"]


def test_constants_of_other_models_stay_in_the_table(tmp_path):
    rows = pd.DataFrame(
        {"model": ["adm-es", "adm-ip-es"], "sampler": "ddpm", "steps": 10, "parameter": "b", "value": 1.1}
    )
    write_chosen(tmp_path / "chosen.csv", rows)
    write_chosen(tmp_path / "chosen.csv", rows[:1].assign(value=1.2))
    table = pd.read_csv(tmp_path / "chosen.csv")
    assert dict(zip(table["model"], table["value"], strict=True)) == {"adm-es": 1.2, "adm-ip-es": 1.1}


def test_entries_of_another_constant_are_not_lost(known, tmp_path):
    write_entries(tmp_path, *choices(known, ["adm-es"]))
    refuse_other(tmp_path, TunedConstant("b", ()))
    with pytest.raises(ConfigError, match="holds another constant than k"):
        refuse_other(tmp_path, TunedConstant("k", (0.0, 0.1, 0.2)))


@pytest.mark.slow
def test_a_sweep_leaves_curves_and_an_entry(tuned, command):
    outcome, out = tuned("b=0.8:1.2:3", "--seeds", "0-1", models="adm-es,adm-ip-es", steps="3,2")
    assert outcome.code == 0
    table = pd.read_csv(out / "tuning" / "adm-ip-es-ddpm-3-b.csv")
    assert table["value"].tolist() == [0.8, 0.8, 1.0, 1.0, 1.2, 1.2]
    assert (table["seed"].tolist(), set(table["n"])) == ([RESERVED_SEEDS, RESERVED_SEEDS + 1] * 3, {66})
    assert table["distance"].nunique() == 6
    chosen = pd.read_csv(out / "tuning" / "chosen.csv")
    assert chosen[["model", "steps"]].to_numpy().tolist() == [
        ["adm-es", 2], ["adm-es", 3], ["adm-ip-es", 2], ["adm-ip-es", 3]
    ]  # fmt: skip
    assert chosen["value"].between(0.8, 1.2).all()
    again, _ = tuned("b=0.8:1.2:3", "--seeds", "0-1", models="adm-es,adm-ip-es", steps="3,2")
    assert again.code == 0
    pd.testing.assert_frame_equal(pd.read_csv(out / "tuning" / "chosen.csv"), chosen)
    used = ("--config", out / "tuned.toml", "--models", "adm,adm-es-tuned", "--steps", "3", "--dry-run")
    b = chosen.loc[(chosen["model"] == "adm-es") & (chosen["steps"] == 3), "value"].item()
    assert f"eps / ({b:.5g} + 0 i)" in command(*used).out


BAD_GRIDS = [
    ("b", (), "is not NAME=LOW:HIGH:COUNT"),
    ("c=1:2:3", (), "has no constant 'c'"),
    ("b=1:2:3", ("--features", "none"), "--tune compares distances"),
    ("b=-1:1:3", (), "must stay positive"),
    ("b=1:1.1:3", ("--samples", "64"), "65 images a value, not 64"),
    ("b=fit", ("--samples", "66"), "--samples has no effect with --tune b=fit"),
    ("b=1:1.1:3", ("--eps-scale", "1.1"), "--eps-scale has no effect with --tune b"),
]


@pytest.mark.parametrize(("tune", "more", "message"), BAD_GRIDS)
def test_bad_grids_give_one_line(tuned, tune, more, message):
    outcome, out = tuned(tune, *more)
    assert outcome.refused(message)
    assert not out.exists()
