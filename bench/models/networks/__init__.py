"""Network architectures and the keys of their published files."""

from bench.models.networks.adm import adm_unet, load_guided_diffusion

__all__ = ["adm_unet", "load_guided_diffusion"]
