import math
from pathlib import Path

import pytest

from bench.diffusion.corrections import InOrder
from bench.diffusion.schedules import edm_grid, edm_levels, flow_grid, flow_levels, levels
from bench.suite.registry.registry import load_registry
from bench.suite.registry.remedies import KINDS, SUFFIXES, VARIANTS, Remedy, Walk, split_kind
from bench.suite.settings import SAMPLER_FRAMES, SAMPLERS, ConfigError

EXAMPLES = Path(__file__).parents[3] / "examples"
GIVEN = {"b": 1.01, "data_variance": 0.5, "std": 0.7, "reference": [[0, 0.5], [999, 0.1]]}  # those without a default
PATHS = {
    "vp": (levels("cosine", 1000, 10), levels("cosine", 1000, 1000)[:-1]),
    "edm": (edm_levels(7), edm_grid()),
    "flow": (flow_levels("flow", 7), flow_grid()),
}


@pytest.fixture
def known():
    return load_registry((), "digits")


@pytest.mark.parametrize(("sampler", "frame"), [(name, frame) for name in SAMPLERS for frame in SAMPLER_FRAMES[name]])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_built_from_its_defaults_or_says_why_not(kind, sampler, frame):
    needs = {name: GIVEN[name] for name, value in KINDS[kind].defaults.items() if value is None}
    remedy = Remedy(kind).overridden(needs)
    assert remedy.missing(sampler) is None
    if sampler not in KINDS[kind].samplers or frame not in KINDS[kind].frames:
        assert KINDS[kind].reason
        return
    made = remedy.correction(Walk(*PATHS[frame], clip=frame == "vp"), sampler, 7)
    assert {"before", "ask", "prediction", "after"} <= set(dir(made))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_goes_with_every_model(known, suffix):
    for base in ("adm", "adm-ip"):
        model = known.model(f"{base}-{suffix}")
        assert (model.name, model.base) == (f"{base}-{suffix}", base)
        assert [remedy.kind for remedy in model.remedies] == [SUFFIXES[suffix]]
        assert model.weights == known.model(base).weights


def test_suffixes_stand_in_a_row(known):
    model = known.model("edm-ts-es-dcw")
    assert ([remedy.kind for remedy in model.remedies], model.base) == (["time-shift", "epsilon-scaling", "dcw"], "edm")
    longest = known.model("adm-ip-emu")  # wins over adm-ip
    assert ([remedy.kind for remedy in longest.remedies], longest.base) == (["input-perturbation"], "adm")


def test_every_kind_is_a_kind_or_one_of_its_variants():
    assert VARIANTS["dcw"] == ("reverse", "piecewise", "pixel")
    assert split_kind("dcw-pixel") == ("dcw", "pixel")
    assert split_kind("epsilon-scaling") == ("epsilon-scaling", "")


def test_the_example_has_every_variant():
    known = load_registry((EXAMPLES / "variants.toml",), "digits")
    kinds = {remedy.kind for name in known.entries for remedy in known.model(name).remedies}
    assert kinds == {name for name in KINDS if split_kind(name)[1]} | {"variance-normalisation"}
    scaled = {"adm-es-x0", "edm-es-velocity", "edm-es-first", "flow-es-velocity"}  # whose b is found by the user
    for name in known.entries.keys() - scaled:
        known.model(name).refuse("ddpm")


@pytest.mark.parametrize("name", ["es", "-es", "adm-", "adm-esx", "admes", "nobody-es", "adm-es-", "adm--es"])
def test_names_that_are_no_models(known, name):
    with pytest.raises(ConfigError, match="unknown model"):
        known.model(name)


def test_models_of_the_config_file_take_suffixes_and_come_first(from_toml, tiny_weights):
    known = from_toml(
        f'[models.mine]\nweights = "{tiny_weights}"\n[models.adm-ts]\nbase = "mine"\n'
        'corrections = [{ kind = "epsilon-scaling", b = 1.1 }]\n'
    )
    assert known.model("mine-tsr").weights == tiny_weights
    assert [remedy.kind for remedy in known.model("adm-ts").remedies] == ["epsilon-scaling"]
    assert [remedy.kind for remedy in known.model("adm-ts-dcw").remedies] == ["epsilon-scaling", "dcw"]


UNSUITED = [
    ("adm-ts", "kind = 'time-shift'", "ddpm", "takes one time shift"),
    ("adm-ts", "kind = 'time-shift', variant = 'code'", "ddpm", "takes one time shift"),
    ("edm", "kind = 'epsilon-scaling', variant = 'x0'", "heun", "--sampler heun: Euler and Heun steps"),
    ("edm", "kind = 'time-shift', variant = 'code'", "heun", "the released code has no such step; use euler"),
    ("adm", "kind = 'variance-normalisation', variant = 'x0'", "ddpm", "find it with --tune reference=fit"),
    ("adm", "kind = 'epsilon-scaling'", "ddpm", "no ddpm scaling constants were tuned"),
    ("adm", "kind = 'nag'", "ddpm", "nag of model 'm' asks its network without a time, for which it was not"),
]


@pytest.mark.parametrize(("base", "correction", "sampler", "message"), UNSUITED)
def test_what_a_remedy_does_not_work_with(from_toml, base, correction, sampler, message):
    model = from_toml(f"[models.m]\nbase = '{base}'\ncorrections = [{{ {correction} }}]\n").model
    with pytest.raises(ConfigError, match=message):
        model("m").refuse(sampler)


