"""Corrections: training-free interventions on a walk, four hooks each the identity by default."""

from bench.diffusion.corrections.epsilon_scaling import EpsilonScaling, FirstCallScaling, X0Scaling
from bench.diffusion.corrections.identity import Identity, InOrder

__all__ = ["EpsilonScaling", "FirstCallScaling", "Identity", "InOrder", "X0Scaling"]
