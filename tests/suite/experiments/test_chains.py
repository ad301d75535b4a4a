"""Chains from the plan to their records, with cheap denoisers that count what they are asked."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from bench.data import Dataset, to_unit
from bench.diffusion.solvers import DDIM, Ancestral, PosteriorMean
from bench.diffusion.types import Prediction
from bench.measure.features.extractors import Extractor
from bench.measure.instruments.chains import CHAIN_COLUMNS
from bench.models.denoisers.oracles import GaussianOracle
from bench.models.interface import Description
from bench.suite.cells.walks import RunError
from bench.suite.experiments.chains import METHODS, ChainBaselines, chain_lengths, plan_chains
from bench.suite.registry.constants import Constants
from bench.suite.registry.model import Model
from bench.suite.registry.remedies import Remedy
from bench.suite.settings import ConfigError

SIGMAS = 5  # standard errors allowed
NETWORK = {"in_channels": 1, "out_channels": 2}


def toy(T=20, name="toy", scaling=None, network=NETWORK):
    remedies = (Remedy("epsilon-scaling", scaling),) if scaling else ()
    return Model(name, Path("toy.safetensors"), Description(network, T=T), remedies)


@pytest.fixture
def plan(make_cell):
    """Return a function that plans chains and gives (baselines, chains by method and length)."""

    def make(**changes):
        first, *rest = plan_chains([make_cell(**{"model": toy(), "samples": 6, **changes})])
        return first, {(chain.method, chain.length): chain for chain in rest}

    return make


def record(chain, root):
    return pd.read_csv(chain.folders(root)[0].path / "record.csv")


def value(table, quantity, **where):
    rows = table[(table["quantity"] == quantity) & np.logical_and.reduce([table[k] == v for k, v in where.items()])]
    return rows.squeeze()


# --- the plan ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("T", "lengths"), [(1000, (100, 300, 600, 900, 1000)), (20, (2, 6, 12, 18, 20)), (4, (1, 2, 4)), (1, (1,))]
)
def test_lengths_are_shares_of_the_training_process(T, lengths):
    assert chain_lengths(T) == lengths


def test_a_chain_of_length_L_starts_at_index_L_minus_1_and_visits_every_index(plan):
    baselines, chains = plan(samples=1000)
    assert baselines.n == 42  # at most the training images
    assert set(chains) == {(method, length) for method in METHODS for length in (2, 6, 12, 18, 20)}
    for (_, length), chain in chains.items():
        assert [level.t for level in chain.levels()] == list(range(length - 1, -2, -1))
        assert chain.cost() == 42 * length


VARIANCES = [
    ({"variance": "fixed-small"}, True, "fixed-small"),
    ({"variance": "learned"}, True, "learned"),
    ({"sampler": "ddim", "variance": None, "eta": 0.7, "spacing": "ddim"}, True, "learned"),
    ({"sampler": "ddim", "variance": None}, False, "fixed-large"),
]


@pytest.mark.parametrize(("config", "learns", "variance"), VARIANCES)
def test_solvers_are_the_runs_or_what_the_network_was_trained_for(plan, config, learns, variance):
    _, chains = plan(**config, model=toy(network={"in_channels": 1, "out_channels": 2 if learns else 1}))
    solvers = {method: chains[method, 20].solver() for method in METHODS}
    assert solvers == {"mean": PosteriorMean(), "ddim": DDIM(0.0), "ancestral": Ancestral(variance)}


def test_only_what_plays_a_part_is_in_the_key(plan):
    def keys(**changes):
        return {where: chain.folders(Path())[0].key for where, chain in plan(**changes)[1].items()}

    reference = keys()
    assert len(set(reference.values())) == 15
    for change in ({"clip": False}, {"quantize": "floor"}, {"weights_hash": "1" * 64}, {"seed": 3}, {"samples": 5}):
        assert all(key != reference[where] for where, key in keys(**change).items()), change
    for change in ({"steps": 2}, {"spacing": "ddim"}, {"measure": ()}):
        assert keys(**change) == reference, change
    changed = {where[0] for where, key in keys(variance="fixed-small").items() if key != reference[where]}
    assert changed == {"ancestral"}


def test_baselines_are_made_once_for_models_and_steps(make_cell):
    settings = itertools.product("ab", (0, 1), (2, 3))
    cells = [make_cell(model=toy(name=name), seed=seed, steps=steps) for name, seed, steps in settings]
    names = [extra.name for extra in plan_chains(cells)]
    assert names[:2] == ["data-cosine-20-seed0", "data-cosine-20-seed1"]
    assert len(set(names)) == len(names) == 2 + 2 * 2 * 15


def test_scaling_constants_are_those_of_the_method_at_T_steps(plan):
    scaling = {"ddpm": Constants((10,), {"b": (1.5,), "span": (0.19,)}), "ddim": Constants(fixed={"b": 2.0})}
    _, chains = plan(model=toy(scaling=scaling))
    cells = {method: chains[method, 2].cell for method in METHODS}
    scales = {method: cell.model.scale_at(cell.config.sampler, cell.steps) for method, cell in cells.items()}
    assert scales == {"mean": (1.5, 0.19 / 19), "ddim": (2.0, 0.0), "ancestral": (1.5, 0.19 / 19)}


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"ddpm": Constants(fixed={"b": 1.0})}, "no ddim scaling constants were tuned for 'toy'"),
        (dict.fromkeys(("ddpm", "ddim"), Constants(fixed={"b": 1.0, "k": -0.1})), "over the 20 steps of its chains"),
    ],
)
def test_scaling_that_does_not_reach_is_refused(plan, scaling, message):
    with pytest.raises(ConfigError, match=message):
        plan(model=toy(scaling=scaling))


# --- what is computed ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gaussian_data():
    """600 4x4 images of a correlated Gaussian, .15 wide and within six of that of +-1, so that no clamp is felt."""
    rng = np.random.default_rng(5)
    mixing = rng.normal(size=(16, 16)) / 4
    pixels = np.rint(128 + 19 * rng.normal(size=(600, 16)) @ mixing).clip(0, 255).astype(np.uint8)
    images = torch.from_numpy(pixels).reshape(600, 1, 4, 4)
    return Dataset("gaussian", images, torch.zeros(600, dtype=torch.long), torch.zeros(600, dtype=torch.bool))


@pytest.mark.parametrize("method", METHODS)
def test_an_exact_denoisers_records_equal_the_closed_form(gaussian_data, make_cell, make_context, tmp_path, method):
    # Over all images the sources have the recursion's mean and covariance, and the noise is what remains random.
    pixels = to_unit(gaussian_data.images).double().flatten(1)
    oracle = GaussianOracle(pixels.mean(0).reshape(1, 4, 4), pixels.T.cov())
    cell = make_cell(
        model=toy(), samples=600, parts=(600, 0), clip=False, variance="exact", data_hash=gaussian_data.content_hash()
    )
    baselines, *chains = plan_chains([cell])
    site = make_context(oracle, data=gaussian_data, batch=600)
    baselines.compute(site, tmp_path)
    exact = record(baselines, tmp_path)
    for chain in chains:
        if chain.method == method:
            chain.compute(site, tmp_path)
            found = record(chain, tmp_path)
            law = "exact-gaussian" if method == "ancestral" else f"exact-gaussian-{method}"
            for quantity in ("l1", "rmse"):
                row = value(found, quantity, start=chain.length)
                expected = value(exact, quantity, start=chain.length, method=law)["value"]
                # Divisor n - 1 of the covariance: 1 / 1200 relative. The grey levels' rounding: none of it is left.
                allowed = SIGMAS * row["std"] / math.sqrt(600) + expected / 1000
                assert abs(row["value"] - expected) <= allowed, (chain.length, quantity)


def test_a_record(plan, make_context, shrink, small_data, tmp_path):
    denoiser, counted = shrink(), []
    chain = plan(seed=3, samples=9)[1]["ancestral", 6]
    chain.compute(make_context(denoiser, counted=counted), tmp_path)
    assert denoiser.rows == sum(counted) == chain.cost() == 9 * 6
    folder = tmp_path / "chains" / "toy-ancestral-6-seed3"
    assert {path.name for path in folder.iterdir()} == {"record.csv", "pictures.npz", "chain.json"}
    table = pd.read_csv(folder / "record.csv")
    assert (tuple(table.columns), table["quantity"].tolist()) == (CHAIN_COLUMNS, ["l1", "rmse", "frechet"])
    assert (table[["start", "t", "seed", "n"]] == [6, 5, 3, 9]).all(axis=None)
    errors = table.iloc[:2]
    assert (errors["reference"] == "source images (small-train)").all()
    assert errors["note"].str.contains("clamped").all()
    assert (errors["std"] > 0).all()
    assert np.isnan(table["value"][2])
    assert table["note"][2] == "the run has no features"
    facts = json.loads((folder / "chain.json").read_text())
    assert (facts["network_calls"], facts["features"]) == (54, "none")
    assert facts["seconds"] > 0
    with np.load(folder / "pictures.npz") as pictures:
        original, reconstruction = pictures["original"], pictures["reconstruction"]
    assert original.shape == reconstruction.shape == (8, 4, 4, 3)  # at most 8
    assert original.dtype == reconstruction.dtype == np.uint8
    np.testing.assert_array_equal(original[..., 0], small_data.part("train")[:8, 0])


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_batches_change_nothing_of_an_elementwise_model(plan, make_context, shrink, tmp_path, batch):
    chain, tables = plan(samples=42)[1]["ancestral", 6], []
    for size in (42, batch):
        counted = []
        chain.compute(make_context(shrink(), batch=size, counted=counted), tmp_path)
        assert sum(counted) == chain.cost()  # padding is not a call
        tables.append(record(chain, tmp_path))
    np.testing.assert_allclose(tables[0]["value"], tables[1]["value"], rtol=1e-12)


class Watching:
    """Remember the first state shown, and scale eps."""

    def __init__(self):
        self.first = None

    def __call__(self, x, level, cond=None):
        self.first = x if self.first is None else self.first
        eps = x / 2
        return Prediction(eps, (x - level.sigma * eps) / level.alpha, torch.zeros_like(x))


def test_every_method_and_model_starts_from_the_same_states(plan, make_context, small_data, tmp_path):
    starts = []
    for name in ("one", "other"):
        for method in METHODS:
            chain, denoiser = plan(model=toy(name=name))[1][method, 12], Watching()
            chain.compute(make_context(denoiser), tmp_path)
            starts.append(denoiser.first)
    assert all(torch.equal(start, starts[0]) for start in starts)
    level = chain.levels()[0]
    noise = (starts[0] - level.alpha * to_unit(small_data.part("train")[:6])) / level.sigma
    assert abs(noise.std().item() - 1) < SIGMAS / math.sqrt(2 * 6 * 16)


def test_the_correction_is_applied(plan, make_context, tmp_path):
    scaling = dict.fromkeys(("ddpm", "ddim"), Constants(fixed={"b": 1.1}))
    values = []
    for name, constants in (("plain", {}), ("scaled", scaling)):
        chain = plan(model=toy(name=name, scaling=constants))[1]["ddim", 6]
        chain.compute(make_context(Watching()), tmp_path)
        values.append(record(chain, tmp_path)["value"][0])
    assert values[0] != values[1]


def test_errors_are_of_clamped_images(plan, make_context, small_data, tmp_path):
    def bright(x, level, cond=None):
        x0 = torch.full_like(x, 3.0)
        return Prediction((x - level.alpha * x0) / level.sigma, x0, torch.zeros_like(x))

    chain = plan(clip=False)[1]["mean", 2]
    chain.compute(make_context(bright), tmp_path)
    white = (1 - to_unit(small_data.part("train")[:6])).mean().item()
    assert record(chain, tmp_path)["value"][0] == pytest.approx(white, rel=1e-6)  # float32 images


def test_reconstructions_that_are_not_finite_are_named(plan, make_context, tmp_path):
    def broken(x, level, cond=None):
        return Prediction(x * math.nan, x * math.nan, torch.zeros_like(x))

    chain = plan()[1]["mean", 2]
    with pytest.raises(RunError, match="model 'toy', mean chain of 2 steps, seed 0"):
        chain.compute(make_context(broken), tmp_path)
    assert not chain.is_complete(tmp_path)


# --- baselines -----------------------------------------------------------------------------------------------------


def baselines_of(data, n, seed=0):
    return ChainBaselines("cosine", 20, seed, n, (2, 20), data.content_hash())


class Corners(torch.nn.Module):
    """Two features, one of an image's corner and one of its mean, in place of a network."""

    def forward(self, images):
        pixels = images.float() / 255
        pooled = torch.stack([pixels[:, 0, 0, 0], pixels.mean((1, 2, 3))], dim=1)
        return pooled, pooled


