"""Short trainings of a small network, for tests."""

import dataclasses

import torch

from bench.models.train.recipes import NETWORKS, RECIPES

CPU = torch.device("cpu")
SMALL = "digits-affine-small"  # the name of a network without attention
NETWORK = dict(NETWORKS[SMALL])


def short(name, iterations=4, **changes):
    return dataclasses.replace(RECIPES[name], network=SMALL, iterations=iterations, batch=4, **changes)
