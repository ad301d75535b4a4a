"""A named model: where its weights are, what is in them, and what is done to its predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.models.checkpoints import Description, file_hash
from bench.models.formats import checkpoint_hash
from bench.models.preconditioning import Preconditioning, make_preconditioning
from bench.suite.config import short_hash
from bench.suite.scaling import Scaling

__all__ = ["Guidance", "Model"]


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
    """A named model: weights, what is in them, its epsilon scaling by sampler and its classifier, if it has one."""

    name: str
    weights: Path
    description: Description
    scaling: Mapping[str, Scaling] = field(default_factory=dict)
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
        """Return what determines the function besides the weights, scaling apart, JSON-like."""
        about = self.description
        network = short_hash(dict(about.network))
        return {"network": network, "schedule": about.schedule, "T": about.T, **self.additions()}

    def scale_at(self, sampler: str, steps: int) -> tuple[float, float]:
        """Return epsilon scaling's (b, k), (1, 0) for a model without it."""
        return self.scaling[sampler].at(steps) if self.scaling else (1.0, 0.0)

    def overridden(self, b: float | None, k: float | None) -> Model:
        """Return the model with its scaling constants replaced, at every step count."""
        return replace(self, scaling={sampler: old.overridden(b, k) for sampler, old in self.scaling.items()})

    def guided(self, guidance: Guidance) -> Model:
        """Return the model under a classifier's guidance."""
        return replace(self, guidance=guidance)
