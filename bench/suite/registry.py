"""The models a run can name: the embedded family, entries of a TOML file, and weights given on the command line."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.data import DATASETS, Dataset, load, load_path
from bench.models.checkpoints import Description, file_hash, read_description
from bench.models.recipes import DIGITS_NETWORK
from bench.suite.config import ConfigError, nearest, positive

__all__ = ["EMBEDDED", "Model", "Registry", "Scaling", "load_registry"]

WEIGHTS = Path(__file__).parent.parent / "models" / "weights"
_CONSTANTS = Path(__file__).parent / "scaling.toml"
_TRAINED = ("adm", "adm-ip", "ddpm-y", "adm-gp", "adm-wd")
_SAMPLERS = ("ddpm", "ddim")
_SCALED = {"adm-es": "adm", "adm-es-linear": "adm", "ddpm-y-es": "ddpm-y"}
EMBEDDED: Mapping[str, str] = {
    "adm": "the baseline: DDPM objective, ADM network",
    "adm-ip": "input perturbation, gamma 0.1 (Ning et al. 2023)",
    "ddpm-y": "DDPM on the perturbed input, eps' as its target (ibid., Table 7)",
    "adm-gp": "baseline with a gradient penalty",
    "adm-wd": "baseline with decoupled weight decay",
    "adm-es": "adm with uniform epsilon scaling (Ning et al. 2024)",
    "adm-es-linear": "adm with linear epsilon scaling, the paper's ADM-ES*",
    "ddpm-y-es": "ddpm-y with eps divided by sqrt(1 + gamma^2), in theory equal to adm-ip",
}
_NUMBER, _WHOLE, _TEXT, _TABLE = "a number", "a whole number", "a text", "a table"
_TYPES: Mapping[str, tuple[type, ...]] = {_NUMBER: (int, float), _WHOLE: (int,), _TEXT: (str,), _TABLE: (dict,)}
_MODEL_KEYS = {
    "weights": _TEXT, "base": _TEXT, "eps_scale": _NUMBER, "eps_slope": _NUMBER,
    "network": _TABLE, "schedule": _TEXT, "T": _WHOLE,
}  # fmt: skip
_DATASET_KEYS = {"path": _TEXT, "heldout_every": _WHOLE}


@dataclass(frozen=True)
class Scaling:
    """Epsilon-scaling constants of a model and sampler: knots over step counts.

    ``b`` is the divisor at the least noisy step; ``span`` is k * (steps - 1), the rise to the noisiest one. Both are
    interpolated linearly in log steps and held constant outside the knots. ``slope`` is a k the user fixed. Without
    knots nothing was tuned.
    """

    steps: tuple[int, ...] = ()
    b: tuple[float, ...] = ()
    span: tuple[float, ...] = ()
    slope: float | None = None

    def at(self, steps: int) -> tuple[float, float]:
        """Return (b, k) for a step count."""
        x = math.log(steps)
        knots = [math.log(s) for s in self.steps]
        b, span = (_interpolate(x, knots, values) for values in (self.b, self.span))
        if self.slope is not None:
            return b, self.slope
        return b, span / (steps - 1) if steps > 1 else 0.0

    def overridden(self, b: float | None, k: float | None) -> Scaling:
        """Return the scaling with constants of the user's at every step count; None keeps a constant."""
        fixed = self if b is None else Scaling((1,), (b,), self.span[:1] or (0.0,), self.slope)
        if b is not None and self.steps:  # the tuned rise stays, whatever b is
            fixed = replace(self, b=(b,) * len(self.b))
        return fixed if k is None else replace(fixed, slope=k)


def _interpolate(x: float, knots: list[float], values: tuple[float, ...]) -> float:
    if x <= knots[0]:
        return values[0]
    for left, right, low, high in zip(knots, knots[1:], values, values[1:], strict=False):
        if x <= right:
            return low + (high - low) * (x - left) / (right - left)
    return values[-1]


