"""The embedded family: models trained here, whose weights the package brings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

WEIGHTS = Path(__file__).parents[2] / "models" / "weights"
EMBEDDED: Mapping[str, str] = {
    "adm": "the baseline: DDPM objective, ADM network",
    "adm-ip": "input perturbation, gamma 0.1 (Ning et al. 2023)",
    "adm-ip-t": "input perturbation whose gamma rises with t, to 0.1",
    "ddpm-y": "DDPM on the perturbed input, eps' as its target (ibid., Table 7)",
    "adm-gp": "baseline with a gradient penalty",
    "adm-wd": "baseline with decoupled weight decay",
    "adm-mdss": "multi-step scheduled sampling: trained on its own denoised states too (after Ren et al. 2024)",
    "adm-dream": "input and target moved by the model's own error (DREAM, Zhou et al. 2024)",
    "adm-cond": "baseline with class labels, a tenth of them dropped: for --guidance (Ho & Salimans 2022)",
    "adm-null-time": "baseline with a tenth of its times dropped: for -nag (Zhong et al. 2026)",
    "edm": "EDM's preconditioning and loss (Karras et al. 2022), for --sampler heun or euler",
    "flow": "a rectified flow: the velocity noise - x0 (Liu et al. 2023), for --sampler heun, euler or sde",
}


def weights_file(dataset: str, name: str) -> Path:
    """Return where the package keeps a model's weights, if it does."""
    return WEIGHTS / dataset / f"{name}.safetensors"


def trainings(dataset: str, member: str) -> list[int]:
    """Return the further trainings of a member of the family, 2 upwards; its own name is the first."""
    numbers = (path.stem.removeprefix(f"{member}-t") for path in (WEIGHTS / dataset).glob(f"{member}-t*.safetensors"))
    return sorted(int(number) for number in numbers if number.isdecimal())


def member_of(name: str) -> str | None:
    """Return the member of the embedded family that a plain name is, or is a training of (``adm-t2``)."""
    if name in EMBEDDED:
        return name
    member, _, number = name.rpartition("-t")
    return member if member in EMBEDDED and number.isdecimal() else None
