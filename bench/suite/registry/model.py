"""A named model: where its weights are, what is in them, and what is done to its predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.models.checkpoints.formats import checkpoint_hash
from bench.models.checkpoints.native import Description, file_hash
from bench.models.denoisers.preconditioning import Preconditioning, make_preconditioning
from bench.suite.registry.remedies import KINDS, Remedy
from bench.suite.settings import EDM_SAMPLERS, ConfigError, short_hash

__all__ = ["Guidance", "Model"]

_SHIFTS = ("time-shift", "time-shift-code")


@dataclass(frozen=True)
class Guidance:
    """Classifier guidance: a classifier's weights and arguments, and the strength s of its score."""

    classifier: Path
    network: Mapping[str, Any]
    scale: float

    @cached_property
    def _hash(self) -> str:
        return file_hash(self.classifier)

    def description(self) -> dict[str, Any]:
        """Return what determines the guidance, JSON-like."""
        return {"classifier": self._hash, "classifier_scale": self.scale}


@dataclass(frozen=True)
class Model:
    """A named model: weights, what is in them, remedies in the order they act, and a classifier, if it has one."""

    name: str
    weights: Path
    description: Description
    remedies: tuple[Remedy, ...] = ()
    base: str = ""  # the name of the plain model that the remedies were added to; empty where it has none
    given: Path | None = None  # weights of the command line, in place of its own
    guidance: Guidance | None = None

    @property
    def learns_variance(self) -> bool:
        """Tell whether the network predicts a variance beside eps."""
        return self.description.learns_variance

    @cached_property
    def _weights_hash(self) -> str:
        return checkpoint_hash(self.weights, self.description)

    def weights_hash(self) -> str:
        """Return the sha256 of the weights, read once."""
        return self._weights_hash

    def preconditioning(self) -> Preconditioning:
        """Return how an EDM model's network is wrapped."""
        return make_preconditioning(self.description.prediction, self.description.network.get("preconditioning"))

    def additions(self) -> dict[str, Any]:
        """Return what determines the function besides weights, network and schedule; empty for plain eps models."""
        prediction = self.description.prediction
        found: dict[str, Any] = {} if prediction == "eps" else {"prediction": prediction}
        return found | (self.guidance.description() if self.guidance else {})

    def identity(self) -> dict[str, Any]:
        """Return what determines the function besides the weights, remedies apart, JSON-like."""
        about = self.description
        network = short_hash(dict(about.network))
        return {"network": network, "schedule": about.schedule, "T": about.T, **self.additions()}

    def scale_at(self, sampler: str, steps: int) -> tuple[float, float]:
        """Return epsilon scaling's (b, k), (1, 0) for a model without it."""
        found = [remedy.at(sampler, steps) for remedy in self.remedies if remedy.kind == "epsilon-scaling"]
        return (found[0]["b"], found[0]["k"]) if found else (1.0, 0.0)

    def intervention(self, sampler: str, steps: int) -> dict[str, Any]:
        """Return what is done to the walk, JSON-like; ``remedies`` only where epsilon scaling does not say it all."""
        b, k = self.scale_at(sampler, steps)
        told: dict[str, Any] = {"eps_scale": b, "eps_slope": k}
        if [remedy.kind for remedy in self.remedies] not in ([], ["epsilon-scaling"]):
            told["remedies"] = [remedy.description(sampler, steps) for remedy in self.remedies]
        return told

    def told(self, sampler: str, counts: Sequence[int]) -> dict[str, Any]:
        """Return the remedies by step count, nothing where epsilon scaling says it all."""
        remedies = [self.intervention(sampler, count).get("remedies") for count in counts]
        return {"remedies": remedies} if any(remedies) else {}

    def refuse(self, sampler: str, purpose: str = "") -> None:
        """Refuse a sampler that a remedy does not work with, or has no constants for.

        Args:
            sampler: the run's.
            purpose: what else needs it, for the message.

        Raises:
            ConfigError: naming the remedy.
        """
        shifts = [remedy.kind for remedy in self.remedies if remedy.kind in _SHIFTS]
        if len(shifts) > 1:
            raise ConfigError(f"model {self.name!r} has {' and '.join(shifts)}; a walk takes one time shift")
        for remedy in self.remedies:
            kind = KINDS[remedy.kind]
            if sampler not in kind.samplers:
                own = [name for name in kind.samplers if (name in EDM_SAMPLERS) == self.description.is_edm]
                raise ConfigError(
                    f"{remedy.kind} of model {self.name!r} does not work with --sampler {sampler}{purpose}:"
                    f" {kind.reason}; " + (f"use {' or '.join(own)}" if own else "leave the remedy out")
                )
            missing = remedy.missing(sampler)
            if missing == "b":
                raise ConfigError(
                    f"no {sampler} scaling constants were tuned for {self.name!r} with these weights{purpose};"
                    " give --eps-scale, or find them with --tune b=fit"
                )
            if missing:
                raise ConfigError(
                    f"{remedy.kind} of model {self.name!r} needs {missing!r} for {sampler}{purpose}; find it with"
                    f" --tune {missing}=fit, or give it in the config file"
                )

    def rescaled(self, b: float | None, k: float | None) -> Model:
        """Return the model with epsilon scaling's constants replaced at every step count; None keeps one."""
        given = {name: value for name, value in (("b", b), ("k", k)) if value is not None}
        remedies = [r.overridden(given) if "b" in KINDS[r.kind].defaults else r for r in self.remedies]
        return replace(self, remedies=tuple(remedies))

    def guided(self, guidance: Guidance) -> Model:
        """Return the model under a classifier's guidance."""
        return replace(self, guidance=guidance)
