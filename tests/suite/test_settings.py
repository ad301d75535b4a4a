from dataclasses import replace
from pathlib import Path

import pytest

from bench.suite.settings import ConfigError, SamplerConfig, check_name, nearest, positive, short_hash


@pytest.mark.parametrize("value", [0, -1, -0.5, float("nan"), float("inf")])
def test_positive_refuses(value):
    with pytest.raises(ConfigError, match="--flag must be positive"):
        positive("--flag", value)
    for accepted in (1, 0.001, 1e300):
        positive("--flag", accepted)


def test_nearest_name():
    assert "did you mean 'cosine'?" in str(nearest("schedule", "cosin", ["linear", "cosine"]))
    assert "known: cosine, linear" in str(nearest("schedule", "zzz", ["linear", "cosine"]))


def test_respacing_names():
    assert SamplerConfig().respacing(20) == "20"
    assert SamplerConfig(spacing="ddim").respacing(20) == "ddim20"
    assert SamplerConfig(spacing="trailing").respacing(20) == "trailing20"


def test_short_hash_sees_every_part_and_no_order():
    value = {"a": 1, "b": [1, 2.5, None], "c": Path("x")}
    assert short_hash(value) == short_hash(dict(reversed(value.items())))
    others = [{**value, "a": 2}, {**value, "b": [1, 2.5]}, {**value, "c": Path("y")}, {**value, "d": 0}]
    assert len({short_hash(other) for other in [value, *others]}) == 5
    assert short_hash(SamplerConfig()) == short_hash(SamplerConfig())
    assert short_hash(SamplerConfig()) != short_hash(replace(SamplerConfig(), eta=0.1))


@pytest.mark.parametrize(
    "name", ["../../evil", "x/y", "<b>x</b>", ".hidden", "-flag", "a b", "adm@", "adm@x", "a@1@2", "\u00e4", ""]
)
def test_what_is_no_name(name):
    with pytest.raises(ConfigError, match=r"in --models is no name; use up to 100 letters, digits"):
        check_name(name, "--models")
    for accepted in ("adm", "adm-ip_2.5", "3d", "adm@2", "adm@12-ts-es"):
        check_name(accepted, "--models")
