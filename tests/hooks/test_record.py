"""Recorded pipelines: nothing of theirs changes, and what is recorded is what their loop did."""

from __future__ import annotations

import copy
import random
import threading
from contextlib import nullcontext
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from cases import at_first
from exact_loops import SETTINGS, VARIANCE, Pipeline, gaussian_data, scheduler_of

from analysis.records.load import load_results
from bench.data import load, to_unit
from bench.diffusion.noise import Noise
from bench.diffusion.samplers import Draws, teacher_forced, walk
from bench.diffusion.schedules import alpha_bars, levels
from bench.diffusion.solvers import DDIM, Ancestral
from bench.hooks import HookError, record
from bench.hooks.frames import frame_of
from bench.hooks.real_data import RealData
from bench.measure.instruments.moments import PixelMoments
from bench.measure.instruments.probes import WalkProbe
from bench.measure.instruments.step_table import PixelStatistics, to_table
from bench.models.checkpoints.formats import open_network
from bench.models.denoisers.parameterization import NetworkDenoiser
from bench.runtime.errors import UserError
from bench.suite.registry.registry import load_registry

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers under numpy 2
LABELS = [f"{name}-{'-'.join(map(str, settings.values()))}" for name, settings in SETTINGS]
STEPS, BATCH = 5, 16
DIGITS = load("digits").part("train")


def values(table, arm, quantity):
    rows = table[(table["arm"] == arm) & (table["quantity"] == quantity) & (table["stage"] == 0)]
    return rows.set_index("i")["value"].sort_index(ascending=False)


@pytest.mark.parametrize(("name", "settings"), at_first(SETTINGS, 10), ids=LABELS)
def test_an_exact_denoiser_in_every_scheduler(name, settings):
    """Levels and predictions are those of the network's own, norms and variances those of the loop's own states."""
    pipe = Pipeline(name, settings)
    scheduler, start = pipe.scheduler, pipe.start(64)
    plain, states = pipe(start), pipe.states
    pipe.unet.answers = []
    with record(pipe, real=gaussian_data(), forced=100) as log:
        recorded = pipe(start)
    assert torch.equal(recorded, plain)  # bit for bit
    table, answers = log.table(), pipe.unet.answers[: len(scheduler.timesteps)]
    free = table[table["arm"] == "free"]
    eps = free[free["quantity"] == "eps_rms"].sort_values(["i", "stage"], ascending=[False, True])
    for row, (alpha, sigma, x0, noise), x in zip(eps.itertuples(), answers, states, strict=False):
        assert row.alpha == pytest.approx(alpha, abs=1e-5)
        assert row.sigma == pytest.approx(sigma, rel=1e-5, abs=1e-5)
        torch.testing.assert_close(alpha * x0 + sigma * noise, x, atol=1e-5 * max(sigma, 1), rtol=1e-5)
        assert row.value == pytest.approx(float(noise.flatten(1).square().sum(1).mean().sqrt()), rel=1e-3)
    assert len(eps) == len(answers)
    # Of each step the last state: its variance is that of the loop's own, and the data's own where nothing is walked.
    variance = values(table, "free", "var_marginal")
    ends = [states[k + 1] for k, call in enumerate(frame_of(scheduler).calls) if call.completes]
    expected = [float(x.double().var(0).mean()) for x in ends]
    np.testing.assert_allclose(variance.to_numpy(), expected, rtol=1e-4)
    error = values(table, "forced-train", "x0_rmse")
    levels_of = free[free["quantity"] == "eps_rms"].set_index("i")
    for i, value in error.items():
        level = levels_of[levels_of["stage"] == 0].loc[i]
        posterior = VARIANCE * level.sigma**2 / (level.alpha**2 * VARIANCE + level.sigma**2)
        assert value == pytest.approx(posterior**0.5, rel=0.08)  # of 100 images of 16 pixels: 1 / sqrt(3200) = 1.8 %


