import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.diffusion.schedules import alpha_bars
from bench.models.checkpoints.formats import open_network
from bench.models.checkpoints.native import load_network, read_description, save_network
from bench.runtime.errors import CheckpointError
from bench.suite.registry import constants as constants_module
from bench.suite.registry import names as names_module
from bench.suite.registry.constants import Constants
from bench.suite.registry.names import EMBEDDED, WEIGHTS, trainings
from bench.suite.registry.registry import load_registry
from bench.suite.registry.remedies import Remedy
from bench.suite.settings import ConfigError


@pytest.fixture
def constants(tmp_path, monkeypatch):
    """Return a function that replaces the tuned constants."""

    def write(text):
        path = tmp_path / "constants.toml"
        path.write_text(text)
        monkeypatch.setattr(constants_module, "_CONSTANTS", path)

    return write


KNOTS = Constants((10, 1000), {"b": (1.02, 1.004), "span": (0.04, 0.01)})
THREE = Constants((10, 100, 1000), {"b": (1.0, 1.1, 1.5)})


@pytest.mark.parametrize(
    ("constants", "steps", "b", "rise"),
    [
        (KNOTS, 10, 1.02, 0.04), (KNOTS, 1000, 1.004, 0.01), (KNOTS, 1, 1.02, 0.0),
        (KNOTS, 100, (1.02 + 1.004) / 2, (0.04 + 0.01) / 2),  # the geometric mean of the knots is half-way in log steps
        (KNOTS, 2, 1.02, 0.04), (KNOTS, 5000, 1.004, 0.01),  # outside the knots b and the span are held
        (THREE, 100, 1.1, 0.0), (THREE, round(10**1.5), 1.05, 0.0), (THREE, round(10**2.5), 1.3, 0.0),
        (KNOTS.overridden({"k": 0.0}), 10, 1.02, 0.0), (Constants(fixed={"b": 1.2, "k": 0.01}), 77, 1.2, 0.76),
    ],
)  # fmt: skip
def test_constants_are_linear_in_log_steps_between_their_knots(constants, steps, b, rise):
    row = Remedy("epsilon-scaling", {"ddpm": constants}).at("ddpm", steps)
    assert row["b"] == pytest.approx(b, abs=1e-3 if constants is THREE else 1e-12)  # 10^1.5 is 31.6, not 32
    assert row["k"] * (steps - 1) == pytest.approx(rise)


def test_what_was_not_tuned_takes_the_users_constants():
    untuned = Remedy("epsilon-scaling")
    assert untuned.missing("ddpm") == "b"
    assert untuned.overridden({"k": 0.002}).missing("ddpm") == "b"  # a slope alone says nothing about b
    fixed = untuned.overridden({"b": 1.01})
    assert fixed.missing("ddpm") is None
    assert fixed.at("ddpm", 1) == fixed.at("heun", 500) == {"b": 1.01, "k": 0.0}


def test_the_embedded_family_is_known():
    assert {"adm", "adm-ip", "ddpm-y", "adm-gp", "adm-wd", "edm"} <= set(EMBEDDED)
    assert all((WEIGHTS / "digits" / f"{name}.safetensors").exists() for name in EMBEDDED)
    assert load_registry((), "digits").names() == list(EMBEDDED)


def test_the_baseline_is_described_by_its_own_file():
    model = load_registry((), "digits").model("adm")
    assert (model.description.schedule, model.description.T) == ("cosine", 1000)
    assert model.description.learns_variance
    assert (model.scale_at("ddpm", 100), len(model.weights_hash)) == ((1.0, 0.0), 64)


NEAREST = {"admm": "adm", "adm_ip": "adm-ip", "ddpmy": "ddpm-y", "ADM-ES-LINEAR": "adm-es-linear", "ADM": "adm"}


@pytest.mark.parametrize(("name", "near"), NEAREST.items())
def test_unknown_model_names_the_nearest(name, near):
    with pytest.raises(ConfigError, match=f"unknown model '{name}'.*'{near}'"):
        load_registry((), "digits").model(name)


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG"])
def test_a_file_that_torch_did_not_write_is_named_before_an_entry_is_asked_for(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.pt is not a file of torch\.save"):
        load_registry((), "digits").model("x", tmp_path / "x.pt")


def test_an_unknown_model_hints_before_it_lists():
    with pytest.raises(ConfigError) as error:
        load_registry((), "digits").model("zzzz")
    hint = "weights of your own are zzzz=PATH; --list-models prints the known names"
    assert str(error.value) == f"unknown model 'zzzz'; {hint}"


def test_unknown_dataset_names_the_nearest(from_toml):
    with pytest.raises(ConfigError, match="unknown dataset 'digit'; did you mean 'digits'"):
        load_registry((), "digit")
    with pytest.raises(ConfigError, match="did you mean 'pictures'"):
        from_toml('[datasets.pictures]\npath = "x.npz"', dataset="picture")


def test_scaled_models_have_tuned_constants_and_their_base_weights(constants):
    constants("[digits.adm-es.ddpm]\nsteps = [10, 1000]\nb = [1.02, 1.004]\nspan = [0.0, 0.0]\n")
    known = load_registry((), "digits")
    assert known.model("adm-es").weights == known.model("adm").weights
    assert known.model("adm-es").scale_at("ddpm", 100) == (pytest.approx(1.012), 0.0)
    assert known.model("adm-es").remedies[0].missing("ddim") == "b"  # refused until the user gives --eps-scale
    assert known.model("adm-es-linear").remedies[0].missing("ddpm") == "b"


def test_other_weights_have_no_tuned_constants(constants, tmp_path):
    constants("[digits.adm-es.ddpm]\nsteps = [10]\nb = [1.02]\nspan = [0.0]\n")
    known = load_registry((), "digits")
    same, other = tmp_path / "same.safetensors", WEIGHTS / "digits" / "adm-ip.safetensors"
    same.write_bytes((WEIGHTS / "digits" / "adm.safetensors").read_bytes())
    assert known.model("adm-es", same).remedies[0].constants["ddpm"].steps == (10,)
    assert known.model("adm-es", other).remedies[0].missing("ddpm") == "b"
    assert known.model("adm-es", other).rescaled(1.01, None).scale_at("ddpm", 20) == (1.01, 0.0)


def test_embedded_and_released_weights_of_one_dataset_have_constants_of_their_own(constants, tmp_path, monkeypatch):
    constants(
        "[cifar10.adm-es.ddpm]\nsteps = [10]\nb = [1.1]\nspan = [0.0]\n"
        "[cifar10-embedded.adm-es.ddpm]\nsteps = [10]\nb = [1.2]\nspan = [0.0]\n"
    )
    weights = tmp_path / "weights" / "cifar10" / "adm.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes((WEIGHTS / "digits" / "adm.safetensors").read_bytes())
    monkeypatch.setattr(names_module, "WEIGHTS", tmp_path / "weights")
    known = load_registry((), "cifar10")
    assert known.model("adm-es").scale_at("ddpm", 10) == (1.2, 0.0)
    assert known.model("adm-es", weights).scale_at("ddpm", 10) == (1.2, 0.0)
    trained_here = WEIGHTS / "digits" / "adm-ip.safetensors"
    assert known.model("adm-es", trained_here).remedies[0].missing("ddpm") == "b"
    released = tmp_path / "released.safetensors"
    description = read_description(trained_here)
    save_network(released, load_network(trained_here, description), replace(description, training={}))
    assert known.model("adm-es", released).scale_at("ddpm", 10) == (1.1, 0.0)


@pytest.mark.parametrize("content", [None, b"no safetensors"])
def test_an_unknown_name_with_a_bad_file_is_an_error_of_the_file(tmp_path, content):
    path = tmp_path / "w.safetensors"
    if content:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=str(path)):
        load_registry((), "digits").model("mine", path)
    with pytest.raises(CheckpointError, match=r"w\.pt: no such file"):
        load_registry((), "digits").model("mine", path.with_suffix(".pt"))
    torch.save({"a": torch.zeros(2, 2)}, path.with_suffix(".pt"))
    with pytest.raises(ConfigError, match="does not describe itself; give 'mine' an entry with 'preset' or 'network'"):
        load_registry((), "digits").model("mine", path.with_suffix(".pt"))
    torch.save({"state": {}, "param_groups": []}, path.with_suffix(".pt"))
    for name in ("mine", "adm"):
        with pytest.raises(CheckpointError, match="is an optimizer's state"):
            load_registry((), "digits").model(name, path.with_suffix(".pt"))