@dataclass(frozen=True)
class Model:
    """A named model: a weights file, what is in it, and its epsilon scaling by sampler, if it has one."""

    name: str
    weights: Path
    description: Description
    scaling: Mapping[str, Scaling] = field(default_factory=dict)

    @property
    def learns_variance(self) -> bool:
        """Tell whether the network predicts a variance beside eps."""
        network = self.description.network
        channels = network.get("in_channels", 3)
        return bool(network.get("learn_sigma")) or network.get("out_channels") == 2 * channels

    def weights_hash(self) -> str:
        """Return the sha256 of the weights file."""
        return file_hash(self.weights)

    def scale_at(self, sampler: str, steps: int) -> tuple[float, float]:
        """Return epsilon scaling's (b, k), (1, 0) for a model without it."""
        return self.scaling[sampler].at(steps) if self.scaling else (1.0, 0.0)

    def overridden(self, b: float | None, k: float | None) -> Model:
        """Return the model with its scaling constants replaced, at every step count."""
        return replace(self, scaling={sampler: old.overridden(b, k) for sampler, old in self.scaling.items()})


@dataclass(frozen=True)
class Registry:
    """Every model and dataset a run may name."""

    dataset: str
    entries: Mapping[str, Mapping[str, Any]]
    datasets: Mapping[str, Mapping[str, Any]]

    def names(self) -> list[str]:
        """Return the known model names, the embedded family first."""
        return [*EMBEDDED, *(name for name in self.entries if name not in EMBEDDED)]

    def model(self, name: str, path: Path | None = None) -> Model:
        """Look a model up, with ``path`` in place of its own weights if given.

        Raises:
            ConfigError: unknown name, or nothing to load it from.
            CheckpointError: the weights file cannot be described.
        """
        entry = self.entries.get(name)
        if entry is not None:
            return self._configured(name, entry, path)
        if name not in EMBEDDED:
            if path is not None and (own := read_description(path)) is not None:
                return Model(name, path, own)  # a file that describes itself needs no entry
            raise nearest("model", name, self.names())
        base = _SCALED.get(name, name)
        embedded = WEIGHTS / self.dataset / f"{base}.safetensors"
        weights = path or embedded
        if path is None and not embedded.exists():
            raise ConfigError(f"no embedded weights of {name!r} for dataset {self.dataset!r}; give {name}=PATH")
        description = _describe(weights, None)
        tuned = path is None or (embedded.exists() and file_hash(embedded) == file_hash(weights))
        return Model(name, weights, description, self._scaling(name, description, tuned))

    def _scaling(self, name: str, description: Description, tuned: bool) -> Mapping[str, Scaling]:
        """Return a scaling model's constants by sampler; other weights than the tuned ones have none."""
        if name not in _SCALED:
            return {}
        gamma = float(description.training.get("gamma", 0.0))
        if name == "ddpm-y-es" and gamma:
            return dict.fromkeys(_SAMPLERS, Scaling((1,), (math.sqrt(1 + gamma**2),), (0.0,)))
        known = tomllib.loads(_CONSTANTS.read_text()).get(self.dataset, {}).get(name, {}) if tuned else {}
        rows = {
            sampler: Scaling(tuple(row["steps"]), tuple(row["b"]), tuple(row["span"])) for sampler, row in known.items()
        }
        return dict.fromkeys(_SAMPLERS, Scaling()) | rows

    def _configured(self, name: str, entry: Mapping[str, Any], path: Path | None) -> Model:
        if "base" in entry:
            ignored = [key for key in ("weights", "network", "schedule", "T") if key in entry]
            if ignored:
                raise ConfigError(f"model {name!r} has both 'base' and {ignored[0]!r} in the config file; keep one")
            self._refuse_circle(name)
            base = self.model(str(entry["base"]), path)
            model = replace(base, name=name)
        else:
            weights = path or Path(str(entry.get("weights", "")))
            if not str(entry.get("weights", "")) and path is None:
                raise ConfigError(f"model {name!r} needs 'weights' or 'base' in the config file")
            model = Model(name, weights, _describe(weights, entry))
        if "eps_scale" in entry or "eps_slope" in entry:
            b, k = float(entry.get("eps_scale", 1.0)), float(entry.get("eps_slope", 0.0))
            positive(f"eps_scale of model {name!r}", b)
            model = replace(model, scaling=dict.fromkeys(_SAMPLERS, Scaling((1,), (b,), (0.0,), slope=k)))
        return model

    def _refuse_circle(self, name: str) -> None:
        seen, here = [name], self.entries[name]
        while (base := here.get("base")) in self.entries:
            if base in seen:
                raise ConfigError(f"model {name!r} is based on itself ({' -> '.join([*seen, str(base)])})")
            seen.append(str(base))
            here = self.entries[str(base)]

    def load_dataset(self, data_dir: Path | None) -> Dataset:
        """Load the run's dataset."""
        entry = self.datasets.get(self.dataset)
        if entry is None:
            return load(self.dataset)
        path = Path(str(entry["path"]))
        full = path if data_dir is None or path.is_absolute() else data_dir / path
        data = load_path(self.dataset, full, int(entry.get("heldout_every", 0)))
        if len(data.part("train")) < 2:
            raise ConfigError(f"dataset {self.dataset!r} has fewer than 2 training images in {full}")
        return data


