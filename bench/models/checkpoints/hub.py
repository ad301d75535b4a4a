"""Where the parts of a diffusers model are: in a local folder, or in the hub's cache on this computer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.runtime.distributed import note
from bench.runtime.errors import CheckpointError, quoted

_CONFIG, _SCHEDULER, _INDEX = "config.json", "scheduler_config.json", "model_index.json"
_STEM = "diffusion_pytorch_model"
_WEIGHTS = (f"{_STEM}.safetensors", f"{_STEM}.fp16.safetensors")
_NETWORKS = ("unet_ema", "unet", "transformer")  # folders of a network, the moving average first
_FILES = (".pt", ".pth", ".ckpt", ".pkl", ".safetensors")
_LARGEST_JSON = 2**20
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_ADDRESS = re.compile(r"(?:(\w\w+):/+)?(?:www\.)?(.*)", re.DOTALL)  # pathlib makes one slash of two
_PAGE = re.compile(
    r"(?:huggingface\.co|hf\.co)(?:/+(?!datasets/|spaces/)([\w.-]+/[\w.-]+?)(?:\.git)?(?![\w.-]))?"
    r"(?:/+(?:tree|blob|resolve)/+([\w.-]+)(?:/+([^?#]*))?)?(?:[/?#].*)?",
    re.IGNORECASE,
)
# All that is ever downloaded: of a pipeline or of a flat model, and nothing that could be executed.
_PATTERNS = [
    _INDEX, _CONFIG, _SCHEDULER, _WEIGHTS[0], f"unet/{_CONFIG}", f"unet/{_WEIGHTS[0]}", f"transformer/{_CONFIG}",
    f"transformer/{_WEIGHTS[0]}", f"scheduler/{_SCHEDULER}",
]  # fmt: skip


def is_inside(path: Path) -> bool:
    """Tell whether a file is a part of a diffusers model, by its name and what lies beside it."""
    is_weights = path.name.startswith(_STEM) and (path.parent / _CONFIG).is_file()
    return path.is_file() and (path.name in (_INDEX, _SCHEDULER, _CONFIG) or is_weights)


@dataclass(frozen=True)
class Parts:
    """Where the parts of a model are: in a pipeline's sub-folders, or flat in one folder."""

    config: Path
    weights: Path
    scheduler: Path
    index: Mapping[str, Any]  # model_index.json, empty where there is none

    @classmethod
    def alone(cls, folder: Path) -> Parts:
        """Find the parts of a network without a scheduler of its own, which stands for it.

        Raises:
            CheckpointError: no such folder, or a part is missing.
        """
        if not (folder / _CONFIG).is_file():
            raise CheckpointError(f"{folder} is no folder with a {_CONFIG}; check the path")
        return cls(folder / _CONFIG, _weights(folder), folder / _CONFIG, {})

    @classmethod
    def of(cls, path: Path) -> Parts:
        """Find the parts of a folder, of the pipeline around a network's folder, or around one of their files.

        Where there is a choice, a note says what was taken.

        Raises:
            CheckpointError: no such folder, or a part is missing (the first of them is named).
        """
        folder = path.parent if is_inside(path) else path
        if not folder.is_dir():
            raise CheckpointError(f"cannot read the model {path}: no such folder; check the path")
        unet = None
        if folder.name in _NETWORKS and not (folder / _SCHEDULER).is_file():
            unet, folder = folder, folder.parent
        elif folder.name == "scheduler":
            folder = folder.parent
        networks = [folder / name for name in _NETWORKS if (folder / name).is_dir()]
        if unet is None and len(networks) > 1:
            note(f"{folder} holds unet_ema/ and unet/: takes the moving average, unet_ema/")
        unet = unet or next(iter(networks), folder)
        if not (unet / _CONFIG).is_file():
            raise CheckpointError(_without_network(folder, unet))
        if "Autoencoder" in (name := str(read_json(unet / _CONFIG).get("_class_name"))):
            raise CheckpointError(f"{unet} is an {name}, which denoises nothing; give the folder of its pipeline")
        index = folder / _INDEX
        entries = read_json(index) if index.is_file() else {}
        scheduler = _scheduler(folder)
        return cls(unet / _CONFIG, _weights(unet), scheduler, entries)


def _without_network(folder: Path, unet: Path) -> str:
    """Return what a folder is without a network's configuration where one is looked for, and what to do."""
    names, source = _names(unet), "copy it from where the model came from"
    is_flat = _SCHEDULER in names or any(name.startswith(_STEM) for name in names)
    index = folder / _INDEX
    if not is_flat and unet == folder and index.is_file():
        entries = read_json(index)
        pipeline = f"{folder} is a {quoted(entries.get('_class_name', 'pipeline'))}"
        if parts := [name for name in _NETWORKS if name in entries]:
            return f"{pipeline} without its {parts[0]}/; {source}"
        return f"{pipeline}, whose network is in neither unet/ nor transformer/; others cannot be used"
    if is_flat or unet != folder or "model.safetensors" in names:
        return _unusable(str(unet), names) or f"{folder} lacks {(unet / _CONFIG).relative_to(folder)}; {source}"
    if files := sorted(name for name in names if name.endswith(_FILES)):
        return f"{folder} is a folder of files; give the path of one, such as {folder / files[0]}"
    return f"{folder} is no model: it holds neither {_CONFIG} nor {_INDEX}; check the path"


