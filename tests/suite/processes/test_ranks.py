"""Processes that share the units of a run: by torch.distributed's store, or by ``--shard i/n``."""

import signal
from itertools import chain

import pytest
import suite_ranks
from cases import at_first
from suite_ranks import COUNT, abandoned, launch, launch_again, mistaken, new_store, share_work, with_team

from bench.runtime.distributed import is_launched
from bench.suite.processes.ranks import Share, Team, join, parse_share
from bench.suite.settings import ConfigError


@pytest.mark.parametrize("size", at_first([3, 2], 1))
def test_ranks_share_units_words_and_counters(size):
    found = launch(size, with_team, share_work)
    assert [one["rank"] for one in found] == [(rank, size, rank, rank == 0) for rank in range(size)]
    units, again, other = zip(*(one["taken"] for one in found), strict=True)
    assert sorted(chain(*units)) == list(range(COUNT))  # every number exactly once
    assert sorted(chain(*other)) == [0, 1, 2]  # kinds are counted apart
    assert not any(again)  # what is taken stays taken
    told = [line for rank in range(size) for line in (f"rank {rank}", "all alike")]
    assert {tuple(one["told"]) for one in found} == {tuple(dict.fromkeys(told))}
    assert {one["calls"] for one in found} == {10 * size + sum(range(size))}


def test_processes_that_are_started_again_start_afresh():
    """As under ``torchrun --max-restarts``, whose store still holds what the processes that died have written."""
    store = new_store()
    for attempt, size in ((0, 2), (1, 2), (1, 3)):
        found = launch_again(store, attempt, size, with_team, share_work)
        assert sorted(chain(*(one["taken"][0] for one in found))) == list(range(COUNT))
        assert {one["calls"] for one in found} == {10 * size + sum(range(size))}


def test_a_process_alone_does_everything_in_order():
    assert not is_launched()
    found = share_work(join(None))
    assert found["rank"] == (0, 1, 0, True)
    assert found["taken"][0] == list(range(COUNT))
    assert (found["told"], found["calls"]) == (["rank 0", "all alike"], 10)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("jobs", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("units", [0, 1, 5, 50])
def test_the_shares_of_an_array_are_all_of_the_work(first, jobs, units):
    teams = [Team(parse_share(f"{number}/{jobs}")) for number in range(first, first + jobs)]
    taken = [list(team.take("units", units)) for team in teams]
    assert sorted(chain(*taken)) == list(range(units))
    assert max(map(len, taken)) - min(map(len, taken)) <= 1


def test_an_array_from_1_to_n_is_one_from_0():
    assert parse_share("0/4") == parse_share("4/4") == Share(0, 4)
    assert str(parse_share("4/4")) == "0/4"


BAD = ["3/2", "x", "1/0", "0/0", "-1/2", "1/-2", "1/2/3", "", "/", "1/", "/2", "1", "1.0/2", " 1/2", "+1/2", "1 / 2"]
BAD += ["¹/2", "١/٢", "0/100001", "9" * 5000 + "/2", "0/" + "9" * 5000, "1/2\n", "0x1/2"]


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_share_is_refused(text):
    with pytest.raises(ConfigError, match=r"^--shard: .* (i/n|from 0 to n - 1)"):
        parse_share(text)


@pytest.mark.parametrize(
    ("flags", "line"),
    at_first(
        [
            (("--shard", "0/2"), "--shard 0/2 is for processes without torchrun"),
            (("--models", "amd"), "unknown model 'amd'; did you mean 'adm'?"),
            (("--nonsense",), "unrecognized arguments: --nonsense"),
            (("--shard", "3/2"), "--shard: '3/2' is out of range"),
        ],
        3,
    ),
)
def test_a_mistake_under_torchrun_is_told_once(tmp_path, flags, line):
    found = launch(2, suite_ranks.command, *flags, "--out", str(tmp_path / "out"))
    # Where the ranks agree on it only the first fails, so that torchrun does not end it before it has spoken.
    assert (found[0][0], found[1][0]) in ((2, 0), (2, 2))
    assert "".join(out for _, out, _ in found) == ""
    assert len("".join(err for _, _, err in found).splitlines()) == 1
    assert found[0][2].startswith(f"error: {line}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flag", at_first(["--dry-run", "--help", "--list-models"], 2))
def test_what_is_asked_under_torchrun_is_said_once(tmp_path, flag):
    found = launch(2, suite_ranks.command, "--models", "adm", "--steps", "2", flag, "--out", str(tmp_path / "out"))
    assert [code for code, _, _ in found] == [0, 0]
    assert found[0][1].count("\n") > 3
    assert found[1][1] == ""
    assert "".join(err for _, _, err in found) == ""
    assert not (tmp_path / "out").exists()


def test_a_mistake_of_one_process_is_one_of_all():
    found = launch(3, with_team, mistaken)
    assert found == ["AgreedError: of rank 1"] * 3


def test_alone_a_mistake_is_itself():
    with pytest.raises(OSError, match="of rank 1"), Team().together():
        raise OSError("of rank 1")


def test_whoever_waits_for_a_process_that_died_is_told_in_one_line():
    found = launch(2, with_team, abandoned)
    assert found[1] == -signal.SIGKILL
    assert found[0].startswith("PeerError: another process ended (")
    assert found[0].endswith("); the same command goes on where it stopped")
    assert len(found[0].splitlines()) == 1
