import math
from dataclasses import replace

import pytest

from bench.data import load
from bench.diffusion.corrections import EpsilonScaling, TimeShift
from bench.diffusion.solvers import DDIM, Ancestral
from bench.suite.plan import SHARD, Instruments, Unit, plan_cells
from bench.suite.registry.constants import Constants
from bench.suite.registry.registry import load_registry
from bench.suite.registry.remedies import Remedy
from bench.suite.settings import IN_CELLS, ConfigError, SamplerConfig

DIGITS = (1442, 355)  # training and held-out images


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture(scope="module")
def adm():
    return load_registry((), "digits").model("adm")


@pytest.mark.parametrize("samples", [10, 64, 100, 256, 1000])
@pytest.mark.parametrize("steps", [1, 5, 80, 100, 300, 1000])
def test_forced_images_follow_the_formula(make_cell, samples, steps):
    look = make_cell(samples=samples, steps=steps, parts=DIGITS).instruments
    levels = min(steps, 100)
    assert look.train + look.heldout == min(samples, max(64, round(0.15 * samples * steps / levels)))
    assert look.heldout == min((look.train + look.heldout) // 2, 355)  # evenly, while the held-out part lasts


def test_forced_images_end_with_the_data(make_cell):
    look = make_cell(samples=50_000, steps=100, parts=(100, 30)).instruments
    assert (look.train, look.heldout) == (100, 30)
    look = make_cell(samples=256, parts=(100, 0)).instruments
    assert (look.train, look.heldout) == (64, 0)


@pytest.mark.parametrize("steps", [1, 3, 20, 99, 100, 101, 1000])
def test_levels_of_the_instruments(make_cell, steps):
    look = make_cell(steps=steps, parts=DIGITS).instruments
    assert (len(look.indices), len(look.error_indices)) == (min(steps, 100), min(steps, 20))
    assert set(look.error_indices) <= set(look.indices) <= set(range(steps))
    assert (look.indices[0], look.indices[-1], look.error_train, look.error_heldout) == (0, steps - 1, 50, 50)


def test_paired_walks_only_where_the_start_remembers(make_cell):
    assert make_cell(spacing="plain").instruments.paired == 0
    assert make_cell(spacing="ddim", samples=1000, parts=DIGITS).instruments.paired == 150
    assert make_cell(spacing="ddim", samples=10).instruments.paired == 10
    assert make_cell(spacing="ddim", samples=1000, parts=(20, 0)).instruments.paired == 20


def test_without_probes_nothing_is_looked_at(make_cell):
    cell = make_cell(measure=())
    assert cell.instruments == Instruments()
    assert ({unit.arm for unit in cell.units(128)}, cell.cost()) == ({"free"}, (12 * 4, 0))


def test_the_default_command_spends_little_on_instruments(adm, digits):
    models = (adm, replace(adm, name="adm-ip"))
    cells = plan_cells(models, SamplerConfig(), (80, 100, 300, 1000), (0,), 256, IN_CELLS, digits)
    assert len(cells) == 8
    free, instruments = (sum(costs) for costs in zip(*(cell.cost() for cell in cells), strict=True))
    assert free == 2 * 256 * 1480
    assert instruments / (free + instruments) < 0.15


@pytest.mark.parametrize("spacing", ["plain", "ddim"])
@pytest.mark.parametrize("samples", [3, 64, 600])
@pytest.mark.parametrize("batch", [16, 128, 400])
def test_units_cover_every_image_once(make_cell, spacing, samples, batch):
    cell = make_cell(spacing=spacing, samples=samples, steps=20, parts=DIGITS)
    look, ranges = cell.instruments, {}
    for unit in cell.units(batch):
        ranges.setdefault(unit.arm, []).append((unit.start, unit.stop))
    totals = {"free": samples, "forced": look.train + look.heldout, "paired": look.paired}
    totals["errors"] = max(0, 50 - look.train) + max(0, 50 - look.heldout)
    for arm, total in totals.items():
        parts = ranges.get(arm, [])
        assert [start for start, _ in parts] == [0, *(stop for _, stop in parts)][: len(parts)]
        assert (parts[-1][1] if parts else 0) == total
    whole = batch * math.ceil(SHARD / batch)
    for arm in ("free", "forced"):
        assert all(stop - start == whole for start, stop in ranges[arm][:-1])  # only a last unit needs padding
        assert ranges[arm][-1][1] - ranges[arm][-1][0] <= whole


@pytest.mark.parametrize("spacing", ["plain", "ddim"])
@pytest.mark.parametrize("steps", [20, 125])
def test_unit_costs_add_up(make_cell, spacing, steps):
    cell = make_cell(spacing=spacing, samples=600, steps=steps, parts=DIGITS)
    look = cell.instruments
    free, instruments = cell.cost()
    assert free == 600 * steps
    extra = max(0, 50 - look.train) + max(0, 50 - look.heldout)
    forced = (look.train + look.heldout) * len(look.indices)
    assert instruments == forced + extra * len(look.error_indices) + look.paired * steps
    for batch in (7, 128, 1000):
        assert sum(cell.unit_cost(unit) for unit in cell.units(batch)) == free + instruments


def test_shard_names_sort_in_merging_order():
    names = [Unit("free", start, start + 256).name for start in range(0, 256 * 50, 256)]
    assert names == sorted(names)
    assert len(set(names)) == 50


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 5}, {"seed": 1}, {"samples": 13}, {"measure": ("steps",)}, {"data_hash": "other"},
        {"weights_hash": "1"},
        {"clip": False}, {"variance": "fixed-small"}, {"spacing": "ddim"}, {"quantize": "floor"},
    ],
)  # fmt: skip
def test_the_key_sees_whatever_changes_the_numbers(make_cell, change):
    assert make_cell(**change).key() != make_cell().key()


