"""Corrections: training-free interventions on a walk, four hooks each the identity by default."""

from bench.diffusion.corrections.base import Correction, InOrder
from bench.diffusion.corrections.epsilon_scaling import EpsilonScaling, FirstCallScaling, VelocityScaling, X0Scaling
from bench.diffusion.corrections.input_perturbation import InputPerturbation
from bench.diffusion.corrections.noise_scaling import NoiseScaling
from bench.diffusion.corrections.temporal_rescaling import TemporalRescaling
from bench.diffusion.corrections.time_shift import ShiftedTarget, TimeShift
from bench.diffusion.corrections.told_time import NoiseAwareness, SigmaLying
from bench.diffusion.corrections.variance_matching import FinalStd, VarianceNormalisation, X0StdMatching, x0_std
from bench.diffusion.corrections.wavelet import (
    DifferentialCorrection,
    PiecewiseCorrection,
    PixelCorrection,
    ReverseStdCorrection,
)

__all__ = [
    "Correction", "DifferentialCorrection", "EpsilonScaling", "FinalStd", "FirstCallScaling", "InOrder",
    "InputPerturbation", "NoiseAwareness", "NoiseScaling", "PiecewiseCorrection", "PixelCorrection",
    "ReverseStdCorrection", "ShiftedTarget", "SigmaLying", "TemporalRescaling", "TimeShift", "VarianceNormalisation",
    "VelocityScaling", "X0Scaling", "X0StdMatching", "x0_std",
]  # fmt: skip
