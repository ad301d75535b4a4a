"""A named model: where its weights are, what is in them, and what is done to its predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.models.checkpoints import Description, file_hash
from bench.models.opening import checkpoint_hash
from bench.models.preconditioning import Preconditioning, make_preconditioning
from bench.suite.config import ConfigError
from bench.suite.scaling import Scaling

__all__ = ["Guidance", "Model"]


@dataclass(frozen=True)
class Guidance:
    """Classifier guidance: a classifier's weights and arguments, and the strength s of its score."""

    classifier: Path
    network: Mapping[str, Any]
    scale: float

    def description(self) -> dict[str, Any]:
        """Return what determines the guidance, JSON-like."""
        return {"classifier": file_hash(self.classifier), "classifier_scale": self.scale}


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

    def weights_hash(self) -> str:
        """Return the sha256 of the weights."""
        return checkpoint_hash(self.weights, self.description)

    def preconditioning(self) -> Preconditioning:
        """Return how an EDM model's network is wrapped."""
        return make_preconditioning(self.description.prediction, self.description.network.get("preconditioning"))

    def additions(self) -> dict[str, Any]:
        """Return what determines the function besides weights, network and schedule; empty for plain eps models."""
        prediction = self.description.prediction
        found: dict[str, Any] = {} if prediction == "eps" else {"prediction": prediction}
        return found | (self.guidance.description() if self.guidance else {})

    def scale_at(self, sampler: str, steps: int) -> tuple[float, float]:
        """Return epsilon scaling's (b, k), (1, 0) for a model without it."""
        return self.scaling[sampler].at(steps) if self.scaling else (1.0, 0.0)

    def overridden(self, b: float | None, k: float | None) -> Model:
        """Return the model with its scaling constants replaced, at every step count."""
        return replace(self, scaling={sampler: old.overridden(b, k) for sampler, old in self.scaling.items()})

    def guided(self, guidance: Guidance) -> Model:
        """Return the model under a classifier's guidance.

        Raises:
            ConfigError: the network takes no class labels.
        """
        if self.description.classes is None:
            raise ConfigError(f"model {self.name!r} takes no class labels, so --classifier cannot guide it")
        return replace(self, guidance=guidance)