CORNERS = Extractor("corners", Corners(), {"frechet": "fd_corners"}, "0" * 64)


REAL = [
    (10, "held-out images"), (18, "held-out images"), (20, "training images that were no sources"),
    (42, "neither 42 held-out images nor as many training images that were no sources"),
    (2, "a covariance of 2 features needs 3 images, not 2"),
]  # fmt: skip


@pytest.mark.parametrize(("n", "note"), REAL)
def test_real_images_are_scored_like_reconstructions(small_data, make_context, tmp_path, n, note):
    work = baselines_of(small_data, n)
    work.compute(make_context(None, extractor=CORNERS), tmp_path)
    real = record(work, tmp_path).query("method == 'real'")
    assert real["quantity"].tolist() == ["fd_corners", "fd_corners"]
    assert (real["n"] == n).all()
    assert (real["reference"].tolist(), real["note"].tolist()[1]) == (["small-train (42)"] * 2, note)
    assert real["value"].isna().tolist() == [n == 2, n in (2, 42)]
    if n == 42:  # the sources are the reference
        assert real["value"].iloc[0] == pytest.approx(0, abs=1e-12)


def test_baseline_rows(small_data, make_context, tmp_path):
    work = baselines_of(small_data, 10)
    work.compute(make_context(None), tmp_path)
    table = record(work, tmp_path)
    assert tuple(table.columns) == CHAIN_COLUMNS
    exact = {"exact-empirical", "exact-gaussian", "exact-gaussian-mean", "exact-gaussian-ddim"}
    assert set(table["method"]) == {"real"} | exact
    assert (table["model"] == "data").all()
    for method in exact:
        rows = table[table["method"] == method]
        assert rows[["start", "quantity"]].to_numpy().tolist() == [[2, "l1"], [2, "rmse"], [20, "l1"], [20, "rmse"]]
        assert (rows["t"] == rows["start"] - 1).all()
        assert rows["n"].isna().all() == (method != "exact-empirical")
    # Nothing is left of the image at the far end: any of the 42 is as likely, itself included.
    pixels = to_unit(small_data.part("train")).double().flatten(1)
    apart = torch.cdist(pixels[:10], pixels, p=1).mean().item() / 16
    assert value(table, "l1", method="exact-empirical", start=20)["value"] == pytest.approx(apart, rel=1e-3)