DETERMINISTIC = [
    (name, settings) for name, settings in SETTINGS
    if name not in ("DDPMScheduler", "EulerAncestralDiscreteScheduler") and "algorithm_type" not in settings
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings"), DETERMINISTIC)
def test_variances_follow_the_loops_linear_recursion(name, settings):
    """A deterministic loop of the exact denoiser maps every pixel by x -> slope x + offset, known from two starts."""
    pipe = Pipeline(name, settings)
    pipe(torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 1, 4, 4).clone())
    maps = [(x[0, 0, 0, 0], x[1, 0, 0, 0] - x[0, 0, 0, 0]) for x in pipe.states[1:]]
    start = pipe.start(32, 2)
    with record(pipe) as log:
        pipe(start)
    calls = frame_of(pipe.scheduler).calls
    slopes = [float(slope) for (_, slope), call in zip(maps, calls, strict=True) if call.completes]
    expected = np.square(slopes) * float(start.double().var(0).mean())
    np.testing.assert_allclose(values(log.table(), "free", "var_marginal").to_numpy(), expected, rtol=2e-3, atol=1e-7)


class EpsOnly(torch.nn.Module):
    """The embedded network as a diffusers model, its output cut to eps."""

    def __init__(self, network):
        super().__init__()
        self.network, self.config = network, SimpleNamespace(in_channels=1, sample_size=8)
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        t = torch.as_tensor(timestep).expand(len(sample))
        return SimpleNamespace(sample=self.network(sample, t, None).sample[:, :1])


@pytest.fixture(scope="module")
def embedded():
    model = load_registry([], "digits").model("adm")
    return EpsOnly(open_network(model.weights, model.description)).eval()


class SameNoise(Draws):
    """The noise that a pipeline's generator draws: the start, then a step's at a time."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.start = torch.randn(BATCH, 1, 8, 8, generator=self.generator)

    def normal(self, purpose, step, shape):
        return torch.randn(BATCH, *shape, generator=self.generator)


SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}  # ours, diffusers'


def scheduler_at(kind, schedule, **settings):
    """A scheduler of diffusers, that of the cosine schedule with alpha_bar in float64.

    In float32 1 - alpha_bar has three digits at its end, and the pipeline's own states differ by more than 1e-5.
    """
    scheduler = kind(beta_schedule=SCHEDULES[schedule], **settings)
    if schedule == "cosine":
        scheduler.alphas_cumprod = torch.from_numpy(alpha_bars(schedule, 1000))
    return scheduler


def own_table(denoiser, solver, clip, schedule="linear"):
    """The suite's own walk and teacher forcing, measured by its own probe."""
    path = levels(schedule, 1000, f"leading{STEPS}")
    moments = PixelMoments.of(DIGITS)
    data = PixelStatistics(moments.mean.numpy(), moments.variance.numpy())
    draws, real, rows = SameNoise(3), to_unit(DIGITS), []
    probe = WalkProbe(STEPS, range(STEPS), real.mean(0), False)
    for step in walk(denoiser, path, draws.start, solver, draws, clip=clip):
        probe.update(step)
    rows += WalkProbe.result("free", probe.state(), range(STEPS), path, data, solver)
    forced = WalkProbe(STEPS, range(STEPS), real.mean(0), True)
    numbers = torch.arange(32)
    for step in teacher_forced(denoiser, path, real[:32], solver, Draws(Noise(0), 2 * numbers), clip=clip):
        forced.update(step)
    rows += WalkProbe.result("forced-train", forced.state(), range(STEPS), path, data, solver)
    return to_table(rows)


