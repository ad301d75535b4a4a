"""The embedded family is good enough to teach with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
import pytest
import torch

from bench.data import load, quantize
from bench.diffusion.noise import Noise
from bench.diffusion.samplers import Draws, prior, walk
from bench.diffusion.schedules import levels
from bench.diffusion.solvers import Ancestral
from bench.measure.features.extractors import open_extractor
from bench.measure.quality.embedded_statistics import unseen
from bench.measure.quality.frechet import feature_moments, frechet_distance
from bench.models.checkpoints.native import load_network, read_description
from bench.models.denoisers.guidance import ClassifierFree, ClassifierFreeDenoiser
from bench.models.denoisers.parameterization import NetworkDenoiser
from bench.models.train.recipes import NETWORKS, RECIPES, Recipe
from bench.suite.registry.names import EMBEDDED, WEIGHTS
from bench.suite.registry.registry import load_registry

HALF = 898


def embedded(name: str, dataset: str = "digits") -> NetworkDenoiser:
    model = load_registry((), dataset).model(name)
    return NetworkDenoiser(load_network(model.weights, model.description))


def sample(name: str, steps: int, count: int, seed: int) -> torch.Tensor:
    denoiser, path = embedded(name), levels("cosine", 1000, steps)
    images = []
    for numbers in torch.arange(count).split(128):
        draws = Draws(Noise(seed), numbers)
        *_, last = walk(denoiser, path, prior(path[0], draws, (1, 8, 8)), Ancestral("learned"), draws)
        images.append(quantize(last.x_next))
    return torch.cat(images)


@pytest.mark.slow
def test_adm_is_as_close_to_half_of_the_data_as_the_other_half_nearly():
    # The bound is the project's own: at 100 steps and N = 898, at most 1.3 times the mean distance between two halves
    # over ten splits. Both sides have the same N, so that their bias is the same.
    extractor = open_extractor("digits")
    real = extractor.extract(load("digits").images)[0]
    ours = feature_moments(extractor.extract(sample("adm", 100, HALF, seed=5))[0])
    between, to_half = [], []
    for split in range(10):
        order = np.random.RandomState(split).permutation(len(real))
        halves = [feature_moments(real[rows]) for rows in (order[:HALF], order[HALF : 2 * HALF])]
        between.append(frechet_distance(*halves[0], *halves[1]))
        to_half.append(frechet_distance(*ours, *halves[0]))
    assert np.mean(to_half) <= 1.3 * np.mean(between)


TRAININGS = {
    f"{name}-t{number}": number - 1 for name in ("adm", "adm-ip", "ddpm-y", "adm-null-time") for number in (2, 3)
}  # by name, with their seeds
ON_CIFAR10 = {
    "cifar10": ("adm", "adm-ip", "ddpm-y"),
    "cifar10-16": [
        *("adm-dropout", "adm-lsm", "flow"),  # the first two, controls, are named by their files
        *(f"{name}{number}" for name in ("adm", "adm-ip", "ddpm-y") for number in ("", "-t2", "-t3")),
    ],
}


@pytest.mark.parametrize("name", TRAININGS)
def test_further_trainings_differ_by_their_seed_alone(name):
    first, further = (load_registry((), "digits").model(one) for one in (name.rpartition("-t")[0], name))
    assert further.description.training["seed"] == TRAININGS[name]
    assert further.description.network == first.description.network
    later = further.description.training  # whose record says more than that of the first training
    assert {key: later[key] for key in first.description.training} == first.description.training | {
        "seed": TRAININGS[name]
    }
    assert further.weights_hash != first.weights_hash


def test_the_embedded_weights_are_small_and_complete():
    families = {folder.name: sorted(folder.glob("*.safetensors")) for folder in WEIGHTS.iterdir() if folder.is_dir()}
    names = {family: {path.stem for path in files} for family, files in families.items()}
    assert names == {
        "digits": {*EMBEDDED, *TRAININGS},
        "digits-affine": {"adm", "adm-ip"},
        **{family: set(names) for family, names in ON_CIFAR10.items()},
    }
    sizes = {family: sum(path.stat().st_size for path in files) / 2**20 for family, files in families.items()}
    assert sizes["digits"] < 15
    assert sizes["digits-affine"] < 2
    assert sizes["cifar10"] < 50
    assert sizes["cifar10-16"] < 2.75 * len(names["cifar10-16"])  # of one training


def recorded(recipe: Recipe, training: Mapping[str, object]) -> dict[str, object]:
    """Return a recipe as a training recorded it: fields that came later had their default, and are left out."""
    fields, plain = asdict(recipe), asdict(Recipe(recipe.name))
    assert all(fields[name] == plain[name] for name in fields.keys() - training.keys())
    return {name: value for name, value in fields.items() if name in training}


@pytest.mark.parametrize("name", ["adm", "adm-ip"])
def test_the_models_of_digits_affine_are_those_of_their_recipes(name):
    training = load_registry((), "digits-affine").model(name).description.training
    images = {"data": "digits-affine-train (120000)", "data_hash": "30f46ba04bedf8ba"}
    assert training == recorded(RECIPES[f"digits-affine/{name}"], training) | images


@pytest.mark.parametrize(
    ("dataset", "name"), [(dataset, name) for dataset, names in ON_CIFAR10.items() for name in names]
)
def test_the_cifar10_families_are_those_of_their_recipes(dataset, name):
    recipe, _, number = name.partition("-t")
    description = read_description(WEIGHTS / dataset / f"{name}.safetensors")
    training = dict(description.training)
    images = {"data": f"{dataset}-jpeg-train (50000)", "data_hash": unseen(dataset).embedded.content}
    seed = {"seed": int(number or 1) - 1}
    assert training == recorded(RECIPES[f"{dataset}/{recipe}"], training) | images | seed
    network = {**NETWORKS[dataset], "dropout": RECIPES[f"{dataset}/{recipe}"].dropout}
    network["out_channels"] //= 2 if RECIPES[f"{dataset}/{recipe}"].is_continuous else 1  # no learned variance
    lists = {key: list(network[key]) for key in ("channel_mult", "attention_resolutions")}
    assert description.network == network | lists


@pytest.mark.ci
def test_the_cifar10_family_predicts_noise_it_has_not_seen():
    """On half noised pictures of smooth colour the error of eps is far below 1, that of no prediction at all.

    Training ended at a mean squared error of about .06 over all indices; pictures this smooth are easier.
    """
    denoiser, level = embedded("adm", "cifar10"), levels("cosine", 1000, 3)[1]  # t = 500
    g = torch.Generator().manual_seed(0)
    colour = torch.rand(4, 3, 1, 1, generator=g) * 2 - 1
    x0 = colour * torch.linspace(0.2, 1, 32).reshape(1, 1, 1, 32).expand(4, 3, 32, 32)
    noise = torch.randn(4, 3, 32, 32, generator=g)
    with torch.no_grad():
        eps = denoiser(level.alpha * x0 + level.sigma * noise, level).eps
    assert (eps - noise).square().mean() < 0.1


@pytest.mark.parametrize(("scale", "least", "most"), [(0.0, 0, 15), (1.0, 46, 50), (3.0, 46, 50)])
def test_the_conditional_model_draws_the_class_that_it_is_told(scale, least, most):
    """Unconditional, 5 of 50 are right by chance and more than 15 with probability 2e-5; told, nearly all are."""
    path, rows, extractor = levels("cosine", 1000, 10), torch.arange(50), open_extractor("digits")
    denoiser, draws = ClassifierFreeDenoiser(embedded("adm-cond"), ClassifierFree(scale, 10)), Draws(Noise(5), rows)
    start = prior(path[0], draws, (1, 8, 8))
    *_, last = walk(denoiser, path, start, Ancestral("learned"), draws, cond=rows % 10)
    features = extractor.extract(quantize(last.x_next))[0]
    right = int((extractor.logits(torch.from_numpy(features)).argmax(1) == rows % 10).sum())
    assert least <= right <= most


def test_the_conditional_model_is_that_of_its_recipe():
    description = load_registry((), "digits").model("adm-cond").description
    assert description.classes == 11
    assert description.training == recorded(RECIPES["adm-cond"], description.training) | {
        name: description.training[name] for name in ("data", "data_hash")
    }
