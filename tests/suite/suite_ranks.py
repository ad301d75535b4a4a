"""Processes that run the suite together, for tests: what runs in them must be importable."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import sys
import time

import torch
from torch.distributed import TCPStore

from bench.runtime.distributed import AgreedError, PeerError
from bench.suite import cli
from bench.suite.processes.locks import Claims
from bench.suite.processes.ranks import join
from bench.suite.settings import ConfigError

# What is imported where it is needed: once is enough.
_SLOW = ["diffusers.models.unets.unet_2d", "bench.suite.cli"]
COUNT = 50  # units to share
_PATIENCE = 60  # seconds: far more than anything here takes, so that what hangs fails


def launch(size, target, *args):
    """Call ``target(*args)`` in ``size`` processes as torchrun starts them; return what each returned, by rank."""
    return launch_again(new_store(), 0, size, target, *args)


def new_store():
    """Return the launcher's store."""
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def launch_again(store, attempt, size, target, *args):
    """Do as ``launch`` on a store that outlives the processes, for an attempt counted from 0."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["suite_ranks", *_SLOW])
    pipes = [context.Pipe(duplex=False) for _ in range(size)]
    ranks = [
        context.Process(target=_rank, args=(rank, size, store.port, attempt, pipes[rank][1], target, args), daemon=True)
        for rank in range(size)
    ]
    for rank in ranks:
        rank.start()
    for _, there in pipes:
        there.close()
    try:
        return [_heard(here, rank) for (here, _), rank in zip(pipes, ranks, strict=True)]
    finally:
        for rank in ranks:
            rank.kill()


def _heard(pipe, rank):
    """Return what a process sent, or its exit code where it ended without a word."""
    if not pipe.poll(_PATIENCE):
        return "hangs"
    try:
        return pipe.recv()
    except EOFError:
        rank.join(_PATIENCE)
        return rank.exitcode


def _rank(rank, size, port, attempt, pipe, target, args):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": str(attempt)}
    pipe.send(target(*args))


def command(*argv):
    """Run the command line; return its exit code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code, _ = cli.run(list(argv))
        except SystemExit as stop:
            code = stop.code
    return code, out.getvalue(), err.getvalue()


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
    """Let one process die while the other waits for it."""
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
        yield process, lambda: here.recv() if here.poll(_PATIENCE) else "hangs"
    finally:
        process.kill()


def hold_folder(say, root):
    """Hold a results folder until killed."""
    with Claims(root).folder():
        say("held")
        time.sleep(_PATIENCE)


if __name__ == "__main__":
    sys.exit(on_its_own())
