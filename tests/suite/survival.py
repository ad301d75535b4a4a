"""Runs that tests may kill: processes of a fork server that has imported everything, so that a kill costs little.

What runs in them must be importable. A :class:`Job` tells its phases as it enters and leaves them.
"""

import errno
import functools
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from dataclasses import replace

import torch
from refusals import Outcome
from tqdm import tqdm

import run_bench
from analysis import __main__ as analysis
from analysis import regenerate
from analysis.records.load import load_results
from bench.models.denoisers.parameterization import NetworkDenoiser
from bench.runtime.signals import end_at_once
from bench.suite import cli, plan
from bench.suite.cells import runner
from bench.suite.cells.runner import CellRunner
from bench.suite.cells.walks import CellWalks
from bench.suite.execution import launch
from bench.suite.execution import worker as execution
from bench.suite.experiments import exact
from bench.suite.processes.progress import Progress
from bench.suite.store.store import Store

# What takes long to import, some of it where it is needed: once is enough.
SLOW = ["bench.suite.cli", "analysis.regenerate", "diffusers.models.unets.unet_2d"]
PATIENCE = 120  # seconds: far more than anything here takes, so that what hangs fails
PHASES = ("sampling", "writing", "merging", "scoring")
CALL = "call"  # told as a phase, too: a network call


class Job:
    """A run of the command line in a process of its own.

    Args:
        argv: the command's arguments.
        room: a folder for what it prints.
        patches: called in the process before the run: functions of a module, or partials of such.
        command: takes the arguments and returns the exit code; by default the suite without the analysis.
    """

    def __init__(self, argv, room, patches=(), command=None):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(SLOW)
        self._here, there = context.Pipe(duplex=False)
        self._texts = [room / f"said-{name}" for name in ("out", "err")]
        self.phase, self.entered, self.ended = "starting", [], False
        arguments = (there, [str(word) for word in argv], self._texts, patches, command or suite)
        self.process = context.Process(target=_child, args=arguments)
        self.process.start()
        there.close()

    def until(self, phase, count=1):
        """Wait until a phase is entered for the ``count``-th time; return False if the run ends before."""
        deadline = time.monotonic() + PATIENCE
        while self.entered.count(phase) < count and not self.ended:
            assert time.monotonic() < deadline, "hangs"
            self._hear(1.0)
        return self.entered.count(phase) >= count

    def send(self, number):
        """Send a signal, unless the process is gone."""
        if self.process.is_alive():
            os.kill(self.process.pid, number)

    def end(self):
        """Wait for the end; return the exit code, negative for a signal's, and what was printed."""
        self.until("never")
        self.process.join(PATIENCE)
        assert self.process.exitcode is not None, "hangs"
        return Outcome(self.process.exitcode, *(path.read_text() for path in self._texts))

    def _hear(self, timeout):
        try:
            if self._here.poll(timeout):
                phase, entered = self._here.recv()
                self.entered += [phase] if entered else []
                self.phase = "sampling" if phase == CALL else phase
        except EOFError:
            self.ended = True


def done(argv, room, *patches, command=None):
    """Run to the end; return the outcome."""
    return Job(argv, room, patches, command).end()


def suite(argv):
    """Run the suite alone."""
    return cli.run(argv)[0]


