import csv
import tomllib

import numpy as np
import pytest

from bench.diffusion.corrections import EpsilonScaling
from bench.suite import tune
from bench.suite.config import RESERVED_SEEDS
from bench.suite.registry import load_registry
from bench.suite.scaling import Scaling
from bench.suite.tune import Sweep, main, vertex

GRID = (0.9, 1.0, 1.1, 1.2)
POINTS = 5 + 4  # of b and of the span, at each step count


@pytest.mark.parametrize("lowest", [0.93, 1.0, 1.17])
def test_vertex_of_a_parabola(lowest):
    values = [3 * (x - lowest) ** 2 + 5 for x in GRID]
    assert vertex(GRID, values) == pytest.approx(lowest, rel=1e-9)


@pytest.mark.parametrize(("lowest", "best"), [(0.5, 0.9), (2.0, 1.2)])
def test_a_minimum_outside_the_grid_gives_its_nearest_end(lowest, best):
    assert vertex(GRID, [(x - lowest) ** 2 for x in GRID]) == best


def test_a_maximum_gives_the_best_point():
    assert vertex(GRID, [-((x - 1.02) ** 2) for x in GRID]) == 1.2


@pytest.fixture
def shrinking_sweep(shrink):
    """A sweep of DDIM whose denoiser costs nothing."""
    sweep = Sweep(load_registry(None, "digits").model("adm"), "ddim", samples=70)
    sweep.denoiser = shrink()
    return sweep


def test_distances_repeat_and_feel_the_constants(shrinking_sweep):
    distance = shrinking_sweep.distance
    assert distance(3, 1.0, 0.0) == distance(3, 1.0, 0.0) > 0
    assert distance(3, 1.0, 0.0) != distance(3, 1.5, 0.0)
    assert distance(3, 1.5, 0.0) != distance(3, 1.5, 0.5)


@pytest.mark.parametrize(("steps", "slope"), [(1, 0.2), (2, 0.2), (5, 0.05)])
def test_the_span_is_the_rise_over_all_steps(shrinking_sweep, monkeypatch, steps, slope):
    seen = []
    monkeypatch.setattr(tune, "EpsilonScaling", lambda path, b, k: seen.append((b, k)) or EpsilonScaling(path, b, k))
    assert np.isfinite(shrinking_sweep.distance(steps, 1.1, 0.2))
    assert seen == [(1.1, pytest.approx(slope))]


def test_tuning_draws_from_reserved_seeds(shrinking_sweep, monkeypatch):
    seeds = []
    real = tune.Noise
    monkeypatch.setattr(tune, "Noise", lambda seed: seeds.append(seed) or real(seed))
    shrinking_sweep.distance(1, 1.0, 0.0)
    assert seeds
    assert min(seeds) >= RESERVED_SEEDS


def test_the_sweep_prints_tables_for_scaling_toml(tmp_path, capsys):
    out = tmp_path / "tuning.csv"
    assert main(["--steps", "2,3", "--samples", "70", "--sampler", "ddim", "--out", str(out)]) == 0
    tables = tomllib.loads(capsys.readouterr().out)["digits"]
    assert set(tables) == {"adm-es", "adm-es-linear"}
    for table in tables.values():
        row = table["ddim"]
        Scaling(tuple(row["steps"]), tuple(row["b"]), tuple(row["span"])).at(50)
        assert row["steps"] == [2, 3]
    uniform, linear = tables["adm-es"]["ddim"], tables["adm-es-linear"]["ddim"]
    assert uniform["span"] == [0.0, 0.0]
    for b, start, span in zip(uniform["b"], linear["b"], linear["span"], strict=True):
        assert start + span / 2 == pytest.approx(b, abs=2e-4)  # constants are rounded to four digits
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * POINTS
    assert list(rows[0]) == ["model", "sampler", "steps", "b", "span", "n", "fd_digits"]


@pytest.mark.parametrize("sampler", ["heun", "euler"])
def test_of_an_edm_model_the_uniform_divisor_alone_is_swept(tmp_path, capsys, sampler):
    out = tmp_path / "tuning.csv"
    assert main(["--steps", "2", "--samples", "70", "--sampler", sampler, "--out", str(out)]) == 0
    assert set(tomllib.loads(capsys.readouterr().out)["digits"]) == {"edm-es"}
    with out.open() as file:
        assert {(row["model"], row["sampler"]) for row in csv.DictReader(file)} == {("edm-es", sampler)}


def test_an_interrupted_sweep_keeps_what_it_measured(tmp_path, monkeypatch):
    out, values = tmp_path / "tuning.csv", iter([float(k) for k in range(POINTS)])

    def distance(self, *args):
        value = next(values, None)
        if value is None:
            assert len(out.read_text().splitlines()) == 1 + POINTS  # on the disk before the next point is begun
            raise KeyboardInterrupt
        return value

    monkeypatch.setattr(Sweep, "distance", distance)
    with pytest.raises(KeyboardInterrupt):
        main(["--steps", "2,3", "--samples", "70", "--out", str(out)])
    assert len(out.read_text().splitlines()) == 1 + POINTS


def test_a_second_sweep_appends(tmp_path, capsys):
    out = tmp_path / "tuning.csv"
    for _ in range(2):
        main(["--steps", "1", "--samples", "66", "--out", str(out)])
    lines = out.read_text().splitlines()
    assert len(lines) == 1 + 2 * POINTS
    assert lines[1 : 1 + POINTS] == lines[1 + POINTS :]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--steps", "0"], "not positive"),
        (["--steps", "5000"], "between 1 and 1000"),
        (["--base", "admm"], "unknown model"),
        (["--sampler", "heun", "--base", "adm"], "does not go with model 'adm'"),
        (["--sampler", "ddpm", "--base", "edm"], "does not go with model 'edm'"),
        (["--samples", "0"], "--samples must be positive"),
    ],
)
def test_bad_arguments_give_one_line(tmp_path, capsys, args, message):
    assert main([*args, "--out", str(tmp_path / "t.csv")]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert message in captured.err
    assert not (tmp_path / "t.csv").exists()


def test_the_baseline_is_tunable():
    assert load_registry(None, "digits").model("adm").scaling == {}
