import dataclasses

import pytest

from bench.diffusion.schedules import betas
from bench.models.networks.adm import adm_unet
from bench.models.train.objectives import GAMMA_SCHEDULES, OBJECTIVES
from bench.models.train.recipes import CONTINUOUS, NETWORKS, RECIPES

# What each recipe may change of the plain one: the thing it studies, and nothing else.
STUDIED = {
    "adm": set(),
    "adm-ip": {"objective", "gamma"},
    "adm-ip-t": {"objective", "gamma", "gamma_schedule"},
    "adm-ip-equivalent": {"objective", "gamma"},
    "ddpm-y": {"objective", "gamma"},
    "adm-gp": {"gradient_penalty"},
    "adm-wd": {"weight_decay"},
    "adm-mdss": {"scheduled_sampling"},
    "adm-dream": {"dream_power"},
    "edm": {"objective", "schedule"},
    "flow": {"objective", "schedule"},
    "flow-mix": {"objective", "schedule", "slowed"},
    "adm-mix": {"slowed"},
    "adm-cond": {"label_dropout"},
    "adm-null-time": {"time_dropout"},
    "adm-dropout": {"dropout"},
    "adm-lsm": {"index_sampling"},
}
ON_CIFAR10 = ("adm", "adm-ip", "ddpm-y", "adm-gp", "adm-wd", "edm", "flow")
CONTROLS = ("adm-dropout", "adm-lsm")
ON_DIGITS = [name for name in STUDIED if name not in CONTROLS]
ON_AFFINE = ("adm", "adm-ip")
FAMILIES = {
    "digits-affine": ON_AFFINE,
    "digits-affine-small": ON_AFFINE,
    "cifar10": ON_CIFAR10,
    "cifar10-wide": ON_CIFAR10,
    "cifar10-16": (*ON_CIFAR10, *CONTROLS),
}
INDEXED = [name for name in ON_DIGITS if RECIPES[name].objective not in CONTINUOUS]  # trained on indices of a schedule


def test_every_recipe_is_described():
    assert set(RECIPES) == set(ON_DIGITS) | {f"{family}/{name}" for family, names in FAMILIES.items() for name in names}
    for key, recipe in RECIPES.items():
        family, _, name = key.rpartition("/")
        assert (recipe.name, recipe.network) == (name, family or "digits")


@pytest.mark.parametrize("key", RECIPES)
def test_recipes_differ_only_in_the_thing_studied(key):
    family, slash, name = key.rpartition("/")
    plain, recipe = dataclasses.asdict(RECIPES[f"{family}{slash}adm"]), dataclasses.asdict(RECIPES[key])
    assert {field for field in plain if plain[field] != recipe[field]} - {"name"} == STUDIED[name]


def test_the_large_run_is_the_planned_one():
    """Width 64, one block, at least 5 million images in bf16; 16 MB in half precision."""
    recipe = RECIPES["cifar10-wide/adm"]
    assert recipe.iterations * recipe.batch >= 5_000_000
    assert (recipe.precision, recipe.dataset) == ("bf16", "cifar10")
    network = NETWORKS["cifar10-wide"]
    assert (network["model_channels"], network["num_res_blocks"], network["channel_mult"]) == (64, 1, (1, 2, 2, 2))
    assert 7.7e6 < sum(weights.numel() for weights in adm_unet(network).parameters()) < 7.9e6


def test_the_networks_of_cifar10_attend_at_half_and_a_quarter_of_the_size():
    for name in ("cifar10", "cifar10-16"):
        network = NETWORKS[name]
        assert (network["attention_resolutions"], network["model_channels"], network["out_channels"]) == ((2, 4), 32, 6)
    assert (network["model_channels"], network["channel_mult"], network["num_res_blocks"]) == (32, (1, 2, 2), 1)
    assert sum(weights.numel() for weights in adm_unet(network).parameters()) == 1_422_278


def test_half_a_million_images_at_16_pixels_and_on_from_there():
    recipe = RECIPES["cifar10-16/adm"]
    assert (recipe.iterations * recipe.batch, recipe.decay, recipe.open_ended) == (512_000, "constant", True)
    assert not RECIPES["adm"].open_ended


@pytest.mark.parametrize("name", INDEXED)
def test_recipes_name_known_objectives_and_schedules(name):
    recipe = RECIPES[name]
    assert recipe.objective in OBJECTIVES
    assert recipe.gamma_schedule in GAMMA_SCHEDULES
    assert len(betas(recipe.schedule, recipe.T)) == recipe.T
    assert (recipe.gamma > 0) == (recipe.objective != "ddpm")
