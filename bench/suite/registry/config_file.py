"""The TOML file of ``--config``: its keys and types are checked here, its meaning in the registry."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.files.paths import with_home
from bench.runtime.errors import reason
from bench.suite.registry.constants import Constants
from bench.suite.registry.remedies import VARIANTS, Remedy
from bench.suite.settings import SAMPLERS, ConfigError, check_name, nearest

_MOST_BYTES = 2**18
_LARGEST = 1e12  # no constant is near it, and squares of it are still finite
_MOST_DOTS = 100  # in a line: tomllib takes time and memory by the square of a dotted key's length
Tables = Mapping[str, Mapping[str, Any]]

_WHOLE, _TEXT, _TABLE, _SWITCH = "a whole number", "a text", "a table", "true or false"
_TABLES, _NUMBER, _PAIR = "a list of tables", "a number", "a list of two numbers"
_TYPES: Mapping[str, tuple[type, ...]] = {
    _WHOLE: (int,), _TEXT: (str,), _TABLE: (dict,), _SWITCH: (bool,), _TABLES: (list,),
    _NUMBER: (int, float), _PAIR: (list,),
}  # fmt: skip
_MODEL_KEYS = {
    "weights": _TEXT, "base": _TEXT, "preset": _TEXT,
    "corrections": _TABLES,
    "network": _TABLE, "schedule": _TEXT, "alphas_cumprod": _TEXT, "T": _WHOLE,
    "adapter": _TEXT, "prediction": _TEXT, "in_channels": _WHOLE, "image_size": _WHOLE, "num_classes": _WHOLE,
    "learn_sigma": _SWITCH, "rescale_timesteps": _SWITCH,
    "latents": _TEXT, "embeddings": _TEXT, "vae": _TEXT,
    "guidance": _NUMBER, "guidance_interval": _PAIR, "null_class": _WHOLE,
}  # fmt: skip
_DATASET_KEYS = {"path": _TEXT, "heldout_every": _WHOLE, "resize": _WHOLE, "crop": _TEXT, "resize_filter": _TEXT}
_SECTIONS = {"models": _MODEL_KEYS, "datasets": _DATASET_KEYS}


@dataclass(frozen=True)
class Entries:
    """What the config files add: models, datasets with the ``folder`` of their file, and that of each model's file."""

    models: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    datasets: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)


def read_config_files(paths: Iterable[Path]) -> Entries:
    """Read config files, each of which adds to those before.

    Raises:
        ConfigError: a file is missing or wrong, or two files name one model or dataset.
    """
    entries = Entries()
    for path in paths:
        models, datasets = read_config_file(path)
        for kind, old, new in (("model", entries.models, models), ("dataset", entries.datasets, datasets)):
            if twice := [name for name in new if name in old]:
                raise ConfigError(f"{kind} {twice[0]!r} is in two config files; rename it in {path}")
            old.update(new)
        entries.datasets.update({name: {**entry, "folder": str(path.parent)} for name, entry in datasets.items()})
        entries.folders.update(dict.fromkeys(models, path.parent))
    return entries


def read_config_file(path: Path) -> tuple[Tables, Tables]:
    """Return the tables ``models`` and ``datasets``.

    Raises:
        ConfigError: the file is missing, is not TOML, or holds an unknown key or a value of another type.
    """
    document = _read_toml(path)
    _check_keys("section", document, _SECTIONS)
    for section, keys in _SECTIONS.items():
        _check_table(section, document.get(section, {}))
        for name, entry in document.get(section, {}).items():
            check_name(name, f"[{section}] of the config file")
            _check_table(f"{section}.{name}", entry)
            _check_keys(f"key of {section}.{name}", entry, keys)
            _check_types(f"{section}.{name}", entry, keys)
    for name, entry in document.get("datasets", {}).items():
        if "path" not in entry:
            raise ConfigError(f"datasets.{name} in {path} needs 'path'")
        every = entry.get("heldout_every", 0)
        if every < 0 or every == 1:
            raise ConfigError(f"heldout_every of datasets.{name} must be 0 (none) or at least 2, not {every}")
    models, datasets = (
        {name: with_home(entry) for name, entry in document.get(section, {}).items()} for section in _SECTIONS
    )
    return models, datasets


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read --config {path}: {error.strerror}") from None
    if len(content) > _MOST_BYTES:
        raise ConfigError(
            f"--config {path} has more than {_MOST_BYTES} bytes, too many for a configuration; check the path"
        )
    try:
        if max(line.count(b".") for line in content.split(b"\n")) > _MOST_DOTS:
            raise ValueError(f"a line with more than {_MOST_DOTS} dots")
        return tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, or nested without end
        raise ConfigError(f"--config {path} is not valid TOML: {reason(error)}") from None


