"""Where the parts of a diffusers model are: in a local folder, or in the hub's cache on this computer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.runtime.errors import CheckpointError

_CONFIG, _SCHEDULER, _INDEX = "config.json", "scheduler_config.json", "model_index.json"
_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
_LARGEST_JSON = 2**20
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# All that is ever downloaded: of a pipeline or of a flat model, and nothing that could be executed.
_PATTERNS = [
    _INDEX, _CONFIG, _SCHEDULER, _WEIGHTS[0], f"unet/{_CONFIG}", f"unet/{_WEIGHTS[0]}", f"scheduler/{_SCHEDULER}",
]  # fmt: skip


@dataclass(frozen=True)
class Parts:
    """Where the parts of a model are: in a pipeline's sub-folders, or flat in one folder."""

    config: Path
    weights: Path
    scheduler: Path
    index: Mapping[str, Any]  # model_index.json, empty where there is none

    @classmethod
    def of(cls, path: Path) -> Parts:
        """Find the parts.

        Raises:
            CheckpointError: no such folder, or a part is missing (the first of them is named).
        """
        if not path.is_dir():
            raise CheckpointError(f"cannot read the model {path}: no such folder; check the path")
        unet, scheduler = (path / name if (path / name).is_dir() else path for name in ("unet", "scheduler"))
        for part in (unet / _CONFIG, scheduler / _SCHEDULER):
            if not part.is_file():
                raise CheckpointError(f"{path} lacks {part.relative_to(path)}; copy it from where the model came from")
        index = path / _INDEX
        entries = read_json(index) if index.is_file() else {}
        return cls(unet / _CONFIG, _weights(unet), scheduler / _SCHEDULER, entries)


def _weights(folder: Path) -> Path:
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    names = sorted(entry.name for entry in folder.iterdir())
    if any(name.endswith(".safetensors.index.json") for name in names):
        raise CheckpointError(f"{folder} holds weights in several files; save them in one (max_shard_size='100GB')")
    if any(name.endswith((".bin", ".pt", ".ckpt")) for name in names):
        raise CheckpointError(
            f"{folder} holds its weights as a pickle, which is not read; save them with safe_serialization=True"
        )
    raise CheckpointError(f"{folder} lacks {_WEIGHTS[0]}; copy it from where the model came from")


def read_json(path: Path) -> dict[str, Any]:
    """Return a table of settings from a file.

    Raises:
        CheckpointError: unreadable, not JSON, not a table, or larger than any configuration.
    """
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise CheckpointError(f"{path} is too large to be a configuration; copy it again")
        content = json.loads(path.read_text())
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):  # not UTF-8 is a ValueError too
        raise CheckpointError(f"{path} is not JSON; copy it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no table of settings; copy it again")
    return content


def is_hub_id(name: str) -> bool:
    """Tell whether a text has the form ``owner/model``."""
    return _ID.fullmatch(name) is not None


def resolve_hub(name: str) -> Path:
    """Return the folder of a model: a path as it is, or where the hub's cache keeps an id like ``owner/model``.

    What the cache lacks is downloaded, JSON and safetensors only.

    Raises:
        CheckpointError: neither a folder nor an id, or files are missing and cannot be downloaded; they are named.
    """
    path = Path(name)
    if name and path.exists():
        return path
    if not is_hub_id(name):
        raise CheckpointError(f"cannot read the model {name!r}: no such folder, nor a hub id such as owner/model")
    from huggingface_hub import snapshot_download  # slow to import: only whoever names an id pays

    reached = False
    for only_local in (True, False):
        try:
            path = Path(snapshot_download(name, allow_patterns=_PATTERNS, local_files_only=only_local))
        except Exception:  # by cause: errors of its own, of its network client, OSError, ValueError
            continue
        reached = not only_local
        if not _missing(path):
            return path
    cached = path.is_dir()
    lacking = ", ".join(_missing(path if cached else Path(name)))
    why = "it has no such files" if reached else "the hub cannot be reached, or does not know it"
    place = f"put them into {path}" if cached else f"get them from https://huggingface.co/{name} and give their folder"
    raise CheckpointError(f"model {name} lacks {lacking} ({why}); {place}")


def _missing(folder: Path) -> list[str]:
    """Name the files that a folder lacks, those of a flat model unless it is a pipeline's."""
    unet, scheduler = (f"{name}/" if (folder / name).is_dir() else "" for name in ("unet", "scheduler"))
    needed = {f"{unet}{_CONFIG}": (_CONFIG,), f"{unet}{_WEIGHTS[0]}": _WEIGHTS}
    lacking = [shown for shown, names in needed.items() if not any((folder / unet / name).is_file() for name in names)]
    return lacking + ([] if (folder / scheduler / _SCHEDULER).is_file() else [f"{scheduler}{_SCHEDULER}"])
