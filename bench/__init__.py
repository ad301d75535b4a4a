"""Exposure bias in diffusion models: instrumented samplers, remedies and quality-versus-steps tables."""

__version__ = "0.1.0"
