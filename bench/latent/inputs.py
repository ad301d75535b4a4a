"""Latents and embeddings, made beforehand by a model's own encoders: the npz files of docs/latent.md."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.data import DataError, Dataset
from bench.files.limits import refuse_total, refuse_unfolding
from bench.files.npz import CheckedNpz, Shape
from bench.runtime.distributed import speaks
from bench.runtime.errors import CheckpointError

_USUAL_STD = (0.5, 2.0)  # of latents that were scaled as their autoencoder says


@dataclass(frozen=True)
class Conditioning:
    """What a network is conditioned on.

    Attributes:
        embeddings: [1, L, D] shared by all samples, or [M, L, D] to choose from.
        added: SDXL's ``text_embeds`` [1 or M, P] and ``time_ids`` [1 or M, 6]; None for other models.

    Raises:
        ValueError: embeddings of another shape, or numbers of rows that do not go together.
    """

    embeddings: Tensor
    added: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        """Refuse shapes that no network takes."""
        if self.embeddings.ndim != 3:
            raise ValueError(f"embeddings must be [1 or M, L, D], not {tuple(self.embeddings.shape)}")
        rows = {len(tensor) for tensor in (self.embeddings, *(self.added or {}).values())} - {1}
        if len(rows) > 1:
            raise ValueError(
                f"embeddings and what is added to them have {sorted(rows)} rows; give 1 or as many of each"
            )


class LatentData(Dataset):
    """Latents as a dataset: ``images`` are float32 [N, C, h, w], and ``labels`` the rows of their embeddings."""

    @property
    def classes(self) -> int:
        """Return how many conditions the latents have, those that none of them has included."""
        return int(self.labels.max()) + 1


def read_latents(path: Path) -> LatentData:
    """Read ``latents``, float [N, C, h, w], and, if they are there, ``cond``, whole numbers [N].

    Raises:
        FeatureError: missing or damaged.
        DataError: fewer than two latents, or conditions that do not go with them.
    """
    with CheckedNpz(path) as file:
        latents = _floats(file, "latents", "N, C, h, w")
        count = len(latents)
        cond = torch.zeros(count, dtype=torch.int64)
        if "cond" in file.names:
            cond = torch.from_numpy(file.read("cond", lambda s: s == (count,), f"[{count}]", "iu").astype("int64"))
    if count < 2 or min(latents.shape[2:]) < 2:
        raise DataError(f"{path} needs at least two latents of at least 2x2, not {list(latents.shape)}")
    if int(cond.min()) < 0:
        raise DataError(f"{path}: 'cond' must count the rows of the embeddings from 0, not from {int(cond.min())}")
    std = float(latents.double().std())
    if speaks() and not _USUAL_STD[0] < std < _USUAL_STD[1]:
        print(
            f"warning: the latents of {path} have standard deviation {std:.3g}, far from 1; were they multiplied by the"
            " scaling factor of their autoencoder?",
            file=sys.stderr,
        )
    # Latents of one file have the same statistics under any name, so all files are called alike.
    return LatentData("latents", latents, cond, torch.zeros(count, dtype=torch.bool))


def read_embeddings(path: Path) -> tuple[Conditioning, bool]:
    """Return the conditions [M, ...] of a file, and whether a last row stands for none.

    Raises:
        FeatureError: missing or damaged.
        CheckpointError: arrays that do not go together.
    """
    with CheckedNpz(path) as file:
        table = {"embeddings": _floats(file, "embeddings", "M, L, D")}
        table |= {name: _floats(file, name, "M, L") for name in ("text_embeds", "time_ids") if name in file.names}
        if has_null := "negative_embeddings" in file.names:
            for name, axes in (("embeddings", "M, L, D"), ("text_embeds", "M, L")):
                if name in table:
                    table[name] = _with_null(path, name, table[name], _floats(file, f"negative_{name}", axes))
    ids = table.get("time_ids")
    if has_null and ids is not None and len(ids) == len(table["embeddings"]) - 1 > 1:
        table["time_ids"] = torch.cat([ids, ids[:1]])
    try:
        return Conditioning(table.pop("embeddings"), table or None), has_null
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; see docs/latent.md") from None


def _with_null(path: Path, name: str, rows: Tensor, null: Tensor) -> Tensor:
    """Return rows followed by the one that stands for no condition."""
    if rows.shape[1:] != null.shape[1:] or not len(null) or not bool((null == null[:1]).all()):
        raise CheckpointError(
            f"{path}: 'negative_{name}' must be one row like those of {name!r}, {list(rows.shape[1:])}, or copies of it"
        )
    return torch.cat([rows, null[:1]])


def _floats(file: CheckedNpz, name: str, axes: str) -> Tensor:
    """Return an array with axes such as ``M, L, D``, which the file must have, as float32."""
    if name not in file.names:
        raise DataError(f"{file.path} has no array {name!r}; see docs/latent.md")
    dims = len(axes.split(", "))
    return torch.from_numpy(file.read(name, lambda shape: _fits(file.path, shape, dims), f"[{axes}]")).float()


def _fits(path: Path, shape: Shape, dims: int) -> bool:
    """Tell whether a shape has so many dimensions and no empty one; refuse one that the file cannot mean.

    Raises:
        DataError: it unfolds to far more than the file.
    """
    size = 8 * math.prod(shape)
    refuse_total(str(path), size)
    refuse_unfolding(str(path), "pixels", size, path.stat().st_size)
    return len(shape) == dims and size > 0