def assert_same(found, own, arms=("free", "forced-train")):
    keys = ["arm", "quantity", "i", "stage"]
    both = found.merge(own, on=keys, suffixes=("", "_own"))
    both = both[both["arm"].isin(arms)]
    assert len(both) == len(own[own["arm"].isin(arms)])
    np.testing.assert_allclose(both["value"], both["value_own"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(both["std"], both["std_own"], rtol=1e-4, atol=1e-5)
    for name in ("t", "alpha", "sigma", "n"):
        np.testing.assert_allclose(both[name].astype(float), both[f"{name}_own"].astype(float), atol=1e-5)


@pytest.mark.parametrize("schedule", at_first(SCHEDULES, 1))
def test_ddpm_pipeline_gives_the_steps_of_our_own_walk(embedded, schedule):
    pipe = diffusers.DDPMPipeline(embedded, scheduler_at(diffusers.DDPMScheduler, schedule))
    with record(pipe, real=DIGITS, forced=32) as log:
        pipe(BATCH, torch.Generator().manual_seed(3), num_inference_steps=STEPS, output_type="np")
    own = own_table(NetworkDenoiser(embedded), Ancestral("fixed-small"), True, schedule)
    assert_same(log.table(), own, ["free"])
    calls = ("eps_norm", "eps_used_norm", "x0_rmse", "x0_nu", "x0_bias", "x0_norm")  # forced steps draw other noise
    assert_same(log.table(), own[(own["arm"] == "free") | own["quantity"].isin(calls)])


@pytest.mark.parametrize("schedule", at_first(SCHEDULES, 1))
@pytest.mark.parametrize("clip", at_first([True, False], 1))
def test_ddim_pipeline_gives_the_steps_of_our_own_walk(embedded, clip, schedule):
    pipe = diffusers.DDIMPipeline(embedded, scheduler_at(diffusers.DDIMScheduler, schedule, clip_sample=clip))
    pipe.scheduler = scheduler_at(diffusers.DDIMScheduler, schedule, clip_sample=clip)  # which that made anew
    with record(pipe, real=DIGITS, forced=32) as log:
        pipe(BATCH, torch.Generator().manual_seed(3), 0.0, STEPS, use_clipped_model_output=True, output_type="np")
    assert_same(log.table(), own_table(NetworkDenoiser(embedded), DDIM(), clip, schedule))


def test_v_prediction_gives_the_steps_of_our_own_walk(small_unet):
    scheduler = diffusers.DDIMScheduler(clip_sample=False, prediction_type="v_prediction")
    pipe = diffusers.DDIMPipeline(small_unet, scheduler)
    with record(pipe, real=DIGITS, forced=32) as log:
        pipe(BATCH, torch.Generator().manual_seed(3), 0.0, STEPS, output_type="np")
    assert_same(log.table(), own_table(NetworkDenoiser(small_unet, "v"), DDIM(), False))


def digits_pipe(unet, **settings):
    pipe = diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler(**settings))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe, steps=3):
    return pipe(4, torch.Generator().manual_seed(0), num_inference_steps=steps, output_type="pt").images


def recorded(pipe, **options):
    """Return the log of a small loop, and its images."""
    with record(pipe, **options) as log:
        images = sample(pipe)
    return log, images


def is_untouched(pipe):
    own = {"step", "set_timesteps"} & pipe.scheduler.__dict__.keys()
    return not own and not pipe.unet._forward_hooks


NO_PIPELINES = [
    ("a name", "str is no pipeline with a scheduler and a unet or transformer"),
    (SimpleNamespace(unet=torch.nn.Identity()), "is no pipeline with a scheduler"),
    (SimpleNamespace(unet=torch.nn.Identity(), scheduler=diffusers.LCMScheduler()), "LCMScheduler"),
    (None, "nothing was recorded"),
]


@pytest.mark.parametrize(("pipe", "message"), NO_PIPELINES)
def test_what_is_no_pipeline(pipe, message):
    with pytest.raises(HookError, match=message) as error, record(pipe):
        pass
    assert "\n" not in str(error.value)


OTHER_LOOPS = [
    (lambda pipe: (sample(pipe, 3), sample(pipe, 5)), "two loops in the block have different levels"),
    (lambda pipe: (sample(pipe), broken_off(pipe)), "a loop ended after 1 of its 3 calls"),
    (lambda pipe: (broken_off(pipe), sample(pipe)), "a loop ended after 1 of its 3 calls"),
    (lambda pipe: replaced(pipe), "got another scheduler in the block"),
    (lambda pipe: pipe.unet(torch.zeros(1, 1, 8, 8), 0), "never called step of its DDIMScheduler"),
]


@pytest.mark.parametrize(("loops", "message"), OTHER_LOOPS)
def test_another_loop_in_the_block(small_unet, loops, message):
    pipe = digits_pipe(small_unet)
    with pytest.raises(HookError, match=message) as error, record(pipe) as log:
        loops(pipe)
    assert is_untouched(pipe)
    assert "\n" not in str(error.value)
    with pytest.raises(HookError, match="after the block"):
        log.table()