def _scheduler(folder: Path) -> Path:
    """Return the scheduler's file of a pipeline; that of accelerate's checkpoint-N is in the folder around it."""
    inner = folder / "scheduler"
    places = [inner if inner.is_dir() else folder]
    if folder.name.startswith("checkpoint-"):
        places.append(folder.parent / "scheduler")
    for place in places:
        if (place / _SCHEDULER).is_file():
            return place / _SCHEDULER
    missing = (places[0] / _SCHEDULER).relative_to(folder)
    raise CheckpointError(f"{folder} lacks {missing}; copy it from where the model came from")


def _weights(folder: Path) -> Path:
    names = _names(folder)
    for name in _WEIGHTS:
        if name in names:
            if name != _WEIGHTS[0]:
                note(f"{folder} holds weights in half precision alone: takes {name}")
            return folder / name
    raise CheckpointError(_unusable(str(folder), names) or f"{folder} lacks {_WEIGHTS[0]}; copy it from its source")


def _names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def _unusable(place: str, names: Iterable[str]) -> str | None:
    """Return why the weights of a folder or snapshot cannot be read, None where it holds none."""
    names = sorted(names)
    if any(name.endswith(".safetensors.index.json") for name in names):
        return f"{place} holds weights in several files; save them in one (max_shard_size='100GB')"
    if "model.safetensors" in names:
        return f"{place} is accelerate's checkpoint, which says nothing of its network; give what save_pretrained wrote"
    if any(name.endswith((".bin", ".pt", ".ckpt")) for name in names):
        return f"{place} holds its weights as a pickle, which is not read; save them with safe_serialization=True"
    return None


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
    """Tell whether a text has the form ``owner/model`` or ``owner/model@revision``."""
    return _ID.fullmatch(name) is not None


def refuse_address(name: str) -> None:
    """Refuse the address of a page or a file of the web.

    Raises:
        CheckpointError: it is one; the message says what to write in its place.
    """
    scheme, rest = _ADDRESS.fullmatch(name).groups()  # type: ignore[union-attr]  # fits any text
    page = _PAGE.fullmatch(f"hf.co/{rest}" if scheme == "hf" else rest)
    if not (scheme or page):
        return
    advice = "give the path alone" if scheme == "file" else "download the file and give its path"
    if page and page[1]:
        revision = "" if page[2] in (None, "main") else f"@{page[2]}"
        file = (page[3] or "").rpartition("/")[2]
        is_part = file.startswith(_STEM) or "." not in file or file.endswith(".json")
        advice = f"write the model's id, {page[1]}{revision}{'' if is_part else f', or {advice}'}"
    address = f"{scheme}://{rest}" if scheme else rest
    raise CheckpointError(f"{address} is an address of the web, not a path; {advice}")


def resolve_hub(name: str) -> Path:
    """Return the folder where the hub's cache keeps a model, of an id like ``owner/model``.

    What the cache lacks is downloaded, JSON and safetensors only. ``owner/model@revision`` names a branch, tag or
    commit.

    Raises:
        CheckpointError: files are missing and cannot be downloaded; they are named.
    """
    from huggingface_hub import constants, list_repo_files, snapshot_download  # slow to import: only ids need it

    path = Path(name)
    model, _, revision = name.partition("@")
    options: dict[str, Any] = {"revision": revision} if revision else {}
    for only_local in (True,) if constants.HF_HUB_OFFLINE else (True, False):
        try:
            path = Path(snapshot_download(model, allow_patterns=_PATTERNS, local_files_only=only_local, **options))
        except Exception:  # by cause: errors of its own, of its network client, OSError, ValueError
            continue
        if not _missing(path):
            return path
    is_cached = path.is_dir()
    if is_cached and (reason := _unusable(f"model {name}", _names(path / _network(path)))):
        raise CheckpointError(reason)
    lacking = ", ".join(_missing(path if is_cached else Path(name)))
    place = f"put them into {path}" if is_cached else f"get them from https://huggingface.co/{model}, give their folder"
    if constants.HF_HUB_OFFLINE:
        raise CheckpointError(f"model {name} lacks {lacking} (the hub was not asked: HF_HUB_OFFLINE is set); {place}")
    try:
        files = list_repo_files(model, **options)
    except Exception:  # by cause: errors of its own, of its network client, OSError, ValueError
        why = "the hub cannot be reached, or does not know it"
        raise CheckpointError(f"model {name} lacks {lacking} ({why}); {place}") from None
    if reason := _unusable(f"model {name}", (file.rpartition("/")[2] for file in files)):
        raise CheckpointError(reason)
    raise CheckpointError(f"model {name} lacks {lacking} (it has no such files); {place}")


def _network(folder: Path) -> str:
    """Return the folder of a network in a pipeline, ``unet/`` or another, empty where there is none."""
    return next((f"{name}/" for name in _NETWORKS if (folder / name).is_dir()), "")


def _missing(folder: Path) -> list[str]:
    """Name the files that a folder lacks, those of a flat model unless it is a pipeline's."""
    unet, scheduler = _network(folder), "scheduler/" if (folder / "scheduler").is_dir() else ""
    needed = {f"{unet}{_CONFIG}": (_CONFIG,), f"{unet}{_WEIGHTS[0]}": _WEIGHTS}
    lacking = [shown for shown, names in needed.items() if not any((folder / unet / name).is_file() for name in names)]
    return lacking + ([] if (folder / scheduler / _SCHEDULER).is_file() else [f"{scheduler}{_SCHEDULER}"])
