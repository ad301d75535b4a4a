"""Instruments and metrics."""

from bench.measure.quality.frechet import frechet_distance

__all__ = ["frechet_distance"]