def _check_table(name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise ConfigError(f"[{name}] in the config file must be a table")


def _check_types(name: str, table: Mapping[str, Any], kinds: Mapping[str, str]) -> None:
    for key, value in table.items():
        if not isinstance(value, _TYPES[kinds[key]]) or (isinstance(value, bool) and kinds[key] != _SWITCH):
            raise ConfigError(f"{key!r} of [{name}] in the config file must be {kinds[key]}, not {value!r}")


def _check_keys(kind: str, table: Mapping[str, Any], keys: Iterable[str]) -> None:
    for key in table:
        if key not in keys:
            raise nearest(kind, key, keys)


def read_remedies(name: str, entries: Sequence[Any]) -> list[Remedy]:
    """Read the ``corrections`` of a model's entry in a config file.

    An entry has a ``kind``, perhaps a ``variant`` of it, and constants. With ``steps``, a list of step counts, a
    constant may be a list of as many numbers. With ``sampler`` the constants are those of that sampler alone.

    Args:
        name: of the model.
        entries: the tables, in the order in which the corrections act.

    Raises:
        ConfigError: no kind, an unknown one, or a constant it does not have or cannot have.
    """
    if not all(isinstance(entry, Mapping) for entry in entries):
        raise ConfigError(f"'corrections' of model {name!r} in the config file must be a list of tables")
    return [_read_remedy(name, entry) for entry in entries]


def _read_remedy(name: str, entry: Mapping[str, Any]) -> Remedy:
    kind = _read_kind(name, entry)
    steps, samplers = _steps(name, entry), _samplers(name, entry)
    remedy = Remedy(kind)
    names = [*remedy.defaults, *(["span"] if remedy.has_span else [])]
    values: dict[str, tuple[float, ...]] = {}
    fixed: dict[str, Any] = {}
    for key, value in entry.items():
        if key in ("kind", "variant", "steps", "sampler"):
            continue
        if key not in names:
            raise nearest(f"constant of {kind}", key, names)
        if steps and isinstance(value, list) and len(value) == len(steps) and all(map(_is_number, value)):
            values[key] = tuple(map(float, value))
        elif _is_constant(key, value):
            fixed[key] = value if isinstance(value, list) else float(value)  # 1 and 1.0 are one cell
        else:
            what = "a list of pairs [t, std]" if key == "reference" else "a finite number, or one for each of 'steps'"
            raise ConfigError(f"{key!r} of correction {kind!r} of model {name!r} must be {what}, not {value!r}")
    return Remedy(kind, dict.fromkeys(samplers, Constants(steps if values else (), values, fixed)))


def _read_kind(name: str, entry: Mapping[str, Any]) -> str:
    """Return the name of an entry's kind and variant in :data:`KINDS`."""
    kind, variant = entry.get("kind"), entry.get("variant")
    if not isinstance(kind, str):
        kinds = ", ".join(VARIANTS)
        raise ConfigError(f"a correction of model {name!r} in the config file needs 'kind'; known: {kinds}")
    if kind not in VARIANTS:
        raise nearest("correction", kind, VARIANTS)
    if variant is None:
        return kind
    if variant not in VARIANTS[kind]:
        raise nearest(f"variant of {kind}", str(variant), VARIANTS[kind])
    return f"{kind}-{variant}"


def _steps(name: str, entry: Mapping[str, Any]) -> tuple[int, ...]:
    steps = entry.get("steps", [])
    whole = isinstance(steps, list) and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in steps)
    if not whole or steps != sorted(set(steps)):
        raise ConfigError(f"'steps' of a correction of model {name!r} must be a list of ascending step counts")
    return tuple(steps)


def _samplers(name: str, entry: Mapping[str, Any]) -> tuple[str, ...]:
    sampler = entry.get("sampler")
    if sampler is not None and sampler not in SAMPLERS:
        raise ConfigError(f"'sampler' of a correction of model {name!r} must be one of {', '.join(SAMPLERS)}")
    return SAMPLERS if sampler is None else (str(sampler),)


def _is_constant(key: str, value: Any) -> bool:
    if key == "reference":
        return isinstance(value, list) and all(
            isinstance(pair, list) and len(pair) == 2 and all(map(_is_number, pair)) for pair in value
        )
    return _is_number(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST
