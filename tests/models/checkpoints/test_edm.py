from __future__ import annotations

import json
import pickle

import pytest
import torch
from cases import at_first
from edm_files import (
    NCSNPP,
    Persistent,
    dump,
    edm_modules,
    edm_object,
    module_state,
    random_tensors,
    small_config,
    write_edm_pickle,
)
from refusals import refusal_of_file

from bench.models.checkpoints import edm
from bench.models.checkpoints.edm import describe_edm, load_edm
from bench.models.checkpoints.edm_pickle import read_objects
from bench.models.checkpoints.formats import describe
from bench.models.checkpoints.state_dicts import read_state
from bench.models.networks.dhariwal import dhariwal_state
from bench.runtime.errors import CheckpointError

PRECONDITIONED = {"EDMPrecond": "edm", "VPPrecond": "vp", "VEPrecond": "ve", "iDDPMPrecond": "iddpm"}


def read(path):
    description = describe_edm(path)
    return load_edm(path, description), description


def save(path, content):
    with edm_modules():
        dump(path, content)
    return path


def an_object(architecture="SongUNet", change=None, config=None, **others):
    """Return a network's stand-in, its tensors changed by a function."""
    config = {**small_config(architecture), **(config or {})}
    tensors = random_tensors(architecture, small_config(architecture))
    if change is not None:
        change(tensors)
    return edm_object(architecture, config, tensors, **others)


@pytest.mark.parametrize("architecture", ["SongUNet", "DhariwalUNet"])
@pytest.mark.parametrize("preconditioning", PRECONDITIONED)
def test_a_file_says_what_it_is(tmp_path, architecture, preconditioning):
    path = tmp_path / "net.pkl"
    write_edm_pickle(path, architecture, 16, 3, 10, preconditioning, augment_dim=9, dropout=0.13)
    description = describe_edm(path)
    assert (description.format, description.schedule, description.is_edm) == ("edm", "edm", True)
    assert description.prediction == PRECONDITIONED[preconditioning]
    assert (description.channels, description.classes) == (3, 10)
    network = description.network
    assert network["architecture"] == architecture
    assert (network["image_size"], network["in_channels"], network["num_classes"]) == (16, 3, 10)
    assert network["out_channels"] == (6 if preconditioning == "iDDPMPrecond" else 3)
    assert (network["augment_dim"], network["dropout"], network["preconditioning"]) == (9, 0.13, {})
    assert json.loads(json.dumps(network)) == network


@pytest.mark.parametrize(
    ("architecture", "options"),
    [("SongUNet", {}), ("SongUNet", {**NCSNPP, "label_dim": 3, "augment_dim": 9}), ("DhariwalUNet", {"label_dim": 3})],
)
def test_a_written_network_comes_back(tmp_path, architecture, options):
    path = tmp_path / "net.pkl"
    tensors = write_edm_pickle(path, architecture, **options)
    network, description = read(path)
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    state = network.state_dict()
    expected = tensors if architecture == "SongUNet" else dhariwal_state(network, tensors)
    assert set(state) == set(expected)
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert description.classes == options.get("label_dim")


def test_a_file_is_parsed_once_to_be_described_and_loaded(tmp_path, monkeypatch):
    path, parsed = tmp_path / "net.pkl", []
    write_edm_pickle(path)
    monkeypatch.setattr(edm, "read_objects", lambda path: parsed.append(path) or read_objects(path))
    _, description = read(path)
    assert parsed == [path]
    assert description.content == {}  # loading has released it
    load_edm(path, description)
    assert parsed == [path, path]


TOLD = [
    ("EDMPrecond", {"sigma_data": 1.0, "sigma_max": 50.0}), ("VPPrecond", {"beta_d": 10.0, "M": 500}),
    ("VEPrecond", {"sigma_min": 0.01}), ("iDDPMPrecond", {"C_2": 0.01}),
]  # fmt: skip


@pytest.mark.parametrize(("preconditioning", "constants"), TOLD)
def test_constants_other_than_the_defaults_are_told(tmp_path, preconditioning, constants):
    path = tmp_path / "net.pkl"
    same = {"VEPrecond": {"sigma_max": 100}, "EDMPrecond": {"sigma_min": 0, "sigma_data": 0.5}}.get(preconditioning, {})
    write_edm_pickle(path, preconditioning=preconditioning, constants={**same, **constants})
    assert describe_edm(path).network["preconditioning"] == constants


def test_the_network_alone_can_be_the_file(tmp_path):
    path = save(tmp_path / "net.pkl", an_object())
    network, description = read(path)
    assert description.network["architecture"] == "SongUNet"
    assert network(torch.zeros(1, 1, 8, 8), torch.zeros(1)).sample.shape == (1, 1, 8, 8)


def test_positional_arguments_are_understood(tmp_path):
    inner = an_object().state["_modules"]["model"]
    kwargs = inner.state["_init_kwargs"]
    inner.state["_init_args"] = (8, 1, 1)
    inner.state["_init_kwargs"] = {
        k: v for k, v in kwargs.items() if k not in ("img_resolution", "in_channels", "out_channels")
    }
    outer = Persistent("EDMPrecond", module_state({}, {"model": inner}), (8, 1, 0, False, 0, float("inf"), 0.7))
    network = describe_edm(save(tmp_path / "net.pkl", {"ema": outer})).network
    assert (network["image_size"], network["in_channels"], network["preconditioning"]) == (8, 1, {"sigma_data": 0.7})


def put(name, value):
    return lambda tensors: tensors.__setitem__(name, value)


def shapeless():
    made = an_object()
    made.state["_modules"]["model"].state["_init_kwargs"] = None
    return made


