from __future__ import annotations

import dataclasses

import pytest

from bench.diffusion.schedules import betas
from bench.models.networks import adm_unet
from bench.models.objectives import GAMMA_SCHEDULES, OBJECTIVES
from bench.models.recipes import DIGITS_NETWORK, RECIPES

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
}
INDEXED = [name for name in STUDIED if name != "edm"]  # trained on indices of a schedule


def test_every_recipe_is_described():
    assert set(RECIPES) == set(STUDIED)
    assert all(recipe.name == name for name, recipe in RECIPES.items())


@pytest.mark.parametrize("name", STUDIED)
def test_recipes_differ_only_in_the_thing_studied(name):
    plain, recipe = dataclasses.asdict(RECIPES["adm"]), dataclasses.asdict(RECIPES[name])
    assert {key for key in plain if plain[key] != recipe[key]} - {"name"} == STUDIED[name]


@pytest.mark.parametrize("name", INDEXED)
def test_recipes_name_known_objectives_and_schedules(name):
    recipe = RECIPES[name]
    assert recipe.objective in OBJECTIVES
    assert recipe.gamma_schedule in GAMMA_SCHEDULES
    assert len(betas(recipe.schedule, recipe.T)) == recipe.T
    assert (recipe.gamma > 0) == (recipe.objective != "ddpm")


def test_recipes_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECIPES["adm"].gamma = 1.0


def test_the_digits_network_learns_its_variance():
    network = adm_unet(DIGITS_NETWORK)
    assert network.config["out_channels"] == 2 * network.config["in_channels"]