def broken_off(pipe):
    pipe.scheduler.set_timesteps(3)
    pipe.scheduler.step(torch.zeros(4, 1, 8, 8), pipe.scheduler.timesteps[0], torch.zeros(4, 1, 8, 8))


def replaced(pipe):
    sample(pipe)
    pipe.scheduler = diffusers.DDIMScheduler()


NOT_REAL = [
    ("digits", "real images are str"),
    (torch.zeros(1, 1, 8, 8), "at least two"),
    (torch.zeros(3, 8, 8), r"real images are \(3, 8, 8\)"),
    (torch.zeros(3, 1, 8, 8, dtype=torch.int64), "int64"),
    (torch.full((3, 1, 8, 8), torch.nan), "not finite"),
    ((torch.zeros(3, 1, 8, 8), torch.zeros(3)), "must map names"),
    ((torch.zeros(3, 1, 8, 8), {"class_labels": torch.zeros(2)}), "'class_labels' must be a tensor of 3 rows"),
]
IMPOSSIBLE = [
    *(({"real": real}, message) for real, message in NOT_REAL),
    *(({name: value}, None) for name, value in (("forced", 1), ("forced", None), ("seed", -1), ("seed", "a"))),
    *(({name: value}, None) for name, value in (("name", "a/b"), ("out", __file__))),
]


@pytest.mark.parametrize(("options", "message"), IMPOSSIBLE)
def test_impossible_options(small_unet, options, message):
    with pytest.raises(UserError, match=message) as error, record(digits_pipe(small_unet), **options):
        pass
    assert "\n" not in str(error.value)


def test_two_nested_recorders(small_unet):
    pipe = digits_pipe(small_unet)
    with pytest.raises(HookError, match="being recorded already"), record(pipe), record(pipe):
        pass
    assert is_untouched(pipe)
    assert recorded(pipe)[0].samples == 4  # nothing is left of them


def test_an_exception_in_the_middle_of_the_loop(small_unet, tmp_path):
    """The user's own error comes out as it is, the pipeline is as before, and nothing is written."""
    pipe = digits_pipe(small_unet)
    expected = sample(pipe)

    def fail(*_):
        raise ZeroDivisionError("mine")

    handle = pipe.unet.mid_block.register_forward_hook(fail)
    with pytest.raises(ZeroDivisionError, match="mine"), record(pipe, out=tmp_path / "out"):
        sample(pipe)
    handle.remove()
    assert is_untouched(pipe)
    assert not (tmp_path / "out").exists()
    assert torch.equal(sample(pipe), expected)


MISTAKES = [  # ours, a scheduler's that cannot be copied, and the user's
    (lambda _, patch: patch.setattr("bench.hooks.loops.Tape.update", lambda *_: 1 / 0), "failed: division by zero"),
    (lambda pipe, _: setattr(pipe.scheduler, "lock", threading.Lock()), "recording failed: cannot pickle"),
    (lambda *_: {"real": torch.zeros(4, 1, 4, 4)}, r"states are \(1, 8, 8\) and real images \(1, 4, 4\)"),
]


@pytest.mark.parametrize(("spoil", "message"), MISTAKES)
def test_no_mistake_breaks_the_loop(small_unet, monkeypatch, spoil, message):
    """The loop is whole and its images are the user's; the block ends in one line."""
    pipe = digits_pipe(small_unet)
    expected = sample(pipe)
    options = spoil(pipe, monkeypatch) or {}
    with pytest.raises(HookError, match=message) as error, record(pipe, **options):
        assert torch.equal(sample(pipe), expected)
    assert "\n" not in str(error.value)
    assert is_untouched(pipe)


def test_a_copy_of_the_scheduler_is_not_recorded(small_unet):
    """Neither in the block nor after it: its methods are its own."""
    pipe = digits_pipe(small_unet)
    with record(pipe) as log:
        copied = copy.deepcopy(pipe.scheduler)
        sample(pipe)
        copied.set_timesteps(3)
        copied.step(torch.zeros(2, 1, 8, 8), copied.timesteps[0], torch.zeros(2, 1, 8, 8))
    assert (log.samples, copied.step.__self__, copied.step.__func__) == (4, copied, diffusers.DDIMScheduler.step)


