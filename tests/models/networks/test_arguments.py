from __future__ import annotations

import pytest
from refusals import refusal

from bench.models.networks.arguments import complete_edm, groups_of, levels_of, misfit, named
from bench.runtime.errors import CheckpointError, quoted

SIZES = {"img_resolution": 32, "in_channels": 3, "out_channels": 3}
DEEP: list = []
for _ in range(100_000):
    DEEP = [DEEP]


def test_the_published_defaults_are_filled_in():
    song, adm = complete_edm("SongUNet", SIZES), complete_edm("DhariwalUNet", SIZES)
    assert (song["model_channels"], song["channel_mult"], song["num_blocks"]) == (128, [1, 2, 2, 2], 4)
    assert (song["embedding_type"], song["resample_filter"], song["dropout"]) == ("positional", [1, 1], 0.1)
    assert (adm["model_channels"], adm["channel_mult"], adm["attn_resolutions"]) == (192, [1, 2, 3, 4], [32, 16, 8])
    assert "resample_filter" not in adm
    assert complete_edm("SongUNet", song) == song


IMPOSSIBLE = [
    ({"widths": 3}, "unknown SongUNet argument 'widths'"),
    ({7: 3}, "unknown SongUNet argument 7"),
    ({"img_resolution": None}, "'img_resolution' must be a positive integer, not None"),
    ({"img_resolution": 12}, "'img_resolution' must be a multiple of 8"),
    ({"label_dim": -1}, "'label_dim' must be an integer of at least 0, not -1"),
    ({"label_dim": True}, "'label_dim' must be"),
    ({"model_channels": 10**5000}, "'model_channels' must be an even integer of at least 4, not a value of the kind"),
    ({"num_blocks": 10**6}, "'num_blocks' must be an integer from 1 to 64, not 1000000"),
    ({"channel_mult": []}, r"'channel_mult' must be a list of integers such as \[1, 2, 2\], not \[\]"),
    ({"channel_mult": [1, 0.5]}, r"'channel_mult' must be .* not \[1, 0.5\]"),
    ({"channel_mult": DEEP}, "'channel_mult' must be .* not a value of the kind list"),
    ({"attn_resolutions": 16}, "'attn_resolutions' must be a list of image sizes"),
    ({"dropout": 1.5}, "'dropout' must be a number of at least 0 and below 1, not 1.5"),
    ({"embedding_type": "learned"}, "'embedding_type' must be positional or fourier, not 'learned'"),
    ({"encoder_type": ["skip"]}, "'encoder_type' must be standard or skip or residual"),
    ({"resample_filter": [1, 2, 1]}, "'resample_filter' must be"),
    ({"resample_filter": [1, float("nan")]}, "'resample_filter' must be"),
    ({"embedding_type": "x" * 500 + "\n"}, "not 'x+\\.\\.\\.$"),
]


@pytest.mark.parametrize(("change", "message"), IMPOSSIBLE)
def test_arguments_that_make_no_network_are_refused_in_one_short_line(change, message):
    assert refusal(CheckpointError, complete_edm, "SongUNet", {**SIZES, **change}, match=message)


def test_an_unknown_architecture_is_refused():
    with pytest.raises(CheckpointError, match="unknown EDM network 'UNet'; known: DhariwalUNet, SongUNet"):
        complete_edm("UNet", SIZES)


def test_positional_arguments_get_their_names():
    assert named(("a", "b"), (1,), {"b": 2}) == {"a": 1, "b": 2}
    with pytest.raises(CheckpointError, match="3 positional arguments where at most 2"):
        named(("a", "b"), (1, 2, 3), {})
    with pytest.raises(CheckpointError, match="'a' twice"):
        named(("a", "b"), (1,), {"a": 2})


def test_levels_halve_and_widen():
    config = complete_edm("SongUNet", SIZES)
    assert levels_of(config) == [(32, 128, False), (16, 256, True), (8, 256, False), (4, 256, False)]


def test_groups_hold_at_least_four_channels():
    assert [groups_of(channels) for channels in (4, 16, 36, 128, 384)] == [1, 4, 9, 32, 32]
    with pytest.raises(CheckpointError, match="2 channels do not divide into the norm's 1 groups"):
        groups_of(2)


EXPECTED = {"a": (3,), "b": (2, 3), "c": (), "d": (1,)}


DIFFERENCES = [
    (EXPECTED, None),
    ({**EXPECTED, "e": (1,)}, "has 'e' which it should not"),
    ({"a": (3,), "b": (2, 3), "c": ()}, "lacks 'd'"),
    ({"c": ()}, "lacks 'a', 'b' and 1 more"),
    ({**EXPECTED, "b": (3, 2)}, "'b' is (3, 2) and not (2, 3)"),
    ({**EXPECTED, "a": (1, 3), "c": (1,), "d": ()}, "'a' is (1, 3) and not (3), 'c' is (1) and not () and 1 more"),
    ({"a": (3,), "b": (2,), "c": (), "e": (1,)}, "lacks 'd'; has 'e' which it should not; 'b' is (2) and not (2, 3)"),
]


@pytest.mark.parametrize(("found", "message"), DIFFERENCES)
def test_differences_are_told_in_one_line(found, message):
    assert misfit(found, EXPECTED) == message


def test_names_from_a_file_stay_short_and_on_one_line():
    said = misfit({**EXPECTED, "long\n" * 10000: (1,), "x\r\x1b[2J": (1,)}, EXPECTED)
    assert said.isprintable()
    assert len(said) < 200
    assert quoted("plain") == "'plain'"
