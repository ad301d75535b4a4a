from pathlib import Path

import pytest

from bench.runtime.errors import UserError
from bench.suite.config.request import parse_measure, parse_models, parse_seeds, parse_steps
from bench.suite.settings import RESERVED_SEEDS, ConfigError


def test_models_with_and_without_paths(monkeypatch, tmp_path):
    assert parse_models("adm, mine=weights/a=b.pt") == (("adm", None), ("mine", Path("weights/a=b.pt")))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_models("mine=~/a.pt") == (("mine", tmp_path / "a.pt"),)
    ids = parse_models("one=google/ddpm,two=other/model@main,adm")
    assert [str(path) for _, path in ids] == ["google/ddpm", "other/model@main", "None"]


@pytest.mark.parametrize(
    ("text", "seeds"), [("0", (0,)), ("0-3", (0, 1, 2, 3)), ("5, 1-2", (5, 1, 2)), ("7-7", (7,)), ("999999", (999999,))]
)
def test_seeds_and_ranges(text, seeds):
    assert parse_seeds(text) == seeds


def test_measurements_come_in_the_order_they_are_made_and_steps_as_given():
    assert parse_steps("1000, 80,300") == (1000, 80, 300)
    assert parse_measure("chains, steps") == ("steps", "chains")
    assert parse_measure("all") == parse_measure("response,all") == ("steps", "normality", "chains", "response")


BAD = {  # by what reads it: what is said, and the texts that it answers
    parse_models: {
        "--models is empty": ["", " , ,"], "not NAME or NAME=PATH": ["=x.pt", "adm="], "adm twice": ["adm,adm"],
        "neither 'a/b/run' nor 'a/b/run,lr=1e-4/ema.pt' exists": ["adm=a/b/run,lr=1e-4/ema.pt"],
        "neither 'a' nor 'a,b/c.pt' exists; commas separate models": ["adm=a,b/c.pt", "adm,mine=a,b/c.pt,adm-ip"],
        "'../../evil' in --models is no name": ["../../evil=w.pt"], "a model twice": ["adm,adm=x.pt"],
        "as in --models mine=a/w.pt": ["adm,a/w.pt"],
    },
    parse_steps: {
        "--steps is empty": [""], "is not positive": ["0", "10,-5"], "5 twice": ["5,5"], "a number twice": ["5,05"],
        "is not a whole number": ["ten", "1.5", "nan", "1e3"],
    },
    parse_seeds: {
        "--seeds is empty": [""], "neither a seed": ["x", "-1", "1-"], "is empty or too large": ["3-1", "0-10000"],
        "are for tuning": [str(RESERVED_SEEDS)], "a seed twice": ["2,0-4"],
    },
    parse_measure: {"empty": ["", ","], "steps": ["step"], "twice": ["steps,steps"]},
}  # fmt: skip


@pytest.mark.parametrize("parse", BAD)
def test_what_cannot_be_read_is_refused(parse):
    for message, texts in BAD[parse].items():
        for text in texts:
            with pytest.raises(ConfigError, match=message):
                parse(text)


def test_an_address_without_a_name_says_what_to_write():
    with pytest.raises(UserError, match="write the model's id, owner/name"):
        parse_models("https://huggingface.co/owner/name")
