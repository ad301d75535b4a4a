"""Instruments and metrics."""

from bench.measure.frechet import frechet_distance

__all__ = ["frechet_distance"]