def _describe(weights: Path, entry: Mapping[str, Any] | None) -> Description:
    """Describe a weights file from its own header, from a TOML entry, or as the embedded digits network."""
    own = read_description(weights)
    if own is not None:
        told = [key for key in ("network", "schedule", "T") if key in (entry or {})]
        if told:
            raise ConfigError(f"{weights} describes itself; drop {told[0]!r} from its entry in the config file")
        return own
    file_hash(weights)  # a missing file is the first thing to report
    entry = entry or {}
    network = entry.get("network", DIGITS_NETWORK)
    if not isinstance(network, Mapping):
        raise ConfigError("'network' in the config file must be a table of U-Net arguments")
    return Description(dict(network), str(entry.get("schedule", "cosine")), int(entry.get("T", 1000)))


def load_registry(config: Path | None, dataset: str) -> Registry:
    """Read the TOML file, if any, and return the registry of a dataset.

    Raises:
        ConfigError: the file is missing, is not TOML, or holds an unknown key; or the dataset is unknown.
    """
    document = _read_toml(config) if config else {}
    _check_keys("section", document, ("models", "datasets"))
    for section, keys in (("models", _MODEL_KEYS), ("datasets", _DATASET_KEYS)):
        _check_table(section, document.get(section, {}))
        for name, entry in document.get(section, {}).items():
            _check_name(section, name)
            _check_table(f"{section}.{name}", entry)
            _check_keys(f"key of {section}.{name}", entry, keys)
            _check_types(f"{section}.{name}", entry, keys)
    for name, entry in document.get("datasets", {}).items():
        if name in DATASETS:
            raise ConfigError(f"datasets.{name} in {config} has the name of an embedded dataset; choose another")
        if "path" not in entry:
            raise ConfigError(f"datasets.{name} in {config} needs 'path'")
        every = entry.get("heldout_every", 0)
        if every < 0 or every == 1:
            raise ConfigError(f"heldout_every of datasets.{name} must be 0 (none) or at least 2, not {every}")
    datasets = document.get("datasets", {})
    if dataset not in datasets and dataset not in DATASETS:
        raise nearest("dataset", dataset, [*DATASETS, *datasets])
    return Registry(dataset, document.get("models", {}), datasets)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read --config {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path} is not valid TOML: {error}") from None


def _check_table(name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise ConfigError(f"[{name}] in the config file must be a table")


def _check_name(section: str, name: str) -> None:
    """Refuse names that cannot be a folder's, since results are filed under them."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        raise ConfigError(f"{name!r} in [{section}] of the config file is no name; use letters, digits, '.', '_', '-'")


def _check_types(name: str, table: Mapping[str, Any], kinds: Mapping[str, str]) -> None:
    for key, value in table.items():
        if not isinstance(value, _TYPES[kinds[key]]) or isinstance(value, bool):
            raise ConfigError(f"{key!r} of [{name}] in the config file must be {kinds[key]}, not {value!r}")


def _check_keys(kind: str, table: Mapping[str, Any], known: Iterable[str]) -> None:
    for key in table:
        if key not in known:
            raise nearest(kind, key, known)