def test_what_a_cell_records(known):
    plain, scaled = known.model("adm"), known.model("adm-es").rescaled(1.02, 0.0)
    assert plain.intervention("ddpm", 10) == {"eps_scale": 1.0, "eps_slope": 0.0}
    assert scaled.intervention("ddpm", 10) == {"eps_scale": 1.02, "eps_slope": 0.0}
    both = known.model("adm-ip-tsr-es").rescaled(1.02, 0.0)
    remedies = [{"kind": "tsr", "k": 0.95, "s": 1.0}, {"kind": "epsilon-scaling", "b": 1.02, "k": 0.0}]
    assert both.intervention("ddpm", 10) == {"eps_scale": 1.02, "eps_slope": 0.0, "remedies": remedies}


def test_a_slope_of_the_users_is_no_constant_of_other_remedies(known):
    model = known.model("adm-ip-tsr-es").rescaled(1.02, 0.5)
    assert model.remedies[0].at("ddpm", 10) == {"k": 0.95, "s": 1.0}


ENTRIES = [
    ("{}", "needs 'kind'"),
    ("{ kind = 3 }", "needs 'kind'"),
    ("{ kind = 'time-shft' }", "unknown correction 'time-shft'; did you mean 'time-shift'"),
    ("{ kind = 'dcw-pixel' }", "unknown correction 'dcw-pixel'; did you mean 'dcw'"),
    ("{ kind = 'dcw', variant = 'pixels' }", "unknown variant of dcw 'pixels'; did you mean 'pixel'"),
    ("{ kind = 'tsr', variant = 'x' }", "unknown variant of tsr 'x'"),
    ("{ kind = 'tsr', K = 0.9 }", "unknown constant of tsr 'K'"),
    ("{ kind = 'tsr', k = 'a' }", "must be a finite number"),
    ("{ kind = 'tsr', k = nan }", "must be a finite number"),
    ("{ kind = 'tsr', k = true }", "must be a finite number"),
    ("{ kind = 'tsr', k = [0.9, 0.8] }", "must be a finite number"),
    ("{ kind = 'tsr', steps = [10], k = [0.9, 0.8] }", "one for each of 'steps'"),
    ("{ kind = 'tsr', steps = [20, 10], k = [0.9, 0.8] }", "ascending step counts"),
    ("{ kind = 'tsr', steps = [0], k = [0.9] }", "ascending step counts"),
    ("{ kind = 'tsr', steps = 10, k = 0.9 }", "ascending step counts"),
    ("{ kind = 'tsr', sampler = 'pndm' }", "must be one of ddpm"),
    ("{ kind = 'tsr', span = 0.1 }", "unknown constant of tsr 'span'"),
    ("{ kind = 'variance-normalisation', variant = 'x0', reference = [[1]] }", "a list of pairs"),
    ("{ kind = 'variance-normalisation', variant = 'x0', reference = 0.5 }", "a list of pairs"),
    ("3", "must be a list of tables"),
]


@pytest.mark.parametrize(("entry", "message"), ENTRIES)
def test_entries_that_cannot_be_read(from_toml, entry, message):
    with pytest.raises(ConfigError, match=message):
        from_toml(f"[models.m]\nbase = 'adm'\ncorrections = [{entry}]\n").model("m")


def test_corrections_of_an_entry_act_in_their_order(from_toml, make_cell):
    model = from_toml(
        "[models.m]\nbase = 'adm'\n"
        "corrections = [{ kind = 'dcw', low = 0.02 }, { kind = 'tsr', steps = [10, 40], k = [0.9, 0.98] }]\n"
    ).model("m")
    assert model.remedies[0].at("ddim", 10) == {"low": 0.02, "high": 0.0}
    assert model.remedies[1].at("ddpm", 20)["k"] == pytest.approx(0.94)  # half-way in log steps
    assert math.isclose(model.remedies[1].at("ddpm", 10)["s"], 1.0)
    made = InOrder([remedy.correction(Walk(*PATHS["vp"], clip=True), "ddpm", 10) for remedy in model.remedies])
    assert [type(each).__name__ for each in made.corrections] == ["DifferentialCorrection", "TemporalRescaling"]


def test_two_config_files(tmp_path):
    first, second, third = (tmp_path / f"{name}.toml" for name in "abc")
    first.write_text("[models.m]\nbase = 'adm'\n")
    second.write_text("[models.n]\nbase = 'm'\ncorrections = [{ kind = 'epsilon-scaling', b = 1.1 }]\n")
    third.write_text("[models.m]\nbase = 'adm-ip'\n")
    assert load_registry((first, second), "digits").model("n").scale_at("ddpm", 5) == (1.1, 0.0)
    with pytest.raises(ConfigError, match="'m' is in two config files"):
        load_registry((first, third), "digits")


@pytest.mark.parametrize("base", ["mine", "mine-es", "mine-ts-es"])
def test_an_entry_based_on_itself_with_a_remedy(from_toml, base):
    with pytest.raises(ConfigError, match="based on itself"):
        from_toml(f"[models.mine]\nbase = '{base}'\n").model("mine")
