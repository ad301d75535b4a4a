"""Processes that run the suite together, for tests: what runs in them must be importable."""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from unittest import mock

from processes_of_tests import PATIENCE, captured, run_ranks
from torch.distributed import TCPStore

from bench.runtime.distributed import AgreedError, PeerError
from bench.suite import cli
from bench.suite.experiments import exact
from bench.suite.processes.locks import Claims
from bench.suite.processes.ranks import join
from bench.suite.settings import ConfigError

# What is imported where it is needed: once is enough.
_SLOW = ["diffusers.models.unets.unet_2d", "bench.suite.cli"]
COUNT = 50  # units to share


def launch(size, target, *args):
    """Call ``target(*args)`` in ``size`` processes as torchrun starts them; return what each returned, by rank."""
    return launch_again(new_store(), 0, size, target, *args)


def new_store():
    """Return the launcher's store."""
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def launch_again(store, attempt, size, target, *args):
    """Do as ``launch`` on a store that outlives the processes, for an attempt counted from 0."""
    environment = {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    environment["TORCHELASTIC_RESTART_COUNT"] = str(attempt)
    return run_ranks(size, environment, ["suite_ranks", *_SLOW], target, *args)


def command(*argv):
    """Run the command line, with few walks of exact samplers; return its exit code and what it printed."""
    with mock.patch.multiple(exact, _MANY=64, _FEW=64):
        return captured(lambda words: cli.run(words)[0], list(argv))


def on_its_own():
    """Be the command without the analysis, for torchrun."""
    return cli.run(sys.argv[1:])[0]


def with_team(work, *args):
    """Return ``work(team, *args)``."""
    team = join(None)
    try:
        return work(team, *args)
    finally:
        team.close()


def share_work(team):
    """Use everything a team offers, and tell what came of it."""
    units = list(team.take("units", COUNT))
    team.gather([])
    again, other = list(team.take("units", COUNT)), list(team.take("scores", 3))
    told = team.gather([f"rank {team.rank}", "all alike"])
    team.add("calls", 10 + team.rank)
    team.gather([])
    return {
        "rank": (team.rank, team.size, team.local_rank, team.leads),
        "taken": (units, again, other),
        "told": told,
        "calls": team.add("calls", 0),
    }


def mistaken(team):
    """Let one process fail in what all do alike."""
    try:
        with team.together():
            if team.rank == 1:
                raise ConfigError("of rank 1")
    except AgreedError as error:
        return f"{type(error).__name__}: {error}"


def abandoned(team):
    """Let one process die while the other waits for it; both have met before."""
    team.gather([])
    if team.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        team.gather([])
    except PeerError as error:
        return f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def started(target, *args):
    """Start ``target(say, *args)`` in a process; yield it and a function that waits for what it says next."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["suite_ranks", *_SLOW])
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(there.send, *args), daemon=True)
    process.start()
    there.close()
    try:
        yield process, lambda: here.recv() if here.poll(PATIENCE) else "hangs"
    finally:
        process.kill()


def hold_folder(say, root):
    """Hold a results folder until killed."""
    with Claims(root).folder():
        say("held")
        time.sleep(PATIENCE)


if __name__ == "__main__":
    sys.exit(on_its_own())