UNDESCRIBED = {
    "no-ema": (lambda: {"net": an_object()}, "holds 'net' and no 'ema'"),
    "state-dict": (lambda: {"ema": {"weight": torch.ones(2)}}, "holds no EDM network"),
    "list": (lambda: [1, 2], "holds no EDM network"),
    "class": (lambda: {"ema": an_object(preconditioning="CTPrecond")}, "holds 'CTPrecond', not one of EDMPrecond, VPP"),
    "class-of-many-lines": (lambda: {"ema": Persistent("a\nb" * 99, {})}, r"holds 'a\\nb.*\.\.\., not one of"),
    "class-is-a-list": (lambda: {"ema": Persistent([], {})}, "holds '', not one of"),
    "no-model": (lambda: {"ema": Persistent("EDMPrecond", module_state({}))}, "network of the class '', not one of"),
    "architecture": (lambda: {"ema": edm_object("EDM2UNet", small_config("SongUNet"), {})}, "class 'EDM2UNet', not"),
    "no-arguments": (lambda: {"ema": shapeless()}, "does not record how its SongUNet was made"),
    "argument": (lambda: {"ema": an_object(config={"width": 3})}, "unknown SongUNet argument 'width'"),
    "value": (lambda: {"ema": an_object(config={"num_blocks": "many"})}, "must be an integer from 1 to 64, not 'many'"),
    "constant": (lambda: {"ema": an_object(constants={"sigma_data": "x"})}, "sigma_data must be a finite number above"),
    "outputs": (lambda: {"ema": an_object(config={"in_channels": 3})}, "fewer output channels than input channels"),
}


@pytest.mark.parametrize("name", UNDESCRIBED)
def test_other_files_are_refused_in_one_line(tmp_path, name):
    make, message = UNDESCRIBED[name]
    path = save(tmp_path / "net.pkl", make())
    assert refusal_of_file(CheckpointError, describe_edm, path, match=message)


@pytest.mark.parametrize("suffix", [".pkl", ".PKL", ".Pkl"])
def test_the_suffix_in_any_case_is_edms(tmp_path, suffix):
    path = tmp_path / f"net{suffix}"
    write_edm_pickle(path)
    assert describe(path).format == "edm"


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_of_torch_under_edms_suffix_names_the_right_one(tmp_path, legacy):
    path = tmp_path / "net.pkl"
    torch.save({"weight": torch.ones(2)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"is a file of torch\.save, not an EDM pickle; rename it to net\.pt$"):
        describe_edm(path)
    path.rename(tmp_path / "net.pt")
    assert list(read_state(tmp_path / "net.pt")) == ["weight"]  # the advice works


def test_an_edm_pickle_under_the_suffix_of_torch_names_the_right_one(tmp_path):
    path = tmp_path / "net.pt"
    write_edm_pickle(path)
    with pytest.raises(CheckpointError, match=r"is an EDM pickle; rename it to net\.pkl$"):
        read_state(path)


@pytest.mark.parametrize("unknown", [False, True])
def test_edm2_is_named(tmp_path, unknown):
    source = "Analyzing and Improving the Training Dynamics of Diffusion Models"
    extra = Unknown() if unknown else None  # a name that EDM's own files do not have
    path = save(tmp_path / "edm2.pkl", {"source": source, "ema": Persistent("Precond", {}), "encoder": extra})
    with pytest.raises(CheckpointError, match=r"is a network of EDM2, .*; give it by an adapter$"):
        describe_edm(path)


class Unknown:
    pass


UNLOADED = {
    "lacking": ({"change": lambda t: t.pop("map_layer0.bias")}, "lacks 'map_layer0.bias'"),
    "extra": ({"change": put("enc.8x8_conv.extra", torch.ones(1))}, "has 'enc.8x8_conv.extra' which it should not"),
    "shape": ({"change": put("map_layer0.bias", torch.ones(3))}, r"'map_layer0.bias' is \(3\) and not \(\d+\)"),
    "nan": ({"change": put("map_layer0.bias", torch.full((64,), torch.nan))}, "holds weights that are not finite"),
    "integers": ({"change": put("map_layer0.bias", torch.ones(64, dtype=torch.int64))}, "bias': it holds int64"),
    "depth": ({"config": {"num_blocks": 2}}, "lacks '.*block1"),
    "enormous": ({"config": {"model_channels": 1 << 14, "channel_mult": [64, 64]}}, "weights are not those"),
    "classes": ({"config": {"label_dim": 7}}, "lacks 'map_label.weight'"),
}


@pytest.mark.parametrize("architecture", ["SongUNet", "DhariwalUNet"])
@pytest.mark.parametrize("name", at_first(UNLOADED, 4))
def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path, architecture, name):
    options, message = UNLOADED[name]
    path = save(tmp_path / "net.pkl", {"ema": an_object(architecture, **options)})
    assert refusal_of_file(CheckpointError, read, path, match=message)


def test_changed_bytes_never_escape_as_another_error(tmp_path):
    """Every file either loads or is refused as the project refuses files."""
    path = tmp_path / "net.pkl"
    write_edm_pickle(path, model_channels=4, channel_mult=[1])
    data = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    refused: list[str] = []
    for at in torch.randint(len(data), (20,), generator=generator).tolist():
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :])
        try:
            read(path)
        except CheckpointError as error:
            refused.append(str(error))
    assert len(refused) > 5
    assert not any("\n" in line for line in refused)


def test_the_source_code_in_a_file_is_not_run(tmp_path):
    """The files of these tests carry code that would end the program; they still name the classes that EDM's name."""
    path = tmp_path / "net.pkl"
    write_edm_pickle(path)
    assert b"raise SystemExit" in path.read_bytes()
    read(path)
    with pytest.raises(ModuleNotFoundError, match=r"torch_utils|dnnlib"):
        pickle.loads(path.read_bytes())
