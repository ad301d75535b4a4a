"""Chain records made by hand: averages, baselines, figures and pictures."""

import numpy as np
import pandas as pd
import pytest
from cases import at_first
from records import edited

from analysis.exposure_bias.chains import analyse, chain_table
from analysis.output.entries import Output
from analysis.records.load import load_results

STARTS = (100, 1000)


def chain(model, method, start, seed, l1=0.1, fd=1.0, note=""):
    """The table of one chain."""
    common = {"model": model, "method": method, "start": start, "t": start - 1, "seed": seed}
    rows = [
        {**common, "n": 50, "quantity": "l1", "value": l1, "std": 0.2, "reference": "source images", "note": ""},
        {**common, "n": 50, "quantity": "fd_toy", "value": fd, "std": np.nan, "reference": "toy-train", "note": note},
    ]
    return pd.DataFrame(rows)


def baselines(seed):
    """The rows that no model makes."""
    rows = [
        {"model": "data", "method": method, "start": start, "t": start - 1, "seed": seed, "n": n, "quantity": "l1",
         "value": start / 2000, "std": std, "reference": "source images", "note": ""}
        for method, n, std in (("exact-empirical", 50, 0.1), ("exact-gaussian", np.nan, np.nan))
        for start in STARTS
    ]  # fmt: skip
    rows.append(
        {"model": "data", "method": "real", "start": np.nan, "t": np.nan, "seed": seed, "n": 50, "quantity": "fd_toy",
         "value": 0.5, "std": np.nan, "reference": "toy-train", "note": "held-out images"}
    )  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture
def chains(folder, make_record):
    """A folder with one cell and the chains of two models, two ways, two seeds."""
    folder.cell()
    rng = np.random.default_rng(0)
    for seed in (0, 1):
        make_record(folder.root / "chains" / f"data-cosine-1000-seed{seed}", "chain", baselines(seed))
        for model in ("adm", "adm-ip"):
            for method in ("mean", "ancestral"):
                for start in STARTS:
                    images = rng.integers(0, 256, (2, 8, 8, 8, 1), dtype=np.uint8)
                    pictures = {"original": images[0], "reconstruction": images[1]}
                    table = chain(model, method, start, seed, l1=0.1 + 0.02 * seed, fd=1.0 + seed)
                    make_record(
                        folder.root / "chains" / f"{model}-{method}-{start}-seed{seed}", "chain", table, pictures
                    )
    return folder


def test_seeds_are_averaged(chains):
    table = chain_table(pd.concat([chain("adm", "mean", 100, seed, 0.1 + 0.02 * seed, 1.0 + seed) for seed in (0, 1)]))
    l1, fd = (table[table["quantity"] == name].iloc[0] for name in ("l1", "fd_toy"))
    assert (l1["value"], l1["n"], l1["seeds"]) == (pytest.approx(0.11), 100, 2)
    assert l1["error"] == pytest.approx(0.2 / np.sqrt(100))
    assert (fd["value"], fd["sd"]) == (1.5, pytest.approx(np.std([1, 2], ddof=1)))
    assert np.isnan(fd["error"])


def test_the_analysis_draws_chains_and_pictures(chains):
    out, results = Output(chains.root), load_results(chains.root)
    analyse(results, out)
    assert results.problems == []
    assert [entry.name for entry in out.entries] == ["chains", "chain_error", "chain_pictures"]
    table = pd.read_csv(chains.root / "tables" / "chains.csv")
    real = table[table["method"] == "real"]
    assert (real["value"].tolist(), real["seeds"].tolist()) == ([0.5], [2])


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize(
    "damage", at_first(["edit", "version", "column", "cut", "text", "unfinished", "nested", "hole", "empty"], 3)
)
def test_an_unsound_record_is_named_and_left_out(chains, make_record, damage):
    bad = chains.root / "chains" / "adm-mean-100-seed0"
    if damage == "edit":
        text = (bad / "chain.json").read_text()
        (bad / "chain.json").write_text(text.replace('"made": "by hand"', '"made": "up"'))
    elif damage == "cut":
        (bad / "record.csv").write_bytes((bad / "record.csv").read_bytes()[:-5])
    elif damage == "unfinished":
        (bad / "chain.json").unlink()
    elif damage == "version":
        make_record(bad, "chain", chain("adm", "mean", 100, 0), version=99)
    elif damage == "nested":
        (bad / "chain.json").write_text("[" * 100_000)
    else:
        sound = chain("adm", "mean", 100, 0)
        broken = {
            "text": sound.assign(value="high"), "column": sound.drop(columns="std"), "empty": sound[:0],
            "hole": sound.assign(method=np.nan),
        }  # fmt: skip
        make_record(bad, "chain", broken[damage])
    results = load_results(chains.root)
    analyse(results, Output(chains.root))
    (problem,) = results.problems
    assert "adm-mean-100-seed0" in problem
    table = pd.read_csv(chains.root / "tables" / "chains.csv")
    own = table[(table["model"] == "adm") & (table["method"] == "mean") & (table["start"] == 100)]
    assert own["seeds"].unique().tolist() == [1]


PICTURES = {
    "other names": {"a": np.zeros((2, 8, 8, 1), np.uint8)},
    "other shapes": {"original": np.zeros((2, 8, 8, 1), np.uint8), "reconstruction": np.zeros((2, 4, 4, 1), np.uint8)},
    "fractions": {name: np.zeros((2, 8, 8, 1)) for name in ("original", "reconstruction")},
    "two channels": {name: np.zeros((2, 8, 8, 2), np.uint8) for name in ("original", "reconstruction")},
}


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("content", at_first([b"rubbish", *PICTURES.values()], 2), ids=["rubbish", *PICTURES])
def test_damaged_pictures_cost_their_row_alone(chains, content):
    folder = chains.root / "chains" / "adm-mean-100-seed0"
    if isinstance(content, bytes):
        (folder / "pictures.npz").write_bytes(content)
    else:
        np.savez(folder / "pictures.npz", **content)
    with edited(folder / "chain.json") as facts:
        facts["files"]["pictures.npz"] = (folder / "pictures.npz").stat().st_size
    out, results = Output(chains.root), load_results(chains.root)
    analyse(results, out)
    (problem,) = results.problems
    assert "adm-mean-100-seed0/pictures.npz is damaged" in problem
    assert [entry.name for entry in out.entries] == ["chains", "chain_error", "chain_pictures"]
