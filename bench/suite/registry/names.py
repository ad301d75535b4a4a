"""Names of models: which there are, and what each is made of; nothing is read but the config file's entries.

This file imports nothing slow, so that a wrong name is answered before torch is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.suite.registry.embedded_models import EMBEDDED, member_of, trainings
from bench.suite.registry.remedies import SUFFIXES
from bench.suite.settings import ConfigError, nearest


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