@pytest.mark.parametrize("key", ["T = 10", 'schedule = "linear"', "network = {}"])
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ('base = "adm"', "both 'base' and"),
        (f'weights = "{WEIGHTS / "digits" / "adm.safetensors"}"', "describes itself"),
    ],
)
def test_what_is_described_is_not_described_again(from_toml, source, message, key):
    with pytest.raises(ConfigError, match=message):
        from_toml(f"[models.mine]\n{source}\n{key}\n").model("mine")


def test_the_tuned_constants_that_ship_can_be_read():
    for name in ("adm-es", "adm-es-linear"):
        model = load_registry((), "digits").model(name)
        for sampler in ("ddpm", "ddim"):
            assert {10, 20, 50} <= set(model.remedies[0].constants[sampler].steps)
            for steps in (1, 10, 80, 1000):
                b, k = model.scale_at(sampler, steps)
                assert 0.5 < b < 2
                assert 0.5 < b + k * (steps - 1) < 2


@pytest.mark.parametrize("gamma", [0.1, 0.15])
def test_ddpm_y_es_divides_by_the_root_that_theory_names(save_tiny, gamma):
    model = load_registry((), "digits").model("ddpm-y-es", save_tiny(description={"training": {"gamma": gamma}}))
    for sampler in ("ddpm", "ddim"):
        for steps in (1, 20, 1000):
            assert model.scale_at(sampler, steps) == (math.sqrt(1 + gamma**2), 0.0)
    without = WEIGHTS / "digits" / "adm.safetensors"
    assert load_registry((), "digits").model("ddpm-y-es", without).remedies[0].missing("ddpm") == "b"


@pytest.mark.parametrize("name", ["adm", "mine"])
def test_name_with_a_path_takes_other_weights_which_describe_themselves(tiny_weights, name):
    model = load_registry((), "digits").model(name, tiny_weights)
    assert (model.name, model.weights, model.description.learns_variance, model.remedies) == (
        name,
        tiny_weights,
        True,
        (),
    )
    assert tuple(model.description.network["channel_mult"]) == (1,)


def test_the_users_constants_hold_at_every_step_count():
    plain = load_registry((), "digits").model("adm")
    assert plain.rescaled(1.5, 0.1) == plain
    model = replace(plain, remedies=(Remedy("epsilon-scaling", {"ddpm": KNOTS, "ddim": KNOTS}),))
    assert model.rescaled(1.5, None).scale_at("ddpm", 10) == (1.5, pytest.approx(0.04 / 9))  # the span stays
    assert model.rescaled(None, 0.003).scale_at("ddim", 1000) == (1.004, 0.003)
    assert model.rescaled(1.5, 0.0).scale_at("ddpm", 77) == (1.5, 0.0)


def test_entry_based_on_another_entry(from_toml, tiny_weights):
    known = from_toml(
        f'[models.a]\nweights = "{tiny_weights}"\n[models.b]\nbase = "a"\n'
        'corrections = [{ kind = "epsilon-scaling", b = 1.1, k = 0.001 }]'
    )
    assert known.names()[-2:] == ["a", "b"]
    assert (known.model("a").weights, known.model("a").scale_at("ddpm", 10)) == (tiny_weights, (1.0, 0.0))
    model = known.model("b")
    assert (model.name, model.base, model.weights) == ("b", "a", tiny_weights)
    assert model.scale_at("ddpm", 30) == model.scale_at("ddim", 900) == (1.1, 0.001)
    assert model.rescaled(1.3, None).scale_at("ddpm", 5) == (1.3, 0.001)


def test_entry_describes_a_foreign_checkpoint(from_toml, tmp_path):
    (tmp_path / "w.pt").write_bytes(b"anything: only load_network opens it")
    text = f'[models.m]\nweights = "{tmp_path}/w.pt"\nschedule = "linear"\nT = 500\n[models.m.network]\n'
    text += "in_channels = 1\nmodel_channels = 32\nnum_res_blocks = 1"
    description = from_toml(text).model("m").description
    network = {"in_channels": 1, "model_channels": 32, "num_res_blocks": 1}
    assert (description.schedule, description.T, dict(description.network)) == ("linear", 500, network)


