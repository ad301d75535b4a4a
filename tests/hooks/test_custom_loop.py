"""Loops of one's own: a hand-written DDIM and a k-diffusion Euler are recorded as the same loops of diffusers are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exact_loops import MEAN, VARIANCE, Pipeline, gaussian_data, scheduler_of

from bench.hooks import HookError, record

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers under numpy 2


def exact(x, level):
    """The exact denoiser of the data: E[x0 | x]."""
    gain = level.alpha * VARIANCE / (level.alpha**2 * VARIANCE + level.sigma**2)
    return MEAN + gain * (x - level.alpha * MEAN)


def assert_same(found, reference):
    keys = ["arm", "quantity", "i", "stage"]
    both = found.merge(reference, on=keys, suffixes=("", "_other"))
    assert len(both) == len(found) == len(reference)
    for name in ("alpha", "sigma", "value"):
        np.testing.assert_allclose(both[name], both[f"{name}_other"], rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("kind", ["eps", "x0", "v"])
def test_a_hand_written_ddim(kind):
    pipe, real = Pipeline("DDIMScheduler", {}, 5), gaussian_data()
    start = pipe.start(32)
    with record(pipe, real=real, forced=20) as reference:
        pipe(start, steps=5)
    scheduler = scheduler_of("DDIMScheduler", {}, 5)

    def said(x, level):
        x0 = exact(x, level)
        eps = (x - level.alpha * x0) / level.sigma
        return {"eps": eps, "x0": x0, "v": level.alpha * eps - level.sigma * x0}[kind]

    with record(real=real, forced=20, network=said) as log:
        x, kept = start.clone(), [*(scheduler.alphas_cumprod[t].item() for t in scheduler.timesteps), 1.0]
        for k, t in enumerate(scheduler.timesteps):
            (alpha, sigma), (alpha_next, sigma_next) = ((a**0.5, (1 - a) ** 0.5) for a in kept[k : k + 2])
            level = type("Level", (), {"alpha": alpha, "sigma": sigma})
            before, x0 = x.clone(), exact(x, level)
            eps = (x - alpha * x0) / sigma
            x.copy_(alpha_next * x0 + sigma_next * eps)  # in place, as loops do
            output = said(before, level)
            log.step(t=int(t), alpha=alpha, sigma=sigma, x=before, prediction=output, x_next=x, kind=kind)
    assert_same(log.table(), reference.table())


def sample_euler(model, x, sigmas, callback):
    """The loop of k-diffusion's function of this name, with its callback."""
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i])
        callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return x


def test_a_k_diffusion_sampler():
    pipe, real = Pipeline("EulerDiscreteScheduler", {}, 5), gaussian_data()
    x = pipe.start(32)
    with record(pipe, real=real, forced=20) as reference:
        for _ in range(2):
            pipe(x, steps=5)

    def model(x, sigma):
        return exact(x, type("Level", (), {"alpha": 1.0, "sigma": sigma}))

    with record(real=real, forced=20, network=lambda x, level: model(x, level.sigma)) as log:
        for _ in range(2):  # two batches
            sample_euler(model, x, pipe.scheduler.sigmas, log.callback)
    assert log.samples == 64
    assert_same(log.table(), reference.table())


def step(log, **changes):
    x, output, x_next = torch.zeros(3, 2, 1, 4, 4)
    log.step(**{"t": 5, "alpha": 0.6, "sigma": 0.8, "x": x, "prediction": output, "x_next": x_next, **changes})


ZERO = torch.zeros(2, 1, 4, 4)
IMPOSSIBLE = [
    ({"prediction": torch.zeros(2, 3, 4, 4)}, r"prediction is \(2, 3, 4, 4\), x is \(2, 1, 4, 4\)"),
    ({"x_next": torch.zeros(2, 4)}, "x_next must be a float tensor"),
    ({"x": None}, "x must be a float tensor"),
    ({"kind": "epsilon"}, "kind must be one of eps, v, x0, flow"),
    ({"kind": "flow"}, "a flow has alpha"),
    ({"sigma": 0.0}, "sigma > 0"),
    ({"alpha": 0.0}, "says nothing of the data"),
    ({"sigma": float("nan")}, "sigma > 0"),
    ({"t": torch.zeros(2)}, "must be numbers"),
    ({"x": ZERO, "x_next": ZERO}, r"one tensor; give x as it was before the step: x.clone\(\)"),
]


@pytest.mark.parametrize(("changes", "message"), IMPOSSIBLE)
def test_impossible_steps_are_one_line(changes, message):
    with pytest.raises(HookError, match=message) as error, record() as log:
        step(log, **changes)
    assert "\n" not in str(error.value)


def walks(log, *sigmas):
    for sigma in sigmas:
        step(log, alpha=(1 - sigma**2) ** 0.5, sigma=sigma)


def test_walks_of_other_levels_are_refused():
    with pytest.raises(HookError, match="another level than in the walk before"), record() as log:
        walks(log, 0.8, 0.4, 0.7, 0.3)


def test_a_callback_of_another_library():
    with pytest.raises(HookError, match="gets x, sigma and denoised"), record() as log:
        log.callback({"step": 3})


def test_without_a_network_the_free_arm_is_alone_and_said_so():
    with record(real=torch.randn(8, 1, 4, 4)) as log:
        walks(log, 0.8, 0.4)
    assert set(log.table()["arm"]) == {"free"}
    assert log.notes == ["no teacher-forced arm: no network= was given to ask about real data"]
