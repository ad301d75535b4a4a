"""Images that a model was not made for are told before its weights are read."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from refusals import refusal

from bench.data import Dataset
from bench.models.interface import Description
from bench.suite.registry.model import Model, check_fit
from bench.suite.settings import ConfigError


def images(height, width=None, channels=3, classes=1):
    pixels = torch.zeros(4, channels, height, width or height, dtype=torch.uint8)
    labels = torch.arange(4) % classes
    return Dataset("mine", pixels, labels, torch.zeros(4, dtype=torch.bool))


def model(kind, **network):
    edm = {"schedule": "edm", "prediction": "edm"} if kind == "edm" else {}
    return Model("m", Path("m"), Description({"in_channels": 3, **network}, format=kind, **edm))


FITTING = [
    (model("guided", channel_mult=(1, 2, 2)), images(12)),
    (model("guided"), images(16, 24)),
    (model("guided", channel_mult=(1,), image_size=32), images(7)),
    (model("diffusers", block_out_channels=[8, 8, 8]), images(12)),
    (model("diffusers", block_out_channels=[8, 8], image_size=16), images(16)),
    (model("diffusers"), images(24)),
    (model("edm", image_size=9), images(9)),
    (model("python"), images(7)),
    (model("guided", channel_mult=(1,), num_classes=2), images(8, classes=2)),
]
MISFITS = [
    (model("guided", channel_mult=(1, 2, 2)), images(14), "halves images 4-fold"),
    (model("guided"), images(16, 20), "halves images 8-fold"),
    (model("diffusers", block_out_channels=[8, 8, 8]), images(14), "halves images 4-fold"),
    (model("diffusers"), images(20), "halves images 8-fold"),
    (model("diffusers", block_out_channels=[8, 8], image_size=16), images(32), "takes 16x16 images"),
    (model("edm", image_size=8), images(16), "takes 8x8 images"),
    (model("guided", in_channels=1), images(16), "takes 1 channels"),
    (model("guided", channel_mult=(1,), num_classes=2), images(8, classes=3), "takes 2 class labels"),
]


@pytest.mark.parametrize(("given", "data"), FITTING)
def test_what_fits(given, data):
    check_fit(given, data, measured=True)


@pytest.mark.parametrize(("given", "data", "message"), MISFITS)
def test_what_does_not_is_told_in_one_line(given, data, message):
    assert refusal(ConfigError, check_fit, given, data, measured=True, match=message)


def test_labels_matter_only_where_real_images_are_shown():
    given, data = model("guided", channel_mult=(1,), num_classes=2), images(8)
    check_fit(given, data, measured=False)
    with pytest.raises(ConfigError, match="class labels"):
        check_fit(given, data, measured=True)
    check_fit(replace(given, description=Description({"in_channels": 3}, format="python")), data, measured=True)
