"""Tests of normality."""

from analysis.normality.shapiro import shapiro_wilk

__all__ = ["shapiro_wilk"]
