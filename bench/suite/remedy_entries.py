"""Remedies as entries of a config file: ``corrections = [{ kind = "dcw", low = 0.01 }, ...]``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.suite.registry.constants import Constants
from bench.suite.registry.remedies import KINDS, Remedy
from bench.suite.settings import SAMPLERS, ConfigError, nearest

__all__ = ["read_remedy"]

_LARGEST = 1e12  # no constant is near it, and squares of it are still finite


def read_remedy(name: str, entry: Mapping[str, Any]) -> Remedy:
    """Read one entry of ``corrections`` in a config file: ``kind``, its constants, and perhaps what they are for.

    With ``steps``, a list of step counts, a constant may be a list of as many numbers. With ``sampler`` the constants
    are those of that sampler alone.

    Raises:
        ConfigError: no kind, an unknown one, or a constant it does not have or cannot have.
    """
    kind = entry.get("kind")
    if not isinstance(kind, str):
        raise ConfigError(f"a correction of model {name!r} in the config file needs 'kind'; known: {', '.join(KINDS)}")
    if kind not in KINDS:
        raise nearest("correction", kind, KINDS)
    steps, samplers = _steps(name, entry), _samplers(name, entry)
    rows: dict[str, tuple[float, ...]] = {}
    fixed: dict[str, Any] = {}
    for key, value in entry.items():
        if key in ("kind", "steps", "sampler"):
            continue
        known = [*KINDS[kind].defaults, *(["span"] if "b" in KINDS[kind].defaults else [])]
        if key not in known:
            raise nearest(f"constant of {kind}", key, known)
        if steps and isinstance(value, list) and len(value) == len(steps) and all(map(_is_number, value)):
            rows[key] = tuple(map(float, value))
        elif _is_constant(key, value):
            fixed[key] = value if isinstance(value, list) else float(value)  # 1 and 1.0 are one cell
        else:
            what = "a list of pairs [t, std]" if key == "reference" else "a finite number, or one for each of 'steps'"
            raise ConfigError(f"{key!r} of correction {kind!r} of model {name!r} must be {what}, not {value!r}")
    return Remedy(kind, dict.fromkeys(samplers, Constants(steps if rows else (), rows, fixed)))


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
