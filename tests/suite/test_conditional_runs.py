"""Runs of class-conditional models: labels belong to the sample, real images bring their own."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from analysis.records.load import load_results
from bench.data import load
from bench.diffusion.noise import Noise, Purpose

SAMPLES = 24


def embed_randomly(unet):
    """Let labels matter."""
    torch.nn.init.normal_(unet.class_embedding.weight)


@pytest.fixture(scope="module")
def weights(save_tiny):
    """A tiny network of ten classes."""
    return save_tiny(name="conditional", num_classes=10, edit=embed_randomly)


@pytest.fixture
def run(weights, run_tiny, tmp_path):
    """Return a function that runs the conditional model under some names and returns the results folder."""

    def call(*flags, names=("mine",), folder="out"):
        models = ",".join(f"{name}={weights}" for name in names)
        flags = ("--models", models, "--steps", "3", "--samples", SAMPLES, "--out", tmp_path / folder, *flags)
        outcome, _ = run_tiny(weights, *flags)
        assert outcome.code == 0, outcome.err
        return tmp_path / folder

    return call


def labels_of(out, name="mine", seed=0):
    with np.load(out / "cells" / f"{name}-ddpm-3-seed{seed}" / "samples.npz") as file:
        return file["arr_1"]


def images_of(out, name="mine"):
    with np.load(out / "cells" / f"{name}-ddpm-3-seed0" / "samples.npz") as file:
        return file["arr_0"]


def test_labels_come_from_each_samples_own_stream(run):
    out = run("--no-probes", "--seeds", "0,1")
    wanted = Noise(0).integers(torch.arange(SAMPLES), Purpose.LABEL, 0, 10).numpy()
    assert (labels_of(out) == wanted).all()
    assert labels_of(out).dtype == np.int64
    assert (labels_of(out) != labels_of(out, seed=1)).any()
    # 24 labels of ten leave one class out with probability .9^24 = 8 % each; five or more left out is below 1e-3.
    assert len(set(wanted.tolist())) > 5


def test_models_and_batches_share_labels_and_images(run):
    out = run("--no-probes", names=("mine", "same"))
    assert (labels_of(out) == labels_of(out, "same")).all()
    assert (images_of(out) == images_of(out, "same")).all()
    small = run("--no-probes", "--batch-size", "5", folder="small")
    assert (labels_of(small) == labels_of(out)).all()


def test_real_images_bring_their_own_labels(run, interrupting):
    with interrupting(-1) as asked:
        drawn = labels_of(run("--measure", "steps")).tolist()
    forced = [cond.tolist() for cond in asked.labels if cond[: len(drawn)].tolist() != drawn]
    data = load("digits")
    half = len(forced[0]) // 2
    assert forced[0][:half] == data.part_labels("train")[:half].tolist()
    assert forced[0][half:] == data.part_labels("heldout")[: len(forced[0]) - half].tolist()
    assert all(cond is not None for cond in asked.labels)


def test_a_classifier_guides_only_models_with_labels(command, tmp_path, tiny_weights):
    file = tmp_path / "classifier.pt"
    torch.save({}, file)
    args = ("--models", f"mine={tiny_weights}", "--steps", "2", "--out", tmp_path / "out")
    guides = "guides models of the presets imagenet64, imagenet128, which 'mine' is not"
    assert command(*args, "--classifier", file).refused(guides)
    assert command(*args, "--classifier-scale", "2").refused("--classifier-scale has no effect without --classifier")


@pytest.fixture
def guidable(save_tiny, tmp_path):
    """Return a function that writes entries of a network of eleven labels and returns the flags of a run of it."""
    weights = save_tiny(name="guidable", num_classes=11, edit=embed_randomly)

    def flags(*models, **entries):
        lines = [f'[models.cond]\nweights = "{weights}"']
        lines += [f'[models.{name}]\nbase = "cond"\n{keys}' for name, keys in entries.items()]
        (tmp_path / "guided.toml").write_text("\n".join(lines) + "\n")
        return (
            "--config", tmp_path / "guided.toml", "--models", ",".join(models or ("cond", *entries)), "--steps", "4",
            "--samples", "20", "--features", "none", "--quiet", "--out", tmp_path / "out",
        )  # fmt: skip

    return flags


def facts_of(root, name):
    return json.loads((root / "out" / "cells" / f"{name}-ddpm-4-seed0" / "metrics.json").read_text())


def test_guidance_is_counted_recorded_and_part_of_the_key(guidable, command, tmp_path):
    """Guided at the three noisiest of four steps alone: 7 calls; the others as planned, 2 and 1 a step."""
    entries = {"twice": "guidance = 2", "within": "guidance = 2\nguidance_interval = [0.1, inf]"}
    outcome = command(*guidable(**entries), "--labels", "balanced")
    assert outcome.code == 0, outcome.err
    facts = {name: facts_of(tmp_path, name) for name in ("cond", *entries)}
    assert [facts[name]["nfe"] for name in facts] == [4, 8, 7]
    assert facts["twice"]["network_calls"] == 2 * facts["cond"]["network_calls"]
    assert (facts["cond"]["cell"]["null_class"], facts["within"]["cell"]["guidance_interval"]) == (10, [0.1, None])
    folder = tmp_path / "out" / "cells" / "within-ddpm-4-seed0"
    steps = pd.read_csv(folder / "steps.csv")
    rows = steps[(steps["arm"] == "free") & (steps["quantity"] == "guidance_norm")]
    assert sorted(rows["i"]) == [1, 2, 3]
    assert (rows["value"] > 0).all()
    plain = pd.read_csv(tmp_path / "out/cells/cond-ddpm-4-seed0/steps.csv").set_index(["arm", "quantity", "i"])["value"]
    for row in steps[
        (steps["arm"] == "forced-train") & steps["quantity"].isin(["plain_eps_norm", "plain_x0_rmse"])
    ].itertuples():
        assert row.value == pytest.approx(plain["forced-train", row.quantity.removeprefix("plain_"), row.i], rel=1e-6)
    with np.load(folder / "samples.npz") as file:
        assert file["arr_1"].tolist() == [*range(10)] * 2
    assert "guidance_norm" not in set(pd.read_csv(tmp_path / "out/cells/cond-ddpm-4-seed0/steps.csv")["quantity"])


def test_noise_awareness_is_counted_and_recorded(save_tiny, command, tmp_path):
    """Two calls a step, in the plan too, but at w = 0, which is the plain model; four under class guidance or twice."""
    weights = save_tiny(
        name="timeless", num_classes=11, null_time=True, edit=lambda unet: torch.nn.init.normal_(unet.time_proj.null)
    )
    config = tmp_path / "nag.toml"
    config.write_text(
        f'[models.plain]\nweights = "{weights}"\n'
        '[models.off]\nbase = "plain"\ncorrections = [{ kind = "nag", w = 0 }]\n'
        '[models.both]\nbase = "plain"\nguidance = 2\ncorrections = [{ kind = "nag", w = 0.5 }]\n'
        '[models.twice]\nbase = "plain"\ncorrections = [{ kind = "nag" }, { kind = "nag" }]\n'
    )
    flags = ["--config", config, "--models", "plain,off,plain-nag,both,twice", "--steps", "4", "--samples", "20"]
    outcome = command(*flags, "--features", "none", "--quiet", "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    names = ("plain", "off", "plain-nag", "both", "twice")
    assert [facts_of(tmp_path, name)["nfe"] for name in names] == [4, 4, 8, 16, 16]
    calls = [facts_of(tmp_path, name)["network_calls"] for name in names]
    assert calls == [calls[0] * factor for factor in (1, 1, 2, 4, 4)]
    planned = command(*flags, "--features", "none", "--dry-run", "--out", tmp_path / "other").out
    assert f"{sum(calls):,} network calls" in planned
    tables = [pd.read_csv(tmp_path / f"out/cells/{name}-ddpm-4-seed0/steps.csv") for name in names]
    norms = [table.loc[table["quantity"] == "guidance_norm", "value"] for table in tables]
    assert [len(norm) > 0 and bool((norm > 0).all()) for norm in norms] == [False, False, True, True, True]
    images = [np.load(tmp_path / f"out/cells/{name}-ddpm-4-seed0/samples.npz")["arr_0"] for name in names[:2]]
    assert np.array_equal(*images)
    assert not load_results(tmp_path / "out").problems


def test_the_flag_replaces_the_entrys_scale_and_one_is_the_plain_model(guidable, command, tmp_path):
    assert command(*guidable("cond", "twice", twice="guidance = 2"), "--guidance", "1", "--no-probes").code == 0
    samples = [np.load(tmp_path / f"out/cells/{name}-ddpm-4-seed0/samples.npz")["arr_0"] for name in ("cond", "twice")]
    assert np.array_equal(*samples)
    assert facts_of(tmp_path, "twice")["nfe"] == 4


IMPOSSIBLE = [
    ("null_class = 11", "", "null class 11 of model 'other' is no label of it beyond the data's; it must be 10"),
    ("null_class = 3", "", "null class 3 of model 'other' is no label of it beyond the data's; it must be 10"),
    ("guidance = -1", "", "'guidance' of model 'other' must be a finite number of at least 0"),
    ("guidance = nan", "", "'guidance' of model 'other' must be a finite number of at least 0"),
    ("guidance_interval = [2, 1]", "", "'guidance_interval' of model 'other' must be [low, high]"),
    ("guidance_interval = [1]", "", "'guidance_interval' of model 'other' must be [low, high]"),
    ("guidance_interval = [1, 2]", "", "the guidance interval of model 'other' has no effect at scale 1"),
    ("", "--guidance nan", "--guidance must be a finite number of at least 0, not nan"),
    ("", "--guidance-interval 1:2", "--guidance-interval has no effect on models that are not guided"),
    ("", "--guidance 2 --guidance-interval 3:1", "--guidance-interval must be LOW:HIGH"),
    ("", "--guidance 2 --classifier a.pt", "--guidance and --classifier guide in two ways"),
    ("", "--labels even", "unknown --labels 'even'"),
]


@pytest.mark.parametrize(("entry", "flags", "message"), IMPOSSIBLE)
def test_guidance_that_cannot_be_is_one_line(guidable, command, entry, flags, message):
    outcome = command(*guidable(other=entry), *flags.split())
    assert outcome.refused(message)


def test_a_model_without_labels_or_null_class_is_not_guided(tiny_weights, weights, command, tmp_path):
    plain, labelled = (("--out", tmp_path / "out", "--models", f"mine={path}") for path in (tiny_weights, weights))
    no_labels = "model 'mine' takes no class labels and cannot be guided; leave out --guidance"
    assert command(*plain, "--guidance", "2").refused(no_labels)
    assert command(*plain, "--labels", "balanced").refused("--labels has no effect on models without class labels")
    no_null = "model 'mine' has no null class to be guided from: the data have 10 classes, it takes 10"
    assert command(*labelled, "--guidance", "2").refused(no_null)
