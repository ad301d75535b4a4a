"""Names of models: which there are, and what each is made of; nothing is read but the config file's entries.

The embedded family are models trained here, whose weights the package brings.

This file imports nothing slow, so that a wrong name is answered before torch is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.suite.registry.remedies import SUFFIXES
from bench.suite.settings import ConfigError, nearest

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


@dataclass(frozen=True)
class Names:
    """The names that a run may give its models.

    Attributes:
        dataset: whose embedded trainings there are.
        entries: the config files' models.
    """

    dataset: str
    entries: Mapping[str, Mapping[str, Any]]

    def names(self) -> list[str]:
        """Return the names of models without remedies, the embedded family first; see SUFFIXES for the others."""
        return [*EMBEDDED, *(name for name in self.entries if name not in EMBEDDED)]

    def check(self, name: str) -> None:
        """Refuse a name that no model has without a path of its own.

        Raises:
            ConfigError: it names neither a model nor one with remedies, or a training that is not embedded.
        """
        name = self.training_name(name, True)
        while name not in self.entries and not member_of(name):
            split = self.split(name)
            if split is None:
                raise self.unknown(name)
            name = split[0]

    def unknown(self, name: str) -> ConfigError:
        """Return the error of a name that no model has."""
        known = [*self.names(), *(f"{base}-{s}" for base in self.names() for s in SUFFIXES)]
        return nearest(
            "model", name, known, f"weights of your own are {name}=PATH; --list-models prints the known names"
        )

    def training_name(self, name: str, check: bool) -> str:
        """Return a name as results have it: ``adm@2-es`` is ``adm-t2-es``; ``check`` that its weights are there."""
        if "@" not in name:
            return name
        member, _, rest = name.partition("@")
        number, dash, remedies = rest.partition("-")
        if member not in EMBEDDED or member in self.entries:
            raise ConfigError(
                f"unknown model {name!r}; only the embedded family has trainings ({', '.join(EMBEDDED)}), named before"
                " a remedy, as in adm@2-es"
            )
        numbers = trainings(self.dataset, member)
        if number not in map(str, numbers) and (check or not number.isdecimal()):
            names = ", ".join([member, *(f"{member}@{training}" for training in numbers)])
            raise ConfigError(f"unknown training {member}@{number} for dataset {self.dataset!r}; known: {names}")
        return f"{member}-t{number}{dash}{remedies}"

    def split(self, name: str) -> tuple[str, str] | None:
        """Return (model, suffix) of a name that ends in a remedy's suffix, None where it does not."""
        for suffix in sorted(SUFFIXES, key=len, reverse=True):
            base = name.removesuffix(f"-{suffix}")
            if base != name and (base in self.entries or member_of(base) or self.split(base)):
                return base, suffix
        return None
