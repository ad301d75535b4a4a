"""Descriptions that do not fit, of the embedded digits' network as a guided-diffusion file."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import at_first
from refusals import outcome_of
from sklearn.datasets import load_sample_images

import bench
from bench.diffusion.schedules import schedule_table
from bench.diffusion.types import Level
from bench.models.checkpoints.formats import describe, open_network
from bench.models.denoisers.calibration import Slope
from bench.models.inspect import Candidate, Inspector, Trial, candidates, main
from bench.models.networks.adm_keys import guided_keys, published_shapes
from bench.models.networks.arguments import complete

WEIGHTS = Path(bench.__file__).parent / "models" / "weights"
NETWORK = (
    "network = { image_size = 8, in_channels = 1, model_channels = 32, out_channels = 2, num_res_blocks = 1,"
    " channel_mult = [1, 1], attention_resolutions = [2], num_head_channels = 32, use_scale_shift_norm = true,"
    " resblock_updown = true, use_new_attention_order = true }"
)


def publish(name, path):
    """Write embedded weights under guided-diffusion's names: the inverse of guided_keys, found by numbering entries."""
    weights = WEIGHTS / name
    description = describe(weights)
    state = open_network(weights, description).state_dict()
    config = complete(description.network)
    shapes = published_shapes(state, config)
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]
    numbers = torch.arange(sum(sizes), dtype=torch.float64).split(sizes)
    numbered = {key: part.reshape(shapes[key]) for key, part in zip(shapes, numbers, strict=True)}
    values = torch.empty(sum(sizes))
    for key, where in guided_keys(numbered, config).items():
        values[where.long()] = state[key]
    parts = zip(shapes, values.split(sizes), strict=True)
    torch.save({key: part.reshape(shapes[key]).clone() for key, part in parts}, path)
    return replace(description, format="guided")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("inspected") / "digits.pt"
    publish("digits/adm.safetensors", path)
    return path


@pytest.mark.parametrize(
    ("entry", "code", "lines"),
    at_first(
        [
            ("", 0, ["the description fits"]),
            ('prediction = "v"', 1, ["recommended: prediction eps", 'prediction = "eps"']),
            ('schedule = "linear"', 1, ["recommended: schedule cosine", 'schedule = "cosine"']),
            ("T = 500", 1, ["recommended: T = 1000"]),
            ('prediction = "x0"\nschedule = "linear"', 1, ['prediction = "eps"', 'schedule = "cosine"']),
        ],
        2,
    ),
)
def test_a_wrong_entry_is_put_right(weights, tmp_path, capsys, entry, code, lines):
    config = tmp_path / "models.toml"
    config.write_text(f'[models.mine]\nweights = "{weights}"\n{NETWORK}\n{entry}\n')
    assert main([str(weights) if code else "mine", "--config", str(config), "--images", "12"]) == code
    printed = capsys.readouterr().out
    assert all(line in printed for line in lines), printed
    assert ("as described" in printed, printed.count("does not fit") > 5) == (True, True)


def test_a_file_that_describes_itself(capsys):
    assert main([str(WEIGHTS / "digits" / "edm.safetensors")]) == 0
    out = capsys.readouterr().out
    assert "format native, prediction edm, schedule edm" in out
    assert "the description fits" in out


MISTAKES = [
    (["none.pt"], "no such file"),
    (["mine", "--config", "none.toml"], "cannot be read as a config file"),
    ([str(WEIGHTS / "cifar10" / "adm.safetensors")], "takes 3 channels, digits has 1"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_mistakes_are_one_line(capsys, arguments, message):
    assert outcome_of(capsys, main, *arguments).refused(message)


def test_only_descriptions_that_can_be_are_tried():
    about = replace(describe(WEIGHTS / "digits" / "adm.safetensors"), schedule=schedule_table(np.linspace(0.9, 0, 50)))
    names = [candidate.name for candidate in candidates(replace(about, T=50, prediction="v"))]
    assert ("prediction x0" in names, "prediction eps" in names, any(name.startswith("T") for name in names)) == (
        True, False, False,
    )  # fmt: skip


def test_slopes_that_could_be_anything_do_not_fit():
    vague, sharp = (Slope(Level(1, 1.0, 1.0), 0.1, error, 1.0, 4) for error in (0.5, 0.01))
    trials = [Trial(None, [slope]) for slope in (vague, sharp)]
    assert [(trial.fits, trial.is_off) for trial in trials] == [(False, False), (False, True)]


@pytest.mark.ci
def test_the_attention_order_shows_in_the_error(tmp_path):
    """Legacy and new order have the same shapes; the lower denoising error decides. Two heads at 64 channels."""
    description = publish("cifar10/adm.safetensors", tmp_path / "w.pt")
    photo = torch.from_numpy(load_sample_images().images[0][:256:4, :256:4].copy())
    images = photo.unfold(0, 32, 32).unfold(1, 32, 32).reshape(-1, 3, 32, 32).float() / 127.5 - 1
    inspector = Inspector(tmp_path / "w.pt", images, torch.zeros(4, dtype=torch.long))
    other = next(c for c in candidates(description) if c.name == "legacy attention order")
    assert inspector.trial(Candidate("as described", description)).loss < 0.8 * inspector.trial(other).loss
