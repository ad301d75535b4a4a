"""Solvers: the update of a state from one level to the next, given a prediction."""

from bench.diffusion.solvers.ancestral import DDIM, VARIANCES, Ancestral, PosteriorMean
from bench.diffusion.solvers.base import Solver
from bench.diffusion.solvers.euler import Churn, Euler, FlowSDE, Heun
from bench.diffusion.solvers.multistep import DPMSolverPP2M, UniPC

__all__ = [
    "DDIM", "VARIANCES", "Ancestral", "Churn", "DPMSolverPP2M", "Euler", "FlowSDE", "Heun", "PosteriorMean", "Solver",
    "UniPC",
]  # fmt: skip