CARELESS = {
    "inference mode": lambda pipe: [torch.inference_mode()(sample)(pipe)],
    "two calls": lambda pipe: [sample(pipe), sample(pipe)],
    "a generator an image": lambda pipe: [
        pipe(4, [torch.Generator().manual_seed(k) for k in range(4)], num_inference_steps=2, output_type="pt").images
    ],
    "numpy": lambda pipe: [
        torch.from_numpy(pipe(3, torch.Generator().manual_seed(0), num_inference_steps=2, output_type="np").images)
    ],
    "no generator": lambda pipe: [torch.manual_seed(0) and sample(pipe)],
    "one step": lambda pipe: [sample(pipe, 1)],
}


@pytest.mark.parametrize("way", at_first(CARELESS, 3))
def test_careless_users_have_their_images_and_a_whole_table(small_unet, way, tmp_path):
    """Blocks one after the other, in a folder, with fewer real images than a batch has."""
    pipe = digits_pipe(small_unet)
    expected = CARELESS[way](pipe)
    for name in ("first", "second"):
        with record(pipe, real=DIGITS[:3], out=tmp_path, name=name, exact=False) as log:
            images = CARELESS[way](pipe)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(images, expected, strict=True))
    assert is_untouched(pipe)
    assert (log.notes, set(log.table()["arm"])) == ([], {"free", "forced-train"})
    assert set(log.table().query("arm == 'free'")["n"]) == {sum(map(len, expected))}
    assert len(load_results(tmp_path).cells) == 2


def test_a_whole_block_in_inference_mode(small_unet):
    with torch.inference_mode():
        log, _ = recorded(digits_pipe(small_unet), real=DIGITS, forced=4)
    assert set(log.table()["arm"]) == {"free", "forced-train"}


@pytest.mark.parametrize(("name", "settings"), [s for s in SETTINGS if s != ("PNDMScheduler", {})])  # whose least is 4
def test_a_loop_of_one_step(name, settings):
    pipe = Pipeline(name, settings, 1)
    with record(pipe, real=gaussian_data(20), forced=4) as log:
        pipe(torch.randn(3, 1, 4, 4), steps=1)
    assert set(log.table()["arm"]) == {"free", "forced-train"}


def test_images_of_an_unlikely_range(small_unet):
    with pytest.raises(HookError, match="whole numbers up to 255 as floats; give pixels as uint8"):
        RealData.of(DIGITS.float())
    assert "within 0 and 1" in RealData.of(DIGITS.numpy()[..., ::-1] / 255).note  # strides that torch has not
    with pytest.raises(HookError, match="real images are ndarray"):
        RealData.of(np.array([[[["a"]]]]))


class OneLayer(EpsOnly):
    """A network that compiles in no time."""

    def __init__(self):
        super().__init__(None)
        self.layer = torch.nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, sample, timestep, return_dict=True):
        return SimpleNamespace(sample=self.layer(sample))


@pytest.mark.parametrize("way", ["module", "in place"])
def test_a_compiled_network(way):
    small_unet = OneLayer()
    log, _ = recorded(digits_pipe(small_unet), real=DIGITS, forced=8)
    if way == "module":
        small_unet = torch.compile(small_unet, backend="eager")
    else:
        small_unet.compile(backend="eager")
    pipe = digits_pipe(small_unet)
    expected = sample(pipe)
    compiled, images = recorded(pipe, real=DIGITS, forced=8)
    assert torch.equal(images, expected)
    assert_same(compiled.table(), log.table())
    assert not compiled.notes


@pytest.mark.parametrize("dtype", at_first([torch.bfloat16, torch.float16], 1))
def test_half_precision(small_unet, dtype):
    """A whole table, near that of float32, from states that stay in half precision."""
    log, _ = recorded(digits_pipe(small_unet), real=DIGITS, forced=16)
    pipe = digits_pipe(small_unet.to(dtype))
    expected = sample(pipe)
    half, found = recorded(pipe, real=DIGITS, forced=16)
    assert torch.equal(found, expected)
    assert found.dtype == dtype
    for arm in ("free", "forced-train"):
        near = values(half.table(), arm, "eps_rms")
        np.testing.assert_allclose(near, values(log.table(), arm, "eps_rms"), rtol=0.05)