def _child(pipe, argv, texts, patches, command):
    for number, path in zip((1, 2), texts, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    end_at_once()
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system, which a killed process leaves behind
    launch.plan_slopes = lambda cells: []  # random networks have no slope of 1, and calls are counted here
    _tell_phases(pipe)
    for patch in patches:
        patch()
    code = command(argv)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class _Told:
    """Tells a pipe when a phase begins, and when one within it ends."""

    def __init__(self, pipe):
        self.pipe, self.within = pipe, ["setting up"]

    def entered(self, name):
        self.within.append(name)
        self.pipe.send((name, True))

    def left(self):
        self.within.pop()
        self.pipe.send((self.within[-1], False))

    def wrapped(self, name, function):
        @functools.wraps(function)
        def telling(*args, **kwargs):
            self.entered(name)
            try:
                return function(*args, **kwargs)
            finally:
                self.left()

        return telling


def _tell_phases(pipe):
    told = _Told(pipe)
    for owner, method, name in (
        (CellWalks, "compute", "sampling"),
        (Store, "put_shard", "writing"),
        (CellRunner, "complete", "merging"),
        (runner, "score_cell", "scoring"),
        (execution, "score_cell", "scoring"),
        (NetworkDenoiser, "__call__", CALL),
    ):
        setattr(owner, method, told.wrapped(name, getattr(owner, method)))


# Patches: what is different in the process.


def small_shards(images=8):
    """Cut cells into units of so many images, visit no others for their errors alone, and walk few exact samples."""
    plan.SHARD, plan._ERROR_IMAGES = images, 8
    exact._MANY = exact._FEW = 64


def die_at(operation, root):
    """Be killed by SIGKILL as the ``operation``-th change to the files below a folder is asked for, from 1."""
    _watch_changes(root, operation, lambda path: os.kill(os.getpid(), signal.SIGKILL))


def fail_from(operation, root, number=errno.ENOSPC):
    """Refuse the ``operation``-th change to the files below a folder, and later ones; a full disk lets one delete."""
    deletes = () if number == errno.EROFS else ("os.remove", "os.rmdir", "shutil.rmtree")

    def refuse(path):
        raise OSError(number, os.strerror(number), path)

    _watch_changes(root, operation, refuse, deletes)


def _watch_changes(root, first, act, ignored=()):
    """Act at every change to files from the ``first`` on, as Python's audit events tell; there is no way back."""
    seen = [0]

    def hook(event, args):
        path = None if event in ignored else _changed(event, args)
        if path is not None and path.startswith(str(root)):
            seen[0] += 1
            if seen[0] >= first:
                act(path)

    sys.addaudithook(hook)


def _changed(event, args):
    """Return the path of what an audit event changes, None where it changes nothing."""
    if event == "open":
        path, _, flags = args
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        return os.fspath(path) if writes and isinstance(path, str | os.PathLike) else None
    if event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"):
        return os.fspath(args[0])
    return None


def read_only_from(operation, root):
    """Refuse the ``operation``-th change to the files below a folder, and later ones, as a read-only system does."""
    fail_from(operation, root, errno.EROFS)


def largest_file(size, root):
    """Let no file grow beyond so many bytes, as where a disk is full: a write fails in the middle (EFBIG)."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def signal_at(phase, count, *numbers):
    """Have signals sent to this process in the ``count``-th entry of a phase, from 1, or of a network call."""
    seen, tell = [0], _Told.entered

    def entered(told, name):
        tell(told, name)
        seen[0] += name == phase
        if name == phase and seen[0] == count:
            for number in numbers:
                os.kill(os.getpid(), number)

    _Told.entered = entered


def signal_when_stopping(number):
    """Have a signal sent to this process while it deals with an earlier one, again and again."""
    event, close = Progress.event, Progress.close

    def told(watch, name, **facts):
        os.kill(os.getpid(), number)
        event(watch, name, **facts)

    def closed(watch):
        os.kill(os.getpid(), number)
        close(watch)

    def interrupted(watch, name, **facts):
        if name == "interrupted":
            Progress.event, Progress.close = told, closed
        event(watch, name, **facts)

    Progress.event = interrupted


def signal_in_analysis(number):
    """Have a signal sent to this process while tables are made."""

    def load(root):
        os.kill(os.getpid(), number)
        return load_results(root)

    regenerate.load_results = load


def break_at(call, value):
    """Let the ``call``-th network call say something that is not finite, from 1."""
    seen, ask = [0], NetworkDenoiser.__call__

    def broken(*args):
        seen[0] += 1
        said = ask(*args)
        return replace(said, eps=torch.full_like(said.eps, value)) if seen[0] == call else said

    NetworkDenoiser.__call__ = broken


def no_analysis():
    """Let the analysis find a folder with an incomplete cell, without doing its work."""
    analysis.main = lambda arguments: print(f"analysed {arguments[0]}") or 1


def partials_in(folder):
    """Return what is half written below a folder."""
    return [path for path in folder.rglob("*") if "partial" in path.name]


def whole_command(argv):
    """Run run_bench.py as it is."""
    return run_bench.main(argv)


if __name__ == "__main__":  # as torchrun starts it
    launch.plan_slopes = lambda cells: []  # as in a child
    small_shards()
    sys.exit(suite(sys.argv[1:]))
