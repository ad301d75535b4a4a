"""The embedded classifiers as torch-fidelity extractors."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch_fidelity import register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from bench.measure.features.classifier import load_classifier

__all__ = ["CifarFeatures", "ClassifierFeatures", "DigitsFeatures"]


class ClassifierFeatures(FeatureExtractorBase):  # type: ignore[misc]  # torch-fidelity is not annotated
    """An embedded classifier's pooled features and its ``spatial`` map, flattened in height, width, channel order."""

    dataset: ClassVar[str]
    pooled: ClassVar[str]

    def __init__(self, name: str, features_list: list[str], **settings: Any) -> None:
        """Load the embedded weights; torch-fidelity passes settings of every metric, which do not concern us."""
        super().__init__(name, features_list)
        self.network = load_classifier(self.dataset)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the requested layers of uint8 images [B, 3, H, W]."""
        pooled, spatial = self.network.features(images)
        layers = {self.pooled: pooled, "spatial": spatial}
        return tuple(layers[name] for name in self.features_list)

    def logits(self, pooled: Tensor) -> Tensor:
        """Return the classes' logits [B, 10] of pooled features [B, d], both on the host."""
        device = next(self.network.parameters()).device
        found: Tensor = self.network.head(pooled.to(device))
        return found.cpu()

    @classmethod
    def get_provided_features_list(cls) -> tuple[str, ...]:
        """Name the layers."""
        return (cls.pooled, "spatial")

    @classmethod
    def get_default_feature_layer_for_metric(cls, metric: str) -> str:
        """Use pooled features for every metric of torch-fidelity's own."""
        return cls.pooled

    @staticmethod
    def can_be_compiled() -> bool:
        """Leave compilation off: the network is too small to repay it."""
        return False


class DigitsFeatures(ClassifierFeatures):
    """Layers ``64`` (pooled) and ``spatial`` (4x4x7) of 8x8 images."""

    dataset, pooled = "digits", "64"


class CifarFeatures(ClassifierFeatures):
    """Layers ``128`` (pooled) and ``spatial`` (8x8x7) of 32x32 images."""

    dataset, pooled = "cifar10", "128"


register_feature_extractor("exposure-bias-digits", DigitsFeatures)
register_feature_extractor("exposure-bias-cifar10", CifarFeatures)
