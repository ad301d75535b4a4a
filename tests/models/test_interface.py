import pytest
from edm_files import write_edm_pickle

from bench.models.checkpoints.formats import describe
from bench.models.interface import Description

OUTPUTS = [
    ({"in_channels": 3, "learn_sigma": True}, True), ({"in_channels": 3, "out_channels": 6}, True),
    ({"out_channels": 6}, True), ({"in_channels": 3, "out_channels": 3}, False), ({"in_channels": 3}, False),
    ({}, False),
]  # fmt: skip


@pytest.mark.parametrize(("network", "learned"), OUTPUTS)
def test_a_learned_variance_is_told_by_the_outputs(network, learned):
    assert Description(network).learns_variance == learned
    assert not Description(network, schedule="edm", prediction="edm").learns_variance


def test_iddpms_second_half_of_the_outputs_is_no_learned_variance_on_edm_levels(tmp_path):
    write_edm_pickle(tmp_path / "net.pkl", preconditioning="iDDPMPrecond")
    description = describe(tmp_path / "net.pkl")
    assert description.network["out_channels"] == 2 * description.channels
    assert not description.learns_variance


TRAININGS = [
    ({"iterations": 3200, "batch": 32}, 102_400), ({"iterations": 3200, "batch": 32, "images": 25_600}, 25_600),
    ({"iterations": 3200}, None), ({"iterations": "3200", "batch": "32"}, None),
    ({"iterations": "a", "batch": 10**10}, None), ({"iterations": None, "batch": None}, None),
    ({"iterations": -5, "batch": 3}, None), ({"images": float("inf")}, None), ({"images": True}, None),
    ({"images": 10**30}, None), ({}, None),
]  # fmt: skip


@pytest.mark.parametrize(("training", "images"), TRAININGS)
def test_images_seen_are_told_by_the_recipe_or_by_nobody(training, images):
    wanted = None if images is None else {"recipe": "adm", "images": images}
    assert Description({}, training={"name": "adm", **training}).training_images() == wanted
    assert Description({}, training={"name": ["adm"], **training}).training_images() is None
