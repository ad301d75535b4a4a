"""Processes that train together, for tests: what runs in them must be importable."""

import contextlib
import hashlib
import os
import signal
import socket

import torch
from processes_of_tests import captured, run_ranks

from bench.data import DataError
from bench.files import writing
from bench.models.train import trainer as training
from bench.models.train.__main__ import main
from bench.models.train.replicas import joined
from bench.runtime.signals import Signals

CPU = torch.device("cpu")
SLOW = ["diffusers.models.unets.unet_2d"]  # what is imported where it is needed: once is enough


class StopAt(Signals):
    """Hears SIGTERM before the iteration that is the ``count``-th of this call."""

    def __init__(self, count):
        self._asked, self._count = 0, count
        super().__init__()

    @property
    def received(self):
        self._asked += 1
        return 15 if self._asked > self._count else 0

    @received.setter
    def received(self, number):
        pass


def launch(size, target, *args):
    """Call ``target(replicas, *args)`` in ``size`` processes; return what each returned, or raised, as text."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return run_ranks(size, {"MASTER_PORT": str(port)}, ["bench.models.train.trainer", *SLOW], _joined, target, args)


def _joined(target, args):
    if target in (command, interrupted):
        return target(*args)
    with joined() as replicas:
        try:
            return target(replicas, *args)
        except (Exception, KeyboardInterrupt) as error:
            return f"{type(error).__name__}: {error}"


def command(argv):
    """Run the command line; return its exit code and what it printed."""
    return captured(main, argv)


def interrupted(argv, number, by, at=3):
    """Run the command line; the process of rank ``by`` gets a signal at the iteration ``at``, None while it loads."""
    here, whole = os.environ["RANK"] == str(by), training.Batches.at

    def batch(self, iteration):
        if here and iteration == at:
            signal.raise_signal(number)
            signal.raise_signal(signal.SIGTERM)  # as torchrun does some time later
        return whole(self, iteration)

    def load(name, data_dir):
        if here:
            signal.raise_signal(number)
        return training_data(name, data_dir)

    training_data = training.load
    training.LOG_EVERY, training.Batches.at = 2, batch
    training.load = load if at is None else training_data
    return command(argv)


def train_all(replicas, recipes, folder, images, stop=None):
    """Train each recipe with rows every second iteration; return a digest of each replica's weights."""
    training.LOG_EVERY = 2
    made, plain = [], training.Trainer

    class Kept(plain):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    training.Trainer = Kept
    signals = None if stop is None else StopAt(stop)
    with contextlib.suppress(KeyboardInterrupt):
        for recipe in recipes:
            training.train(recipe, folder / recipe.name, CPU, True, images, replicas=replicas, signals=signals)
    training.Trainer = plain
    return [digest(trainer) for trainer in made]


def digest(trainer):
    states = [trainer.network.state_dict(), trainer.average.state_dict()]
    return hashlib.sha256(b"".join(t.numpy().tobytes() for state in states for t in state.values())).hexdigest()


def fail(replicas, how, recipe, out, images):
    """Train with a mistake that only one process makes."""
    training.LOG_EVERY = 1
    if how == "data" and replicas.rank == 1:
        training.load = _no_data
    if how == "log" and replicas.leads:
        training.TrainingLog.add = _no_space
    if how == "disk":
        writing.os.replace = _full
    if how == "death" and replicas.rank == 1:
        training.Batches.at = lambda self, iteration: os._exit(1)
    training.train(recipe, out, CPU, True, None if how == "data" else images, replicas=replicas)


def _no_data(name, data_dir):
    raise DataError("the data are gone")


def _no_space(self, window):
    raise OSError(28, "No space left on device")


def _full(source, target):
    raise OSError(28, "No space left on device")


def exchange(replicas):
    """Return what each method that exchanges returns."""
    return (
        replicas.sum(torch.tensor([1.0, replicas.rank])).tolist(),
        replicas.largest(replicas.rank * 2),
        replicas.of_leader(lambda: replicas.rank),
        tuple(len(replicas.part(total)) for total in (3, 7, 128)),
    )
