"""The commands of docs/reproduce.md parse, cost what is printed, and stand beside the published values."""

import re
import shlex
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from edm_files import write_edm_pickle

from bench.data import DATASETS
from bench.models.checkpoints.guided_diffusion import PRESETS
from bench.suite.cli import run
from bench.suite.config.flags import make_parser
from bench.suite.config.request import make_request
from bench.suite.config.resolve import resolve_models, resolve_sampler
from bench.suite.plan import Cell
from bench.suite.registry.registry import load_registry

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "reproduce.md").read_text()
SECTION = GUIDE.split("## Commands and their cost")[1].split("\n## ")[0]
PUBLISHED = ROOT / "analysis" / "published"
BLOCKS = [
    [line for line in block.splitlines() if line.startswith("python ")]
    for block in SECTION.split("```")[1].split("\n# ")[1:]
]
COMMANDS = [command for block in BLOCKS for command in block]
# Training and held-out images of the datasets as the page names them.
PARTS = {
    "cifar10": (50_000, 10_000), "imagenet32": (1_281_167, 0), "lsun-tower64": (50_000, 0), "celeba64": (50_000, 0),
    "ffhq128": (70_000, 0), "imagenet64": (1000, 0), "imagenet128": (1000, 0),
}  # fmt: skip
TITLES = {
    "CIFAR10-32": "CIFAR-10", "ImageNet-32": "ImageNet 32x32", "LSUN-tower-64": "LSUN tower 64x64",
    "CelebA-64": "CelebA 64x64", "FFHQ-128": "FFHQ 128x128", "ImageNet-64": "ImageNet 64x64",
    "ImageNet-128": "ImageNet 128x128",
}  # fmt: skip
DATASET_OF = {"cifar10": "CIFAR10-32", "lsun-tower64": "LSUN-tower-64", "ffhq128": "FFHQ-128"} | {
    "imagenet64": "ImageNet-64", "imagenet128": "ImageNet-128",
}  # fmt: skip


def arguments(command):
    return make_parser().parse_args(shlex.split(command)[2:])


