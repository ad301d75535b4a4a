from pathlib import Path

import pytest

from bench.suite.config.request import parse_measure, parse_models, parse_seeds, parse_steps
from bench.suite.settings import RESERVED_SEEDS, ConfigError


def test_models_with_and_without_paths():
    assert parse_models("adm, mine=weights/a=b.pt") == (("adm", None), ("mine", Path("weights/a=b.pt")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--models is empty"),
        (" , ,", "--models is empty"),
        ("=x.pt", "not NAME or NAME=PATH"),
        ("adm=", "not NAME or NAME=PATH"),
        ("adm,adm", "adm twice"),
        ("../../evil=w.pt", "'../../evil' in --models is no name"),
        ("adm,adm=x.pt", "a model twice"),
    ],
)
def test_bad_models(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_models(text)


def test_steps_keep_their_order():
    assert parse_steps("1000, 80,300") == (1000, 80, 300)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--steps is empty"),
        ("0", "0 is not positive"),
        ("10,-5", "-5 is not positive"),
        ("ten", "'ten' is not a whole number"),
        ("1.5", "not a whole number"),
        ("nan", "not a whole number"),
        ("1e3", "not a whole number"),
        ("5,5", "5 twice"),
        ("5,05", "a number twice"),
    ],
)
def test_bad_steps(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_steps(text)


@pytest.mark.parametrize(
    ("text", "seeds"), [("0", (0,)), ("0-3", (0, 1, 2, 3)), ("5, 1-2", (5, 1, 2)), ("7-7", (7,)), ("999999", (999999,))]
)
def test_seeds_and_ranges(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--seeds is empty"),
        ("x", "neither a seed"),
        ("-1", "neither a seed"),
        ("1-", "neither a seed"),
        ("3-1", "is empty or too large"),
        ("0-10000", "is empty or too large"),
        (str(RESERVED_SEEDS), "are for tuning"),
        ("2,0-4", "a seed twice"),
    ],
)
def test_bad_seeds(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_seeds(text)


def test_measurements_come_in_the_order_they_are_made():
    assert parse_measure("chains, steps") == ("steps", "chains")
    assert parse_measure("all") == parse_measure("response,all") == ("steps", "normality", "chains", "response")


@pytest.mark.parametrize(("text", "said"), [("", "empty"), (",", "empty"), ("step", "steps"), ("steps,steps", "twice")])
def test_measurements_that_are_none(text, said):
    with pytest.raises(ConfigError, match=said):
        parse_measure(text)
