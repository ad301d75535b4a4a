"""Conditional networks in diffusers format, called as class-conditional ones are: a label is a row of the conditions.

So the walk, guidance, labels of samples and the instruments are those of pixel models.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from bench.latent.inputs import Conditioning, read_embeddings
from bench.models.checkpoints.diffusers_model import build_unet, class_name, training_process
from bench.models.checkpoints.hub import Parts, read_json
from bench.models.checkpoints.state_dicts import joint_hash
from bench.models.interface import Description, Output
from bench.runtime.errors import CheckpointError, quoted

_LABELS = "class_labels"


class _Call(NamedTuple):
    """The names of a network's arguments, and of the setting that is the embeddings' width."""

    state: str
    condition: str
    width: str = ""


# Networks whose calls differ in these names alone; the time is ``timestep`` in all of them.
_CALLS: Mapping[str, _Call] = {
    "UNet2DConditionModel": _Call("sample", "encoder_hidden_states", "cross_attention_dim"),
    "DiTTransformer2DModel": _Call("hidden_states", _LABELS),
    "PixArtTransformer2DModel": _Call("hidden_states", "encoder_hidden_states", "caption_channels"),
    "SanaTransformer2DModel": _Call("hidden_states", "encoder_hidden_states", "caption_channels"),
}


class ConditionedNetwork(nn.Module):
    """A network and its table of conditions, called as ``network(x, t, labels).sample``.

    Args:
        network: of the library.
        kind: the name of its class.
        conditions: rows to choose from; None where labels are the network's own classes.
    """

    def __init__(self, network: nn.Module, kind: str, conditions: Conditioning | None) -> None:
        super().__init__()
        self.network, self._call = network, _CALLS[kind]
        self.added = tuple(conditions.added or ()) if conditions else ()
        if conditions is not None:
            self.register_buffer("embeddings", conditions.embeddings)
            for name, rows in (conditions.added or {}).items():
                self.register_buffer(name, rows)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Output:
        """Ask about x [B, C, h, w] at t [B], conditioned on the rows ``labels``, int64 [B]."""
        if self._call.condition == _LABELS:
            arguments: dict[str, Any] = {_LABELS: labels}
        else:
            added = {name: self._rows(name, labels) for name in self.added}
            arguments = {self._call.condition: self._rows("embeddings", labels)}
            arguments |= {"added_cond_kwargs": added} if added else {}
        return Output(self.network(**{self._call.state: x}, timestep=t, **arguments).sample)

    def _rows(self, name: str, labels: Tensor) -> Tensor:
        table: Tensor = getattr(self, name)
        return table.expand(len(labels), *table.shape[1:]) if len(table) == 1 else table[labels]


def describe_conditional(path: Path, embeddings: Path | None) -> tuple[Description, int | None]:
    """Describe a conditional latent model: a pipeline's folder (``unet/`` or ``transformer/``, ``scheduler/``).

    Args:
        path: the folder; autoencoder and text encoders may be missing.
        embeddings: npz of its conditions, None for a model of class labels.

    Returns:
        A description whose ``num_classes`` counts the conditions, and the number of the one that stands for none.

    Raises:
        CheckpointError, FeatureError, DataError: a part is missing or damaged, or of a kind that cannot be used.
    """
    parts = Parts.of(path)
    config = read_json(parts.config)
    kind = _kind(parts, config)
    schedule, T, prediction = training_process(parts.scheduler)
    network = {key: value for key, value in config.items() if not key.startswith("_")}
    channels = network.setdefault("in_channels", 4)
    outputs = network["out_channels"] = network.get("out_channels") or channels
    if outputs not in (channels, 2 * channels):
        raise CheckpointError(f"{parts.config}: a network of more than latents (inpainting) cannot be used")
    conditions, null = None, None
    if _CALLS[kind].condition == _LABELS:
        if embeddings is not None:
            raise CheckpointError(f"{parts.config} is conditioned on class labels; leave 'embeddings' out of its entry")
        null = int(network.get("num_embeds_ada_norm") or 1000)
        rows = null + 1  # the last label is that of no class, as the library's pipeline has it
    else:
        if embeddings is None:
            raise CheckpointError(f"{parts.config} is conditioned on embeddings; give its entry 'embeddings'")
        conditions, has_null = read_embeddings(embeddings)
        _check_conditions(parts, kind, network, conditions, embeddings)
        rows = max(len(rows) for rows in (conditions.embeddings, *(conditions.added or {}).values()))
        null = rows - 1 if has_null else None
    size = network.get("sample_size")
    network |= {"kind": kind, "image_size": size if isinstance(size, int) else None, "num_classes": rows}
    content = {"parts": parts, "conditions": conditions, "embeddings": embeddings}
    return Description(network, schedule, T, {}, prediction, "conditional", content), null


def _kind(parts: Parts, config: Mapping[str, Any]) -> str:
    kind = class_name(config)
    if kind not in _CALLS:
        raise CheckpointError(
            f"{parts.config} is of a {quoted(kind)}, which is called in another way; known: {', '.join(_CALLS)}"
        )
    if kind == "PixArtTransformer2DModel" and config.get("use_additional_conditions", config.get("sample_size") == 128):
        raise CheckpointError(f"{parts.config} takes a resolution beside its embeddings, which cannot be given")
    if config.get("timestep_scale", 1) != 1:
        raise CheckpointError(
            f"{parts.config} sets timestep_scale {config['timestep_scale']!r:.20}; only 1 can be used"
        )
    return kind


def _check_conditions(
    parts: Parts, kind: str, network: Mapping[str, Any], conditions: Conditioning, embeddings: Path
) -> None:
    """Refuse conditions that the network cannot take."""
    width, given = network.get(_CALLS[kind].width), conditions.embeddings.shape[-1]
    if network.get("encoder_hid_dim") is None and isinstance(width, int) and width != given:
        raise CheckpointError(f"{parts.config} takes embeddings of {width} numbers, those of {embeddings} have {given}")
    needed = {"text_embeds", "time_ids"} if network.get("addition_embed_type") == "text_time" else set()
    if needed != set(conditions.added or ()):
        names = " and ".join(sorted(needed)) or "nothing"
        raise CheckpointError(f"{parts.config} takes {names} beside the embeddings; see docs/latent.md")


def hash_conditional(path: Path, description: Description) -> str:
    """Return a sha256 over the two configurations, the weights and the embeddings, hexadecimal.

    Raises:
        CheckpointError: a part is missing or unreadable.
    """
    parts, embeddings = description.content["parts"], description.content["embeddings"]
    return joint_hash(*filter(None, (parts.config, parts.scheduler, parts.weights, embeddings)))


def load_conditional(path: Path, description: Description) -> ConditionedNetwork:
    """Build the network of a description and load its weights, float32 in evaluation mode.

    Raises:
        CheckpointError: truncated, of another architecture, or not finite.
    """
    import diffusers  # slow to import: only whoever needs a network pays

    ours = ("kind", "image_size", "num_classes")
    config = {key: value for key, value in description.network.items() if key not in ours}
    kind, parts = description.network["kind"], description.content["parts"]
    network = build_unet(getattr(diffusers, kind), config, parts)
    return ConditionedNetwork(network, kind, description.content["conditions"]).eval().requires_grad_(False)