def code(language, name):
    return re.search(rf"```{language}\n(# {name}.*?)```", GUIDE, re.DOTALL)[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Small stand-ins under every path that the commands name; a ``.pt`` is only described here, never opened."""
    root = tmp_path_factory.mktemp("files")
    for path in {word for command in COMMANDS for word in re.findall(r"[\w./-]+\.pt\b", command)}:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"PK\x03\x04 a stand-in that begins as a file of torch.save does")
    (root / "weights" / "edm").mkdir()
    for name, labels in (("uncond", 0), ("cond", 10)):
        path = root / "weights" / "edm" / f"edm-cifar10-32x32-{name}-vp.pkl"
        write_edm_pickle(path, image_size=32, channels=3, label_dim=labels)
    network = UNet2DModel(
        32, block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)
    )
    network.save_pretrained(root / "google" / "ddpm-cifar10-32")
    DDPMScheduler(variance_type="fixed_large").save_pretrained(root / "google" / "ddpm-cifar10-32")
    (root / "ddim_ip.py").write_text(code("python", "ddim_ip.py"))
    (root / "ddim_ip.toml").write_text(code("toml", "ddim_ip.toml"))
    torch.save([{}, {}, 0, 0, {}], root / "weights" / "cifar10" / "DDIM-IP.pth")
    return root


@pytest.fixture(scope="module")
def cells(folder):
    """Return a function that plans a command's cells, once, without loading networks or images."""

    @cache
    def plan(command):
        args = arguments(command)
        request = make_request(args)
        models = resolve_models(request, load_registry(args.config, args.dataset))
        sampler = resolve_sampler(request, models)
        return [
            Cell(model, sampler, steps, 0, request.samples, request.in_cells(), "data", PARTS[args.dataset], "weights")
            for model in models
            for steps in request.steps
        ]

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield plan


def test_there_is_a_block_of_commands_for_every_row():
    assert len(COMMANDS) == 22
    assert len(BLOCKS) == len(rows())
    named = {arguments(command).dataset for command in COMMANDS}
    assert named == set(PARTS)
    assert named <= set(PRESETS)
    assert named <= set(DATASETS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_follows_the_papers_protocol(cells, command):
    args, planned = arguments(command), cells(command)
    assert (args.samples, args.seeds) == (50_000, "0")
    is_adm = {cell.model.name for cell in planned} <= {"adm", "adm-ip", "adm-es", "adm-es-linear"}
    config = planned[0].config
    assert (config.quantize == "floor") == is_adm
    if is_adm:
        found = (config.sampler, config.variance, config.clip, config.spacing)
        assert found == ("ddpm", "learned", True, "plain")
        assert {cell.model.guidance.scale if cell.model.guidance else 0 for cell in planned} == {
            0.5 if args.dataset == "imagenet128" else 0
        }


# --- cost ------------------------------------------------------------------------------------------------------------


def rows():
    """Return the entries of the page's table of files and costs."""
    table = SECTION.split("| dataset | into `data/`")[1].split("\n\n")[0]
    return [[entry.strip() for entry in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


def cost(cell):
    """Network calls of (the samples, the instruments); in one unit of work each, which says the same as many."""
    units = [(unit.arm == "free", cell.unit_cost(unit)) for unit in cell.units(cell.samples)]
    return sum(calls for free, calls in units if free), sum(calls for free, calls in units if not free)


@pytest.mark.parametrize("row", range(len(BLOCKS)))
def test_printed_costs_are_the_planners(cells, row):
    printed = [round(1e6 * float(number)) for number in re.findall(r"([\d.]+) M", rows()[row][3])]
    planned = [sum(cost(cell)[0] for cell in cells(command)) for command in BLOCKS[row]]
    assert planned == (printed if len(printed) > 1 else printed * len(planned))


def test_the_instruments_share_is_as_printed(cells):
    text = " ".join(SECTION.split())
    low, high, traced_low, traced_high = map(
        int, re.search(r"adds (\d+) to (\d+) %.*? (\d+) to (\d+) %", text).groups()
    )
    shares = {False: [], True: []}
    for command in COMMANDS:
        planned = cells(command)
        if planned[0].measure:
            samples, instruments = np.sum([cost(cell) for cell in planned], axis=0)
            traced = planned[0].instruments.paired > 0
            shares[traced].append(round(100 * instruments / samples))
    assert (min(shares[False]), max(shares[False])) == (low, high)
    assert (min(shares[True]), max(shares[True])) == (traced_low, traced_high)


# --- published values ------------------------------------------------------------------------------------------------


def published(name):
    return pd.read_csv(PUBLISHED / f"{name}.csv", dtype=str, keep_default_na=False)


def line(*entries):
    return f"| {' | '.join(entries)} |"


@pytest.mark.parametrize(("name", "metric"), [("ddpm_ip_table3", "FID"), ("adm_es", "FID"), ("ddpm_ip_table3", "sFID")])
def test_printed_values_are_the_published_ones(name, metric):
    table = published(name)
    groups = table[table["metric"] == metric].groupby(["dataset", "model"])
    page, counts = (SECTION, ("20", "50", "80")) if metric == "FID" else (GUIDE, ("80",))
    for (dataset, model), own in groups:
        values = own.set_index("steps")["value"]
        entries = (values.get(n, "-") for n in (*counts, "100", "300", "1000"))
        assert line(TITLES[dataset], model, *entries, f"`{name}`") in page
    printed = [text for text in SECTION.splitlines() if text.endswith(f"| `{name}` |")]
    assert metric == "sFID" or len(printed) == groups.ngroups


def test_printed_edm_values_are_the_published_ones():
    table = published("edm_es")
    for (model, solver), own in table.groupby(["model", "solver"]):
        ordered = own.assign(nfe=own["nfe"].astype(int)).sort_values(["conditioning", "nfe"], ascending=[False, True])
        texts = [f"{row.value} ({row.b})" if row.b else row.value for row in ordered.itertuples()]
        assert line(model, solver, *texts) in GUIDE


def test_printed_ddim_values_are_the_published_ones():
    for (model, eta), own in published("ddim_ip").groupby(["model", "eta"]):
        values = own.set_index("steps")["value"]
        assert line(model, eta, *(values[n] for n in ("10", "20", "50", "100", "1000"))) in GUIDE


@pytest.mark.parametrize("command", [c for c in COMMANDS if "adm-es" in c or "edm-es" in c])
def test_scaling_constants_are_the_published_ones(cells, command):
    for cell in cells(command):
        if cell.model.name.startswith("adm-es"):
            name = "ADM-ES*" if cell.model.name == "adm-es-linear" else "ADM-ES"
            own = published("adm_es").set_index(["dataset", "model", "steps"])
            row = own.loc[DATASET_OF[arguments(command).dataset], name, str(cell.steps)]
            # 1e-9: k is kept as k (steps - 1).
            scale = cell.model.scale_at(cell.config.sampler, cell.steps)
            assert scale == pytest.approx((float(row["b"]), float(row["k"])), abs=1e-9)
        elif cell.model.name == "edm-es":
            conditioning = "cond" if cell.model.description.classes else "uncond"
            own = published("edm_es").set_index(["conditioning", "model", "solver", "num_steps_flag"])
            row = own.loc[conditioning, "EDM-ES", cell.config.sampler, str(cell.steps)]
            assert cell.model.scale_at(cell.config.sampler, cell.steps) == (float(row["b"]), 0)


def test_every_file_of_the_commands_is_in_the_guide():
    named = {word for command in COMMANDS for word in re.findall(r"(?:weights|stats)/([\w./-]+)", command)}
    table = GUIDE.split("## Where the files are")[1].split("##")[0]
    for path in named:
        folder, _, name = path.rpartition("/")
        assert f"`{name}`" in table
        assert f"`weights/{folder}`" in table if folder else "`stats`" in table


# --- what can be run small -------------------------------------------------------------------------------------------


@pytest.fixture
def cifar(tmp_path):
    """Twenty random pictures in ten class folders."""
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "cifar10.npz", arr_0=rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8), arr_1=np.arange(20) % 10
    )
    return tmp_path


SMALL = [command for command in COMMANDS if "weights/edm" in command or "google/" in command]


@pytest.mark.slow
@pytest.mark.parametrize("command", SMALL)
def test_commands_run_on_small_networks(folder, cifar, monkeypatch, command):
    monkeypatch.chdir(folder)
    words = shlex.split(command)[2:]
    words = [
        word for word in words if word not in ("--reference", "stats/cifar10-32x32.npz")
    ]  # of Inception's features
    changes = {"--data-dir": cifar, "--samples": 4, "--steps": "2,3", "--out": cifar / "results"}
    for flag, value in changes.items():
        words[words.index(flag) + 1] = str(value)
    scaled = [] if "edm-es" not in command else ["--eps-scale", "1.01"]
    code, out = run([*words, *scaled, "--features", "cifar10", "--batch-size", "4", "--quiet"])
    assert code == 0
    assert len(list((out / "cells").glob("*/metrics.json"))) == 2 * len(arguments(command).models.split(","))