BAD_FILES = [
    ("[model.m]", "unknown section 'model'; did you mean 'models'"),
    ("[models.m]\nweight = 'x'", "unknown key of models.m 'weight'; did you mean 'weights'"),
    ("[datasets.d]\npaht = 'x'", "unknown key of datasets.d 'paht'; did you mean 'path'"),
    ("[datasets.d]\nheldout_every = 5", "needs 'path'"),
    ("[datasets.d]\npath = 'x'\nheldout_every = 1", "0 .none. or at least 2"),
    ("[datasets.d]\npath = 'x'\nheldout_every = -2", "0 .none. or at least 2"),
    ("[datasets.d]\npath = 'x'\nheldout_every = 2.5", "must be a whole number"),
    ("[datasets.d]\npath = 3", "must be a text"),
    ("[datasets.digits]\npath = 'x.npz'", "name of an embedded dataset"),
    ("models = 3", "must be a table"),
    ("[models]\nm = 3", "must be a table"),
    ("[models.m]\nbase = 'adm'\ncorrections = 3", "'corrections' of .models.m. .* must be a list of tables"),
    ("[models.m]\nT = 'x'", "must be a whole number"),
    ("[models.m]\nnetwork = 3", "must be a table"),
    ("[models.'../m']\nbase = 'adm'", "is no name"),
    ("[models.m\n", "not valid TOML"),
]


@pytest.mark.parametrize(("text", "message"), BAD_FILES)
def test_bad_configuration_files(from_toml, text, message):
    with pytest.raises(ConfigError, match=message):
        from_toml(text)


BAD_ENTRIES = [
    ("", "needs 'weights', 'adapter' or 'base'"),
    ("base = 'm'", "based on itself .m -> m"),
    ("base = 'other'\n[models.other]\nbase = 'm'", "m -> other -> m"),
    ("base = 'admm'", "unknown model 'admm'; did you mean 'adm'"),
]


@pytest.mark.parametrize(("text", "message"), BAD_ENTRIES)
def test_bad_entries(from_toml, text, message):
    with pytest.raises(ConfigError, match=message):
        from_toml(f"[models.m]\n{text}").model("m")