def test_images_too_large_for_the_recursion_have_no_gaussian(small_data, make_context, tmp_path):
    large = replace(small_data, images=small_data.images.repeat(1, 1, 14, 14))
    work = baselines_of(large, 10)
    work.compute(make_context(None, data=large), tmp_path)
    assert set(record(work, tmp_path)["method"]) == {"real", "exact-empirical"}


# --- the record folder ---------------------------------------------------------------------------------------------


@pytest.fixture
def made(plan, make_context, shrink, tmp_path):
    chain = plan()[1]["mean", 6]
    chain.compute(make_context(shrink()), tmp_path)
    return chain, chain.folders(tmp_path)[0]


def test_a_complete_record_is_known(made, plan, tmp_path):
    chain, folder = made
    assert folder.complete_facts() is not None
    assert chain.is_complete(tmp_path)
    assert chain.remaining(tmp_path) == 0
    assert chain.is_complete(tmp_path, "none")
    assert not chain.is_complete(tmp_path, "digits-0123")  # its distance would be empty
    assert chain.seconds(tmp_path) > 0
    other = plan(clip=False)[1]["mean", 6]
    assert not other.is_complete(tmp_path)
    assert other.remaining(tmp_path) == other.cost()


@pytest.mark.parametrize("name", ["record.csv", "pictures.npz", "chain.json"])
@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-3])])
def test_a_half_written_record_is_not_read(made, tmp_path, name, harm):
    chain, folder = made
    harm(folder.path / name)
    assert not chain.is_complete(tmp_path)


def test_a_record_written_over_is_not_vouched_for_by_the_old_one(made, make_context, shrink, tmp_path, monkeypatch):
    chain, folder = made

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", stop)
    with pytest.raises(KeyboardInterrupt):
        chain.compute(make_context(shrink()), tmp_path)
    assert not folder.facts.exists()
    assert not chain.is_complete(tmp_path)


def test_other_settings_in_the_same_folder_are_refused(made, plan):
    _, folder = made
    folder.check()
    root = folder.path.parent.parent
    for changes, named in (({"clip": False}, "clip"), ({"weights_hash": "1" * 64}, "weights"), ({"samples": 5}, "n")):
        (other,) = plan(**changes)[1]["mean", 6].folders(root)
        with pytest.raises(ConfigError, match=f"was made with another {named} "):
            other.check()
