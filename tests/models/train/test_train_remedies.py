"""What a training does with the remedies that need the network's own predictions or a gamma of the index."""

import pytest
import torch
from cases import at_first
from trainings import CPU, NETWORK, short

from bench.diffusion.noise import Noise, Purpose
from bench.diffusion.samplers import Draws
from bench.models.train import trainer as training
from bench.models.train.objectives import hybrid_loss, make_pair
from bench.models.train.scheduled_sampling import Rollout
from bench.models.train.trainer import Batches, Trainer


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def weights(recipe, images, iterations=4):
    """The state after some iterations, and how many images the network was asked about at each."""
    trainer, batches = Trainer(recipe, NETWORK, CPU), Batches(images, recipe.batch, recipe.seed)
    asked = []
    called, trainer._called = trainer._called, lambda net, x, *how: asked[-1].append(len(x)) or called(net, x, *how)
    for iteration in range(iterations):
        asked.append([])
        trainer.step(*batches.at(iteration))
    return trainer.network.state_dict(), asked


@pytest.mark.parametrize(
    ("name", "changes", "limit"),
    at_first(
        [
            ("adm-mdss", {"scheduled_sampling": 0.0}, "adm"),
            ("adm-dream", {"dream_power": 1e9}, "adm"),  # sigma of the indices drawn here is below 1 - 1e-6
            ("adm-ip-t", {"gamma_schedule": "constant"}, "adm-ip"),
            ("adm-mdss", {"scheduled_sampling": 1e-9}, "adm"),  # never as much as an image
            ("adm-ip-t", {"gamma": 0.0}, "adm"),
        ],
        3,
    ),
)
def test_every_remedy_has_a_limit_that_is_the_plain_training_bit_for_bit(images, name, changes, limit):
    found, _ = weights(short(name, **changes), images)
    plain, _ = weights(short(limit), images)
    other, _ = weights(short(name), images)
    assert same(found, plain)
    assert not same(other, plain)


CALLS = [
    ("adm", [[4]] * 4),
    ("adm-ip-t", [[4]] * 4),
    ("adm-dream", [[4, 4]] * 4),
    # A share of 0, 1/6, 1/3 and 1/2 of four images, four steps each.
    ("adm-mdss", [[4], [1, 1, 1, 1, 4], [1, 1, 1, 1, 4], [2, 2, 2, 2, 4]]),
]


@pytest.mark.parametrize(("name", "expected"), CALLS)
def test_what_a_remedy_costs_in_network_calls(images, name, expected):
    assert weights(short(name), images)[1] == expected


def test_scheduled_sampling_replaces_the_front_of_a_batch(images, monkeypatch):
    """What the loss sees: own states with their consistent targets, then the plain pairs."""
    seen, pairs = [], []
    monkeypatch.setattr(training, "hybrid_loss", lambda *args: seen.append(args[2:4]) or hybrid_loss(*args))
    monkeypatch.setattr(training, "make_pair", lambda *args: pairs.append(make_pair(*args)) or pairs[-1])
    recipe = short("adm-mdss", iterations=3)
    trainer, batches = Trainer(recipe, NETWORK, CPU), Batches(images, 4, 0)
    for iteration in range(2):
        trainer.step(*batches.at(iteration))
    before = Trainer(recipe, NETWORK, CPU)  # as it was when the last batch was made
    before.step(*batches.at(0))
    x0, numbers, _ = batches.at(1)
    noise = Noise(0)
    t = noise.integers(numbers, Purpose.TRAIN_INDEX, 0, 1000)
    drawn = noise.normal(numbers, Purpose.TRAIN_NOISE, 0, (1, 8, 8))
    rollout = Rollout.make("cosine", 1000, recipe.rollout_steps, recipe.rollout_stride)
    own = rollout.pair(before.predict, x0[:1], t[:1], drawn[:1], Draws(noise, numbers[:1]))
    for made, plain, whole in zip(own, pairs[1], seen[1], strict=True):  # a quarter of four images at half the way
        assert torch.equal(whole[:1], made)
        assert torch.equal(whole[1:], plain[1:])


@pytest.mark.parametrize(("largest", "replaced"), [(0.5, 2), (1.0, 4)])
def test_own_states_do_not_train_the_variance(images, monkeypatch, largest, replaced):
    """At the last iteration the share is the largest; the bound counts of the other images alone, bit for bit."""
    seen = []
    monkeypatch.setattr(training, "hybrid_loss", lambda *args: seen.append(hybrid_loss(*args)) or seen[-1])
    trainer = Trainer(short("adm-mdss", scheduled_sampling=largest), NETWORK, CPU)
    trainer.iteration = 3
    losses = trainer.step(*Batches(images, 4, 0).at(3))
    ((mse, bound),) = seen
    assert torch.equal(losses.mse, mse.mean())
    assert torch.equal(losses.bound, bound[replaced:].mean() if replaced < 4 else torch.zeros(()))
    assert bound[:replaced].min() > 0


def test_dream_adds_the_networks_own_error(images, monkeypatch):
    """Float32 roundings of numbers below 10: 1e-6."""
    seen, pairs = [], []
    monkeypatch.setattr(training, "hybrid_loss", lambda *args: seen.append(args) or hybrid_loss(*args))
    monkeypatch.setattr(training, "make_pair", lambda *args: pairs.append(make_pair(*args)) or pairs[-1])
    trainer = Trainer(short("adm-dream"), NETWORK, CPU)
    monkeypatch.setattr(trainer, "_descend", lambda loss: None)
    trainer.step(*Batches(images, 4, 0).at(0))
    ((process, _, y, target, _, t),), ((plain, noise),) = seen, pairs
    with torch.no_grad():
        error = process.sigma[t] * (noise - trainer.predict(plain, t)[:, :1])
    torch.testing.assert_close(target, noise + error, rtol=0, atol=1e-6)
    torch.testing.assert_close(y, plain + process.sigma[t] * error, rtol=0, atol=1e-6)
    assert not target.requires_grad
    assert not y.requires_grad


def test_the_gamma_of_an_image_follows_its_index(images, monkeypatch):
    """Float32 of a few products below .1: 1e-8."""
    seen = []
    monkeypatch.setattr(training, "make_pair", lambda *args: seen.append((args[3], args[6])) or make_pair(*args))
    Trainer(short("adm-ip-t"), NETWORK, CPU).step(*Batches(images, 4, 0).at(0))
    ((t, gamma),) = seen
    torch.testing.assert_close(gamma.flatten(), 0.001 + 0.099 * t / 999, rtol=0, atol=1e-8)