def test_missing_weights(from_toml, tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot read the checkpoint .*absent"):
        from_toml(f"[models.m]\nweights = '{tmp_path}/absent.pt'").model("m")
    with pytest.raises(CheckpointError, match="absent"):
        load_registry((), "digits").model("adm", tmp_path / "absent.safetensors")


def test_embedded_weights_belong_to_their_dataset(from_toml, pictures):
    known = from_toml(f'[datasets.pictures]\npath = "{pictures}"', dataset="pictures")
    with pytest.raises(ConfigError, match="no embedded weights of 'adm' for dataset 'pictures'; give adm=PATH"):
        known.model("adm")


def test_datasets_of_the_file_start_at_the_data_dir(from_toml, pictures):
    known = from_toml(f'[datasets.pictures]\npath = "{pictures.name}"\nheldout_every = 4', dataset="pictures")
    data = known.load_dataset(pictures.parent, {})
    assert (data.name, len(data.images), int(data.heldout.sum())) == ("pictures", 40, 10)


def test_paths_of_entries_may_start_at_home(from_toml, pictures, tiny_weights, monkeypatch):
    monkeypatch.setenv("HOME", str(pictures.parent))
    known = from_toml(f'[datasets.pictures]\npath = "~/{pictures.name}"', dataset="pictures")
    assert known.load_dataset(None, {}).count("train") == 40
    monkeypatch.setenv("HOME", str(tiny_weights.parent))
    assert from_toml(f'[models.m]\nweights = "~/{tiny_weights.name}"').model("m").weights == tiny_weights


@pytest.mark.parametrize("absolute", [False, True])
def test_weights_of_an_adapter_on_the_command_line_are_seen_from_here(tmp_path, monkeypatch, absolute):
    """In an entry they are relative to the config file's folder; on the command line to the working directory."""
    for folder in ("config", "here"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "w.bin").write_text(folder)
    source = "def load(path):\n    text = path.read_text()\n    return lambda x, t, labels: x * len(text)\n"
    (tmp_path / "config" / "mine.py").write_text(source)
    named = tmp_path / "config" / "mine.py" if absolute else "mine.py"
    entry = f'[models.m]\nadapter = "{named}:load"\nimage_size = 8\n'
    (tmp_path / "config" / "c.toml").write_text(entry)
    monkeypatch.chdir(tmp_path / "here")
    model = load_registry((Path("../config/c.toml"),), "digits").model("m", Path("w.bin"))
    network = open_network(model.weights, model.description)
    assert network(torch.ones(1, 3, 8, 8), torch.zeros(1)).sample.unique().tolist() == [len("here")]
    monkeypatch.chdir(tmp_path)  # the description and the hash are those of the same file
    again = load_registry((Path("config/c.toml"),), "digits").model("m", Path("here/w.bin"))
    assert (again.description, again.weights_hash) == (model.description, again.weights_hash)


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A registry of the digits in which adm and adm-ip have second and third trainings."""
    folder = tmp_path / "weights" / "digits"
    folder.mkdir(parents=True)
    sources = {"adm": "adm", "adm-t2": "adm-gp", "adm-t3": "adm-wd", "adm-ip": "adm-ip", "adm-ip-t2": "adm-mdss"}
    for name, source in sources.items():
        (folder / f"{name}.safetensors").write_bytes((WEIGHTS / "digits" / f"{source}.safetensors").read_bytes())
    monkeypatch.setattr(names_module, "WEIGHTS", tmp_path / "weights")
    return load_registry((), "digits")


def test_trainings_are_named_by_their_number(trained):
    assert [trainings("digits", name) for name in ("adm", "adm-ip", "ddpm-y")] == [[2, 3], [2], []]
    model = trained.model("adm@2")
    assert (model.name, model.weights.name, model.base) == ("adm-t2", "adm-t2.safetensors", "")
    treated = trained.model("adm-ip@2-ts-es")
    named = (treated.name, treated.weights.name, treated.base)
    assert named == ("adm-ip-t2-ts-es", "adm-ip-t2.safetensors", "adm-ip-t2")
    assert [remedy.kind for remedy in treated.remedies] == ["time-shift", "epsilon-scaling"]
    given = trained.model("adm@7", WEIGHTS / "digits" / "adm-gp.safetensors")
    assert (given.name, given.weights.name) == ("adm-t7", "adm-gp.safetensors")


def test_trainings_share_the_constants_of_their_recipe(trained, constants):
    constants("[digits.adm-es.ddpm]\nsteps = [10]\nb = [1.02]\nspan = [0.0]\n")
    assert trained.model("adm@3-es").scale_at("ddpm", 10) == (1.02, 0.0)
    assert trained.model("adm@2-es", WEIGHTS / "digits" / "edm.safetensors").remedies[0].missing("ddpm") == "b"


UNKNOWN_TRAININGS = [
    ("adm@4", "unknown training adm@4 for dataset 'digits'; known: adm, adm@2, adm@3"),
    ("adm@1", "unknown training adm@1 .*; known: adm, adm@2"),
    ("adm@", "unknown training adm@ "),
    ("adm@x-es", "unknown training adm@x "),
    ("ddpm-y@2", "known: ddpm-y$"),
    ("nobody@2", "unknown model 'nobody@2'; only the embedded family has trainings"),
]


@pytest.mark.parametrize(("name", "message"), UNKNOWN_TRAININGS)
def test_unknown_trainings_name_those_there_are(trained, name, message):
    with pytest.raises(ConfigError, match=message):
        trained.model(name)


def test_a_table_of_alpha_bar_is_read_beside_the_config_file(tmp_path, monkeypatch):
    """Of an adapter, too; a schedule beside it, or numbers that rise, are refused in one line."""
    (tmp_path / "net.py").write_text("def load():\n    return lambda x, t, labels: x\n")
    np.save(tmp_path / "bars.npy", alpha_bars("linear", 40))
    np.save(tmp_path / "wrong.npy", np.linspace(0.1, 0.9, 40))
    monkeypatch.chdir(tmp_path.parent)
    config = tmp_path / "bench.toml"
    entry = '[models.mine]\nadapter = "net.py:load"\nin_channels = 1\nalphas_cumprod = '
    config.write_text(f'{entry}"bars.npy"\n')
    about = load_registry([config], "digits").model("mine").description
    assert about.T == 40
    assert alpha_bars(about.schedule, 40).tolist() == alpha_bars("linear", 40).tolist()
    wrong = {'"wrong.npy"': "must fall", '"none.npy"': "no such file", '"net.py"': "save alpha_bar"}
    for text, message in (*wrong.items(), ('"bars.npy"\nT = 40', "drop 'T'")):
        config.write_text(f"{entry}{text}\n")
        with pytest.raises(CheckpointError, match=message):
            load_registry([config], "digits").model("mine")