def test_without_real_images_the_free_arm_is_alone_and_said_so(small_unet):
    log, _ = recorded(digits_pipe(small_unet))
    assert set(log.table()["arm"]) == {"free"}
    assert not log.table()["value"].isna().any()
    assert "the free arm alone is recorded" in log.notes[0]


def test_batches_are_one_record(small_unet):
    """Two calls of the pipeline count as one arm: the mean is that of both."""
    pipe, tables = digits_pipe(small_unet), []
    for seeds in ([1], [2], [1, 2]):
        with record(pipe) as log:
            for seed in seeds:
                pipe(4, torch.Generator().manual_seed(seed), num_inference_steps=3, output_type="pt")
        tables.append(values(log.table(), "free", "eps_norm"))
    np.testing.assert_allclose(tables[2], (tables[0] + tables[1]) / 2, rtol=1e-6)
    assert (log.samples, set(log.table()["n"])) == (8, {8})


def test_a_remedy_in_the_users_loop_is_told_from_what_the_network_says(small_unet):
    """A scheduler that is given eps / 1.25: the norm before is the network's own, the norm after is a fifth less."""
    scheduler = scheduler_of("DDIMScheduler", {}, 3)
    with record(SimpleNamespace(unet=small_unet, scheduler=scheduler)) as log, torch.no_grad():
        x = torch.randn(4, 1, 8, 8)
        for t in scheduler.timesteps:
            x = scheduler.step(small_unet(x, t).sample / 1.25, t, x).prev_sample
    raw, used = (values(log.table(), "free", name) for name in ("eps_norm", "eps_used_norm"))
    np.testing.assert_allclose(used, raw / 1.25, rtol=1e-5)


def test_the_users_random_numbers_do_not_move(small_unet, tmp_path):
    """A loop that draws from the global generators, before and after a block that opens networks, fits and scores."""

    def numbers(options):
        pipe = digits_pipe(small_unet)
        for seed in (torch.manual_seed, np.random.seed, random.seed):
            seed(5)
        with record(pipe, **options) if options else nullcontext():
            images = pipe(52, num_inference_steps=2, output_type="pt").images
        return [*images.flatten().tolist(), float(torch.rand(1)), np.random.rand(), random.random()]  # noqa: NPY002

    assert numbers({}) == numbers({"real": DIGITS, "out": tmp_path, "forced": 4, "exact": False})


def test_memory_does_not_grow_with_the_number_of_images(small_unet):
    pipe, sizes = digits_pipe(small_unet), []
    with record(pipe) as log:
        for _ in range(3):
            sample(pipe)
            probes = log._tapes["free"]._probes.values()
            sizes.append(sum(m._sums.numel() for probe in probes for m in probe.moments.values()))
    assert sizes[0] == sizes[2] > 0


@pytest.mark.parametrize("scales", [True, False])
def test_the_forced_arm_asks_as_the_loop_asks(small_unet, scales):
    """Some pipelines never scale states as their scheduler asks; neither does the teacher-forced arm then."""
    scheduler = scheduler_of("EulerDiscreteScheduler", {}, 3)
    sizes = []

    def hear(_, args, kwargs, out):
        sizes.append(float((args[0] if args else kwargs["sample"]).std()))

    handle = small_unet.register_forward_hook(hear, with_kwargs=True)
    with record(SimpleNamespace(unet=small_unet, scheduler=scheduler), real=DIGITS, forced=8) as log, torch.no_grad():
        x = torch.randn(8, 1, 8, 8) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            seen = scheduler.scale_model_input(x, t)
            x = scheduler.step(small_unet(seen if scales else x, t).sample, t, x).prev_sample
    handle.remove()
    assert not log.notes
    assert (sizes[0] > 10) == (sizes[3] > 10) == (not scales)  # the noisiest call of either arm