def test_the_key_sees_the_network_arguments(make_cell):
    """Heads and their split, e.g., change the numbers but neither weights nor shapes."""
    cell = make_cell()
    old = cell.model.description
    other = replace(cell, model=replace(cell.model, description=replace(old, network={**old.network, "num_heads": 2})))
    assert {n for n, value in other.description().items() if cell.description()[n] != value} == {"network"}
    assert other.key() != cell.key()


def test_an_interruption_costs_at_most_a_batch_more_than_a_shard(make_cell):
    assert SHARD == 128
    sizes = {batch: next(make_cell(samples=5000).units(batch)).stop for batch in (1, 48, 100, 128, 130, 1000)}
    assert sizes == {1: 128, 48: 144, 100: 200, 128: 128, 130: 130, 1000: 1000}


def test_the_key_sees_scaling_but_not_the_weights_path(make_cell):
    cell = make_cell()
    moved = replace(cell, model=replace(cell.model, weights=cell.model.weights.with_name("other")))
    assert moved.key() == cell.key()
    scaled = Remedy("epsilon-scaling").overridden({"b": 1.01})
    assert replace(cell, model=replace(cell.model, remedies=(scaled,))).key() != cell.key()


def test_key_and_name_do_not_depend_on_the_other_cells(adm, digits):
    alone = plan_cells((adm,), SamplerConfig(), (5,), (3,), 10, IN_CELLS, digits)
    among = plan_cells((adm,), SamplerConfig(), (2, 5), (0, 3), 10, IN_CELLS, digits)
    assert alone[0].name == "adm-ddpm-5-seed3"
    assert alone[0].key() in [cell.key() for cell in among]
    assert len({cell.key() for cell in among}) == len({cell.name for cell in among}) == 4


def test_solver_and_correction(make_cell):
    assert make_cell(variance="fixed-large").solver() == Ancestral("fixed-large")
    assert make_cell(sampler="ddim", variance=None, eta=0.5).solver() == DDIM(0.5)
    assert make_cell().correction() is None
    cell = make_cell()
    scaling, shift = Remedy("epsilon-scaling").overridden({"b": 1.01}), Remedy("time-shift")
    assert isinstance(replace(cell, model=replace(cell.model, remedies=(scaling,))).correction(), EpsilonScaling)
    both = replace(cell, model=replace(cell.model, remedies=(shift, scaling))).correction()
    assert [type(each) for each in both.corrections] == [TimeShift, EpsilonScaling]


def test_impossible_steps_and_scalings_are_refused_with_the_model(adm, digits):
    falling = Remedy("epsilon-scaling", {"ddpm": Constants((1,), {"b": (1.0,), "span": (-2.0,)})})
    for model, config, steps, message in (
        (adm, SamplerConfig(), 1001, "model 'adm'.*between 1 and 1000"),
        (adm, SamplerConfig(spacing="ddim"), 80, "model 'adm'.*nearest is ddim"),
        (replace(adm, remedies=(falling,)), SamplerConfig(), 10, "must stay positive"),
    ):
        with pytest.raises(ConfigError, match=message):
            plan_cells((model,), config, (steps,), (0,), 10, IN_CELLS, digits)
