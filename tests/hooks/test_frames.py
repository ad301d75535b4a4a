"""Frames agree with what each scheduler itself does with noise, and refuse what they do not know."""

from __future__ import annotations

import diffusers
import pytest
import torch
from exact_loops import FLOWS, SETTINGS, scheduler_of

from bench.diffusion.types import Level, Prediction
from bench.hooks.frames import HookError, check_scheduler, converted, frame_of, restarted

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers under numpy 2
LABELS = [f"{name}-{'-'.join(map(str, settings.values()))}" for name, settings in SETTINGS]


@pytest.mark.parametrize(("name", "settings"), SETTINGS, ids=LABELS)
def test_levels_are_those_the_scheduler_adds_noise_at(name, settings):
    """alpha is what add_noise makes of ones without noise, sigma what it makes of noise alone."""
    scheduler = scheduler_of(name, settings)
    frame, one, none = frame_of(scheduler), torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    assert len(frame.calls) == len(scheduler.timesteps)
    for k, (call, t) in enumerate(zip(frame.calls, scheduler.timesteps, strict=True)):
        if call.stage and name == "KDPM2DiscreteScheduler":
            continue  # add_noise knows no level between two
        if name in FLOWS:
            fresh = (restarted(scheduler, k) for _ in range(2))
            alpha, sigma = next(fresh).scale_noise(one, t[None], none), next(fresh).scale_noise(none, t[None], one)
        else:
            alpha, sigma = scheduler.add_noise(one, none, t[None]), scheduler.add_noise(none, one, t[None])
        assert call.level.alpha == pytest.approx(float(alpha[0, 0, 0, 0]), abs=1e-6)
        assert call.level.sigma == pytest.approx(float(sigma[0, 0, 0, 0]), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("name", "settings"), SETTINGS, ids=LABELS)
def test_steps_chain(name, settings):
    """Each step starts where the one before ended, to what the scheduler rounds; indices count down to 0."""
    frame = frame_of(scheduler_of(name, settings))
    firsts = [call for call in frame.calls if call.stage == 0]
    lasts = [call for call in frame.calls if call.completes]
    assert len(firsts) == len(lasts)
    assert frame.indices[0] == len(firsts) - 1
    assert frame.indices[-1] == 0
    for last, first in zip(lasts, firsts[1:], strict=False):
        assert last.level_next.sigma == pytest.approx(first.level.sigma, rel=0.02)


@pytest.mark.parametrize("kind", ["eps", "v", "x0", "flow"])
@pytest.mark.parametrize("level", [Level(5, 0.6, 0.8), Level(5, 1.0, 7.0), Level(5, 0.3, 0.7)])
def test_outputs_and_predictions_are_inverse(kind, level):
    if kind == "flow" and level.alpha + level.sigma != 1:
        return
    x0, eps = torch.randn(2, 3, 1, 4, 4).unbind()
    x = level.alpha * x0 + level.sigma * eps
    size = (level.alpha**2 + level.sigma**2) ** 0.5
    outputs = {"eps": eps, "x0": x0, "v": (level.alpha * eps - level.sigma * x0) / size, "flow": eps - x0}
    found = converted(kind, outputs[kind], x, level)
    torch.testing.assert_close(found.x0, x0, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.eps, eps, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "settings"), SETTINGS, ids=LABELS)
def test_an_output_is_made_of_the_prediction_it_means(name, settings):
    frame = frame_of(scheduler_of(name, settings))
    level = frame.calls[2].level
    x0, eps = torch.randn(2, 3, 1, 4, 4).unbind()
    x = level.alpha * x0 + level.sigma * eps
    found = frame.prediction(frame.output(Prediction(eps, x0), x, level), x, level)
    torch.testing.assert_close(found.x0, x0, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.eps, eps, atol=1e-4, rtol=1e-4)


def test_other_schedulers_are_refused_by_name():
    with pytest.raises(HookError, match="LCMScheduler is known; a description would need alpha and sigma"):
        check_scheduler(diffusers.LCMScheduler())


def test_inverted_flows_are_refused():
    with pytest.raises(HookError, match="inverted sigmas"):
        check_scheduler(diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True))


def test_a_restarted_scheduler_leaves_the_other_alone():
    scheduler = scheduler_of("DPMSolverMultistepScheduler", {})
    fresh = restarted(scheduler, 3)
    fresh.step(torch.zeros(1, 1, 2, 2), scheduler.timesteps[3], torch.ones(1, 1, 2, 2))
    assert (fresh.step_index, scheduler.step_index) == (4, None)
