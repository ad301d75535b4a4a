"""Processes as torchrun starts them, for tests; what runs in them must be importable."""

import contextlib
import io
import multiprocessing
import os

import torch

PATIENCE = 60  # seconds: far more than anything here takes, so that what hangs fails


def run_ranks(size, environment, preload, target, *args):
    """Call ``target(*args)`` in ``size`` processes; return by rank what each returned, or its exit code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(preload)
    pipes = [context.Pipe(duplex=False) for _ in range(size)]
    ranks = [
        context.Process(target=_rank, args=(rank, size, environment, pipes[rank][1], target, args), daemon=True)
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
    if not pipe.poll(PATIENCE):
        return "hangs"
    try:
        return pipe.recv()
    except EOFError:
        rank.join(PATIENCE)
        return rank.exitcode


def _rank(rank, size, environment, pipe, target, args):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"TORCHELASTIC_RUN_ID": "test", **environment}
    pipe.send(target(*args))


def captured(function, argv):
    """Call a command with its arguments; return its exit code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = function(argv)
        except SystemExit as stop:
            code = stop.code
    return code, out.getvalue(), err.getvalue()
