"""The command from its flags to its files, on the embedded baseline and on a tiny random network."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cases import at_first
from records import edited

from bench.files.writing import write_record
from bench.suite import run as whole_run
from bench.suite.cells import reference
from bench.suite.cli import run
from bench.suite.config.flags import make_parser
from bench.suite.config.resolve import device_of
from bench.suite.registry import constants
from bench.suite.registry.names import EMBEDDED
from bench.suite.registry.remedies import SUFFIXES
from bench.suite.settings import ConfigError

ROOT = Path(__file__).parents[2]
ADM = ("--models", "adm", "--features", "digits", "--quiet")
SHORT = (*ADM, "--steps", "2,3", "--samples", "16")
SAMPLED = {"samples.npz", "steps.csv", "moments.npz", "errors.npz"}
CELL_FILES = SAMPLED | {"features.npz", "kernel.npy", "influence.npz", "metrics.json"}
DISTANCES = ("fd", "sfd", "fd_strat", "kid", "precision", "recall", "is")
DISTANCES += ("fd_exact", "fd_exact_sd", "fd_exact_low", "fd_exact_high")
SCORES = ["nn_ratio", *("_".join([head, "digits", *tail]) for head, *tail in (name.split("_") for name in DISTANCES))]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A complete run of the baseline; ``tests/test_regression.py`` has one with tables and figures."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert run([*SHORT, "--samples", "70", "--out", str(out)]) == (0, out)
    return out


@pytest.fixture
def no_network(interrupting):
    """Have any network call end the run with code 130."""
    with interrupting(0):
        yield


def samples_of(out, cell="adm-ddpm-3-seed0"):
    with np.load(out / "cells" / cell / "samples.npz") as file:
        return file["arr_0"]


# --- what a run leaves ------------------------------------------------------------------------------------------


def test_every_promised_file_is_there(finished):
    assert {path.name for path in (finished / "cells").iterdir()} == {"adm-ddpm-2-seed0", "adm-ddpm-3-seed0"}
    for cell in (finished / "cells").iterdir():
        assert {path.name for path in cell.iterdir()} == CELL_FILES


def test_scores_say_why_they_are_empty(finished):
    found = json.loads((finished / "cells" / "adm-ddpm-3-seed0" / "metrics.json").read_text())
    scores = {score["metric"]: score for score in found["scores"]}
    assert list(scores) == SCORES
    assert scores["fd_digits"]["value"] > 0
    assert scores["sfd_digits"]["value"] is None
    assert "113 images" in scores["sfd_digits"]["reason"]
    assert (found["nfe"], scores["kid_digits"]["n"]) == (3, 70)
    assert scores["kid_digits"]["reference"] == "digits-train (1442)"


def test_run_file(finished):
    record = json.loads((finished / "run.json").read_text())
    configuration = record["configuration"]
    assert (configuration["steps"], configuration["variance"]) == ([2, 3], "learned")
    assert len(configuration["models"]["adm"]["weights"]) == 64
    assert {"torch", "numpy", "diffusers", "torch-fidelity"} <= set(record["packages"])
    assert record["device"] in ("cpu", "cuda", "mps")
    assert record["start"] <= record["end"]
    assert record["images_per_second"] > 0
    metrics = [json.loads(path.read_text()) for path in (finished / "cells").glob("*/metrics.json")]
    assert record["network_calls"] == sum(found["network_calls"] for found in metrics)


# --- repeating, interrupting, resuming -----------------------------------------------------------------------------


def test_a_repeated_run_computes_nothing(finished, no_network, command):
    before = {path: path.stat().st_mtime_ns for path in (finished / "cells").rglob("*")}
    assert command(*SHORT, "--samples", "70", "--out", finished).code == 0
    assert {path: path.stat().st_mtime_ns for path in (finished / "cells").rglob("*")} == before
    outcome = command(*SHORT, "--samples", "70", "--out", finished, "--dry-run")
    assert outcome.out.count("  done") == 3  # two cells, and their exact denoisers


def test_other_features_rescore_without_sampling(tmp_path, command, no_network, finished):
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    assert command("--models", "adm", "--steps", "2,3", "--samples", "70", "--features", "none", "--out", out).code == 0
    found = json.loads((out / "cells" / "adm-ddpm-2-seed0" / "metrics.json").read_text())
    assert [score["metric"] for score in found["scores"]] == ["nn_ratio"]
    assert found["network_calls"] > 0
    assert (samples_of(out) == samples_of(finished)).all()
    for cell in (out / "cells").iterdir():  # nothing of the former features is left
        assert {path.name for path in cell.iterdir()} == CELL_FILES - {"features.npz", "kernel.npy", "influence.npz"}
        assert set(json.loads((cell / "metrics.json").read_text())["files"]) == SAMPLED
    record = json.loads((out / "run.json").read_text())
    assert record["configuration"]["features"] == "none"
    assert record["end"] is not None
    assert command(*SHORT, "--samples", "70", "--out", out).code == 0  # and back
    assert json.loads((out / "run.json").read_text())["configuration"]["features"] == "digits"
    assert {path.name for path in (out / "cells" / "adm-ddpm-2-seed0").iterdir()} == CELL_FILES
    np.testing.assert_array_equal(
        *(np.load(run / "cells" / "adm-ddpm-2-seed0" / "kernel.npy") for run in (out, finished))
    )


def test_another_set_of_scores_rescores_without_sampling(tmp_path, command, no_network, finished, monkeypatch):
    # What a cell of an earlier version looks like: it has fewer scores and says which set they are.
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    path = out / "cells" / "adm-ddpm-2-seed0" / "metrics.json"
    found = json.loads(path.read_text())
    older = [score for score in found["scores"] if score["metric"] != "kid_digits"]
    write_record(path, found | {"scores": older, "features": found["features"].replace("scores", "older")})
    assert command(*SHORT, "--samples", "70", "--out", out).code == 0
    assert json.loads(path.read_text()) == found
    monkeypatch.setattr(reference, "SCORES_VERSION", 99)  # and of a later one
    assert command(*SHORT, "--samples", "70", "--out", out).code == 0
    again = {path.parent.name: json.loads(path.read_text()) for path in (out / "cells").glob("*/metrics.json")}
    assert {made["features"][-9:] for made in again.values()} == {"-scores99"}
    assert again[path.parent.name]["scores"] == found["scores"]
    assert (samples_of(out) == samples_of(finished)).all()


@pytest.mark.ci
def test_a_resumed_run_keeps_its_first_start(tmp_path, command, interrupting):
    out = tmp_path / "out"
    with interrupting(1):
        assert command(*SHORT, "--out", out).code == 130
    with edited(out / "run.json") as record:
        record["start"] = "2001-02-03T04:05:06+00:00"
    assert command(*SHORT, "--out", out).code == 0
    assert json.loads((out / "run.json").read_text())["start"] == "2001-02-03T04:05:06+00:00"
    assert command(*SHORT, "--out", out, "--features", "none").code == 0  # another run
    assert json.loads((out / "run.json").read_text())["start"] > "2001-02-03T04:05:06+00:00"


@pytest.mark.parametrize("text", at_first(["[]", "", '{"hash": 3}'], 1))
def test_a_damaged_account_is_written_anew(tmp_path, command, text):
    out = tmp_path / "out"
    out.mkdir()
    (out / "run.json").write_text(text)
    assert command(*ADM, "--steps", "1", "--samples", "2", "--no-probes", "--out", out).code == 0
    assert json.loads((out / "run.json").read_text())["end"] is not None


def test_a_longer_run_keeps_the_cells_it_has(finished, tmp_path, command, interrupting):
    out = tmp_path / "copy"
    shutil.copytree(finished, out)
    with interrupting(-1) as counting:
        assert command(*ADM, "--steps", "1,2,3", "--samples", "70", "--out", out).code == 0
    assert counting.made > 0
    assert len(list((out / "cells").iterdir())) == 3
    np.testing.assert_array_equal(samples_of(out), samples_of(finished))


def test_another_configuration_in_the_same_folder_is_refused(finished, command):
    assert command(*SHORT, "--samples", "71", "--out", finished).refused("another samples", "choose another --out")
    other_steps = (*ADM, "--steps", "5", "--samples", "70", "--out", finished)  # cells of other names
    assert command(*other_steps, "--no-clip").refused("another clip", "choose another --out")
    assert command(*other_steps, "--variance", "fixed-large").refused("another variance")
    assert not (finished / "cells" / "adm-ddpm-5-seed0").exists()


# --- what must not change the images -------------------------------------------------------------------------------


def test_probes_do_not_change_a_bit(finished, tmp_path, command):
    out = tmp_path / "out"
    assert command(*SHORT, "--samples", "70", "--no-probes", "--out", out).code == 0
    np.testing.assert_array_equal(samples_of(out), samples_of(finished))
    assert not (out / "cells" / "adm-ddpm-3-seed0" / "steps.csv").exists()


def test_fewer_samples_are_the_first_ones(finished, tmp_path, command):
    """They are walked in a smaller batch, which moves few pixels by one level."""
    out = tmp_path / "out"
    assert command(*ADM, "--steps", "3", "--no-probes", "--samples", "9", "--out", out).code == 0
    made = samples_of(out).astype(int)
    difference = abs(made - samples_of(finished)[: len(made)])[..., 0]
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 2e-3  # one of the 576 pixels of nine images


def test_seeds_change_the_images(tmp_path, command):
    out = tmp_path / "out"
    assert command(*ADM, "--steps", "2", "--samples", "4", "--no-probes", "--seeds", "0-1", "--out", out).code == 0
    first, second = (samples_of(out, f"adm-ddpm-2-seed{seed}").astype(int) for seed in (0, 1))
    assert (first != second).mean() > 0.3


# --- other models, datasets and samplers ---------------------------------------------------------------------------

TINY = ("--models", "tiny", "--dataset", "pictures", "--features", "none", "--steps", "2", "--quiet")


def test_a_dataset_of_ones_own(tmp_path, toml, command):
    out = tmp_path / "out"
    assert command(*TINY, "--samples", "6", "--config", toml, "--out", out).code == 0
    found = json.loads((out / "cells" / "tiny-ddpm-2-seed0" / "metrics.json").read_text())
    (ratio,) = found["scores"]
    assert ratio["value"] is None
    assert "no held-out part" in ratio["reason"]
    arms = set(pd.read_csv(out / "cells" / "tiny-ddpm-2-seed0" / "steps.csv")["arm"])
    assert arms == {"free", "forced-train"}


WAYS = [
    ("--sampler", "ddim"), ("--sampler", "ddim", "--eta", "1", "--spacing", "ddim"),
    ("--variance", "fixed-small", "--no-clip"), ("--variance", "fixed-large", "--quantize", "floor"),
]  # fmt: skip


@pytest.mark.parametrize("flags", WAYS)
def test_ways_to_sample(tmp_path, toml, command, flags):
    out = tmp_path / "out"
    assert command(*TINY, "--samples", "5", "--config", toml, "--out", out, *flags).code == 0
    (cell,) = (out / "cells").iterdir()
    found = json.loads((cell / "metrics.json").read_text())["cell"]
    assert found["variance"] == (None if "ddim" in flags[1] else flags[1])
    assert found["clip"] == ("--no-clip" not in flags)
    table = pd.read_csv(cell / "steps.csv")
    assert ("paired" in set(table["arm"])) == ("--spacing" in flags)  # ddim2 starts at t = 500


@pytest.mark.parametrize("samples", at_first([1, 2], 1))
def test_very_few_samples(tmp_path, command, samples):
    out = tmp_path / "out"
    assert command(*ADM, "--steps", "1", "--samples", samples, "--out", out).code == 0
    (cell,) = (out / "cells").iterdir()
    scores = {score["metric"]: score["value"] for score in json.loads((cell / "metrics.json").read_text())["scores"]}
    assert scores["fd_digits"] is None
    assert scores["kid_digits"] is None  # of fewer than 50
    assert (cell / "kernel.npy").exists() == (samples >= 2)


def test_a_fixed_variance_is_the_default_without_a_learned_one(tmp_path, save_tiny, command):
    weights, out = save_tiny(out_channels=1), tmp_path / "out"
    args = ("--features", "none", "--steps", "2", "--samples", "3", "--quiet", "--out", out)
    assert command("--models", f"adm={weights}", *args).code == 0
    found = json.loads((out / "cells" / "adm-ddpm-2-seed0" / "metrics.json").read_text())
    assert found["cell"]["variance"] == "fixed-large"
    outcome = command("--models", f"adm={weights}", *args, "--variance", "learned")
    assert outcome.refused("does not learn its variance", "fixed-small")


def test_models_that_disagree_on_the_variance_need_one_for_all(tmp_path, save_tiny, command):
    plain, out = save_tiny(out_channels=1), tmp_path / "out"
    args = ("--models", f"adm,plain={plain}", "--features", "none", "--steps", "2", "--samples", "3", "--out", out)
    assert command(*args).refused("'plain' learns no variance", "choose one with --variance for all")
    assert not out.exists()
    assert command(*args, "--variance", "fixed-small", "--dry-run").code == 0
    assert command(*args, "--sampler", "ddim", "--dry-run").code == 0  # no variance there


def test_class_labels_must_be_the_datasets(tmp_path, save_tiny, command):
    weights, out = save_tiny(num_classes=7), tmp_path / "out"
    args = ("--models", f"mine={weights}", "--steps", "2", "--samples", "3", "--features", "none", "--out", out)
    assert command(*args).refused("takes 7 class labels, dataset 'digits' has 10", "--no-probes")
    assert not out.exists()
    assert command(*args, "--no-probes", "--quiet").code == 0


@pytest.mark.parametrize("model", at_first(["ddpm-y-es={tiny}", "adm-es-linear"], 1))
def test_scaling_without_tuned_constants_is_refused(tmp_path, tiny_weights, command, monkeypatch, model):
    empty = tmp_path / "constants.toml"
    empty.write_text("" if "=" not in model else (TUNED.format("ddpm") + TUNED.format("ddim")))
    monkeypatch.setattr(constants, "_CONSTANTS", empty)
    out, model = tmp_path / "out", model.format(tiny=tiny_weights)
    args = ("--models", model, "--steps", "5", "--samples", "3", "--out", out)
    for flags, sampler in (((), "ddpm"), (("--sampler", "ddim"), "ddim"), (("--eps-slope", "0.001"), "ddpm")):
        outcome = command(*args, *flags)
        untuned = f"no {sampler} scaling constants were tuned for"
        assert outcome.refused(untuned, model.split("=")[0], "give --eps-scale")
    assert not out.exists()
    assert "eps / (1.02 + 0 i)" in command(*args, "--eps-scale", "1.02", "--dry-run").out
    assert "eps / (1.02 + 0.001 i)" in command(*args, "--eps-scale", "1.02", "--eps-slope", "0.001", "--dry-run").out


TUNED = "[digits.adm-es.{0}]\nsteps = [10]\nb = [1.03]\nspan = [0.0]\n"


def test_scaling_constants_from_the_command_line(tmp_path, command):
    out = tmp_path / "out"
    flags = ("--eps-scale", "1.5", "--eps-slope", "0.25")
    args = ("--models", "adm,adm-es", "--steps", "3", "--samples", "4", "--no-probes", "--quiet", "--out", out)
    assert command(*args, *flags).code == 0
    for name, constants_of in {"adm": (1.0, 0.0), "adm-es": (1.5, 0.25)}.items():
        cell = json.loads((out / "cells" / f"{name}-ddpm-3-seed0" / "metrics.json").read_text())["cell"]
        assert (cell["eps_scale"], cell["eps_slope"]) == constants_of
    plain, scaled = samples_of(out), samples_of(out, "adm-es-ddpm-3-seed0")
    assert (plain != scaled).any()
    assert "eps / (1.5 + 0.25 i)" in command(*args, *flags, "--dry-run").out


# --- plans and lists -----------------------------------------------------------------------------------------------


def test_dry_run_prints_the_cost_and_writes_nothing(tmp_path, command):
    out = tmp_path / "out"
    outcome = command("--models", "adm", "--steps", "2,3", "--samples", "16", "--out", out, "--dry-run")
    assert outcome.code == 0
    assert not out.exists()
    # 16 forced images (8 of each part) and 42 + 42 more for their errors, at 2 and 3 levels.
    total, instruments = (16 + 16 + 84) * 5, (16 + 84) * 5
    assert f"{total:,} network calls, {100 * instruments / total:.1f} % of them" in outcome.out
    assert "adm-ddpm-2-seed0" in outcome.out
    assert outcome.out.count("to do") == 3  # two cells, and their exact denoisers


def test_the_default_folder_names_dataset_sampler_and_hash(command):
    plans = [command("--models", "adm", "--steps", steps, "--dry-run").out for steps in "23"]
    folders = [next(line.split()[1] for line in plan.splitlines() if line.startswith("out")) for plan in plans]
    assert all(folder.startswith("results/digits-ddpm-") for folder in folders)
    assert folders[0] != folders[1]


def test_list_models(command, toml):
    outcome = command("--list-models", "--config", toml)
    assert outcome.code == 0
    blocks = [part.splitlines() for part in outcome.out.split("\n\n")]
    assert [line.split()[0] for line in blocks[0]] == [*EMBEDDED, "tiny"]
    suffixes = " ".join(blocks[-2])
    assert all(f"-{suffix}" in suffixes for suffix in SUFFIXES)
    assert len(outcome.out.splitlines()) < 40  # it fits on a screen
    few, none = (command("--list-models", "--dataset", name).out.split("\n\n") for name in ("cifar10-16", "mine=there"))
    assert [line.split()[0] for line in few[0].splitlines()] == ["adm", "adm-ip", "ddpm-y", "flow"]
    assert none[0] == "no weights are embedded for the dataset mine=there"


@pytest.mark.parametrize(
    "flags", ["--help", "--list-models", "--nonsense", "--steps ten", "--samples 0", "--models adm-nonsense"]
)
def test_what_needs_no_torch_imports_none(flags):
    code = f"import sys, bench.__main__ as command\ntry: command.main({flags.split()})\nfinally: print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    modules = {name.partition(".")[0] for name in found.stdout.splitlines()[-1].split()}
    assert "bench" in modules
    assert not modules & {"torch", "numpy", "pandas", "matplotlib", "torchvision", "torch_fidelity", "diffusers"}


@pytest.mark.ci
def test_a_run_starts_without_what_only_scores_need():
    code = "import sys, bench.suite.run, bench.suite.execution.launch, bench.suite.tuning.outcome\nprint(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    slow = {"torch_fidelity", "torchvision", "torch._dynamo", "cleanfid", "sklearn", "matplotlib"}
    assert not slow & set(found.stdout.split())


SLOW = [pytest.param(f"-m bench.{name} --help", marks=pytest.mark.slow) for name in ("measure", "models.train")]


@pytest.mark.parametrize("command", ["run_bench.py --list-models", "-m analysis --help", *SLOW])
def test_a_pipe_that_is_closed_ends_a_command_without_a_word(command):
    line = f"{shlex.quote(sys.executable)} -u {command} 2>&1 | head -1"
    found = subprocess.run(line, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert (len(found.stdout.splitlines()), found.stderr) == (1, "")


def test_every_flag_has_a_help_text():
    actions = make_parser()._actions
    assert all(action.help for action in actions)
    flags = {flag for action in actions for flag in action.option_strings}
    promised = (
        "--models --steps --dataset --data-dir --sampler --spacing --eta --variance --samples --seeds --batch-size"
        " --device --clip --no-clip --quantize --eps-scale --eps-slope --probes --no-probes --features"
        " --inception-weights --config --out --list-models --dry-run --quiet"
    )
    assert set(promised.split()) <= flags


@pytest.mark.parametrize("name", ["cuda", "mps", "cpu"])
def test_devices(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: name == "cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: name == "mps")
    assert device_of("auto").type == name
    assert device_of("cpu").type == "cpu"
    for missing in {"cuda", "mps"} - {name}:
        with pytest.raises(ConfigError, match=f"--device {missing} is not available here; use --device auto"):
            device_of(missing)


# --- bad input: one line, code 2, nothing written ------------------------------------------------------------------

BAD_FLAGS = {  # what the line says: the flags that it answers, none of which needs a blank
    "did you mean 'adm'": ["--models admm"],
    "cannot read the checkpoint absent.safetensors": ["--models mine=absent.safetensors"],
    "did you mean 'digits'": ["--dataset digit", "--features digit"],
    "did you mean": ["--sampler ddmp", "--spacing dim", "--variance learnt", "--quantize flor", "--device cdua"],
    "not positive": ["--steps 0", "--steps -5"],
    "between 1 and 1000": ["--steps 1001"],
    "the nearest is ddim": ["--spacing ddim --steps 80"],
    "--samples must be positive": ["--samples 0", "--samples -3"],
    "--batch-size must be positive": ["--batch-size 0", "--batch-size -1"],
    "argument --samples": ["--samples nan", "--samples 2.5"],
    "--eps-scale must be positive": [f"--models adm-es --eps-scale {value}" for value in ("0", "-1", "nan", "inf")],
    "--eps-slope must be a number": ["--models adm-es --eps-slope nan"],
    "must stay positive": ["--models adm-es --eps-scale 1 --eps-slope -2"],
    "--samples and --batch-size go up to 10,000,000": ["--samples 10000001", "--samples " + "9" * 30,
                                                       "--batch-size 10000001"],
    "--out is empty or the current folder": ["--out=", "--out .", "--out ./"],
    "--inception-weights has no effect with --features digits": ["--inception-weights w.pth"],
    "scaling models only": ["--eps-scale 1.01"],
    "no effect with --sampler ddpm": ["--eta 0.5"],
    "no effect with --sampler ddim": ["--sampler ddim --variance learned"],
    "between 0 and 1": ["--sampler ddim --eta 1.5", "--sampler ddim --eta nan"],
    "neither a seed": ["--seeds -1"],
    "--shard: ": ["--shard 3/2", "--shard="],
    "cannot read --config absent.toml": ["--config absent.toml"],
    "no Inception weights at absent.pth": ["--features inception --inception-weights absent.pth"],
    "--compile": ["--compile yes"],
    "--nonsense": ["--nonsense"],
    "--step 5": ["--step 5"],  # no abbreviations
    "--measure": ["--measure everything", "--no-probes --measure steps"],
}  # fmt: skip


@pytest.mark.parametrize(("message", "flags"), [(message, one) for message, all_ in BAD_FLAGS.items() for one in all_])
def test_bad_flags(tmp_path, command, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    given = ("--models", "adm", "--steps", "2", "--samples", "4", "--out", "out", *flags.split())
    assert command(*given).refused(message)
    assert list(tmp_path.iterdir()) == []


def test_out_of_memory_is_one_line(tmp_path, command, monkeypatch):
    def exhausted(error):
        def call(x, level, cond=None):
            raise error("tried to allocate 80 GiB\nover\nmany lines")

        return lambda network, description, device: call

    for error in (MemoryError, torch.OutOfMemoryError):
        with monkeypatch.context() as patch:
            patch.setattr(whole_run, "denoiser_of", exhausted(error))
            outcome = command(*SHORT, "--out", tmp_path / "out")
        assert outcome.refused("out of memory; use a smaller --batch-size, then the same command goes on")


def test_a_file_where_the_results_should_go(tmp_path, command):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        assert command(*SHORT, "--out", out).refused("choose another --out")
    assert (tmp_path / "file").read_text() == "mine"


def write_pictures(path, shape):
    np.savez(path, arr_0=np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


UNFIT = [
    ((9, 16, 16, 1), ("--features", "digits"), "reads 8x8 images only"),
    ((9, 8, 8, 3), ("--features", "none"), "takes 1 channels"),
    ((1, 8, 8, 1), ("--features", "none"), "fewer than 2 training images"),
]


@pytest.mark.parametrize(("shape", "flags", "message"), UNFIT)
def test_datasets_that_do_not_fit(tmp_path, command, save_tiny, shape, flags, message):
    write_pictures(tmp_path / "pictures.npz", shape)
    weights = save_tiny(channel_mult=(1, 1))
    config = tmp_path / "bench.toml"
    config.write_text(f'[models.m]\nweights = "{weights}"\n[datasets.p]\npath = "pictures.npz"')
    args = ("--models", "m", "--dataset", "p", "--data-dir", tmp_path, "--config", config, "--steps", "2")
    assert command(*args, "--samples", "3", "--out", tmp_path / "out", *flags).refused(message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("columns", [40, 60, 100])
def test_help_fits_the_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert max(map(len, make_parser().format_help().splitlines())) <= columns
