"""The base of all corrections, and several of them in a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from bench.diffusion.types import Call, Correction, Level, Network, Prediction

__all__ = ["Identity", "InOrder"]


class Identity:
    """The base of all corrections, and the plain sampler bit for bit."""

    def before(self, x: Tensor, call: Call) -> tuple[Tensor, Call]:
        """Leave the state and the step."""
        return x, call

    def ask(self, network: Network, x: Tensor, level: Level) -> Prediction:
        """Show the network what there is."""
        return network(x, level)

    def prediction(self, pred: Prediction, x: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        """Use the raw prediction."""
        return pred.x0, pred.eps

    def after(self, x_next: Tensor, pred: Prediction, call: Call) -> Tensor:
        """Leave the new state."""
        return x_next


class InOrder(Identity):
    """Several corrections in a row: each hook of the first, then that of the second on what the first made of it.

    ``before`` of the second sees the state and step of the first, ``prediction`` the x0 and eps of the first, ``after``
    the state of the first. One that asks the network about something else is the nearer to the network the later it
    comes: the second is shown what the first asks about.
    """

    def __init__(self, corrections: Sequence[Correction]) -> None:
        self.corrections = tuple(corrections)

    def before(self, x: Tensor, call: Call) -> tuple[Tensor, Call]:
        """Change state and step, one after another."""
        for correction in self.corrections:
            x, call = correction.before(x, call)
        return x, call

    def ask(self, network: Network, x: Tensor, level: Level) -> Prediction:
        """Ask through all of them, the last one next to the network."""
        for correction in reversed(self.corrections):
            network = partial(correction.ask, network)
        return network(x, level)

    def prediction(self, pred: Prediction, x: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        """Change what the update uses, one after another."""
        for correction in self.corrections:
            x0, eps = correction.prediction(pred, x, call)
            pred = replace(pred, x0=x0, eps=eps)
        return pred.x0, pred.eps

    def after(self, x_next: Tensor, pred: Prediction, call: Call) -> Tensor:
        """Change the new state, one after another."""
        for correction in self.corrections:
            x_next = correction.after(x_next, pred, call)
        return x_next
