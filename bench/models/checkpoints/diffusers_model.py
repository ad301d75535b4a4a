"""Models in the format of the diffusers library: a folder of JSON and safetensors, or the id of one on its hub.

Nothing is executed from a file: the configuration is JSON, the weights are safetensors, pickles (``.bin``) are refused,
and the network is checked against the file, without memory of its own, before anything is built.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.diffusion.schedules import flow_shift, schedule_table, zero_snr
from bench.models.checkpoints.hub import Parts, read_json
from bench.models.checkpoints.state_dicts import joint_hash, read_tensors
from bench.models.denoisers.parameterization import check_process
from bench.models.interface import Description
from bench.models.networks.adm import without_weights
from bench.runtime.distributed import note
from bench.runtime.errors import CheckpointError, quoted, reason

_LATENT = ("vae", "vqvae", "movq", "text_encoder", "prior")  # parts of pipelines whose U-Net sees no pixels
# Classes of networks of latents whose calls bench.latent.networks knows.
OF_LATENTS = ("UNet2DConditionModel", "DiTTransformer2DModel", "PixArtTransformer2DModel", "SanaTransformer2DModel")
_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
# What a scheduler of these classes means by leaving a setting out.
_DEFAULTS = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000}
_DEFAULTED = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler")
_FLOW = "FlowMatchEulerDiscreteScheduler"
_OTHER_FLOWS = (  # settings of a flow's scheduler that mean other levels than its shift gives
    "use_dynamic_shifting", "shift_terminal", "invert_sigmas", "use_karras_sigmas", "use_exponential_sigmas",
    "use_beta_sigmas",
)  # fmt: skip
_LONGEST_TRAINING = 100_000
_MOST_LAYERS = 64  # per block, and of blocks: files of strangers shall not make us build for ever
# Attention layers of files from before diffusers 0.16, google/ddpm-cifar10-32 among them.
_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def training_process(path: Path) -> tuple[str, int, str]:
    """Return (schedule, T, prediction) of a ``scheduler_config.json``.

    Schedule and prediction are our names (:func:`bench.diffusion.schedules.betas`,
    :data:`bench.models.denoisers.parameterization.CONVERSIONS`). How the library would sample (spacing, clipping, its
    solver) is not
    read: samplers here are chosen by the run.

    Raises:
        CheckpointError: unreadable, an unknown schedule or prediction, or eps predicted where no signal is left.
    """
    config = read_json(path)
    name = config.get("_class_name", "DDPMScheduler")
    if name == _FLOW:
        return _flow(path, config)
    if name in _DEFAULTED:
        config = _DEFAULTS | config
    kind = config.get("beta_schedule")
    if kind is None:
        raise CheckpointError(
            f"{path}: {quoted(name)} has no betas; only variance-preserving schedules and {_FLOW} can be used"
        )
    T = _training_length(path, config)
    if trained := config.get("trained_betas"):
        schedule = _table(path, trained)
    else:
        schedule = _schedule(path, kind, config.get("beta_start"), config.get("beta_end"), T)
    if config.get("rescale_betas_zero_snr"):
        schedule = zero_snr(schedule)
    output = config.get("prediction_type") or ("sample" if config.get("predict_epsilon") is False else "epsilon")
    if output not in _PREDICTIONS:
        raise CheckpointError(f"{path}: unknown prediction_type {quoted(output)}; known: {', '.join(_PREDICTIONS)}")
    prediction = _PREDICTIONS[output]
    try:
        check_process(schedule, T, prediction)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return schedule, T, prediction


def _training_length(path: Path, config: Mapping[str, Any]) -> int:
    T = config.get("num_train_timesteps")
    if not isinstance(T, int) or not 1 <= T <= _LONGEST_TRAINING:
        raise CheckpointError(f"{path}: num_train_timesteps must be a whole number up to {_LONGEST_TRAINING}")
    return T


def _flow(path: Path, config: Mapping[str, Any]) -> tuple[str, int, str]:
    """Return what :func:`training_process` does, of a flow."""
    if unusable := [key for key in _OTHER_FLOWS if config.get(key)]:
        raise CheckpointError(f"{path} sets {unusable[0]!r}, which cannot be used; choose a model without it")
    shift = config.get("shift", 1.0)
    name = "flow" if shift == 1 else f"flow({shift!r})"
    try:
        flow_shift(name)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return name, _training_length(path, {"num_train_timesteps": 1000, **config}), "flow"


def _schedule(path: Path, kind: Any, start: Any, end: Any, T: int) -> str:
    if kind == "squaredcos_cap_v2":
        return "cosine"
    if kind not in ("linear", "scaled_linear", "sigmoid"):
        names = "linear, scaled_linear, sigmoid, squaredcos_cap_v2"
        raise CheckpointError(
            f"{path}: unknown beta_schedule {quoted(kind)}; known: {names}, others by their numbers, trained_betas"
        )
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in (start, end)):
        raise CheckpointError(f"{path}: beta_start and beta_end must be numbers")
    is_ours = kind == "linear" and (start, end, T) == (1e-4, 0.02, 1000)
    return "linear" if is_ours else f"{kind}({float(start)!r},{float(end)!r})"


def _table(path: Path, trained: Any) -> str:
    """Return the schedule of ``trained_betas``."""
    try:
        bars: NDArray[np.float64] = np.cumprod(1 - np.array(trained, dtype=np.float64), dtype=np.float64)
        return schedule_table(bars)
    except (ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{path}: trained_betas: {reason(error)}; get the file again") from None


def describe_diffusers(path: Path) -> Description:
    """Describe a pixel model: a pipeline's folder (``unet/``, ``scheduler/``) or a flat one.

    Returns:
        A description of format ``diffusers``. ``network`` holds the configuration of the ``UNet2DModel`` and
        ``image_size`` (None for any) and ``num_classes`` beside it. ``t`` counts from 0, as in the library.

    Raises:
        CheckpointError: a part is missing or damaged, a latent or text-conditional model, or settings that cannot be
            used.
    """
    parts = Parts.of(path)
    config = read_json(parts.config)
    _refuse_latent(path, parts, config)
    schedule, T, prediction = training_process(parts.scheduler)
    network = {key: value for key, value in config.items() if not key.startswith("_")}
    scheduler = read_json(parts.scheduler)
    _check_channels(parts, network, scheduler.get("variance_type"))
    size = network.get("sample_size")
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    network["image_size"] = size if isinstance(size, int) else None
    network["num_classes"] = network.get("num_class_embeds")
    # What differs from what a run does by itself.
    usual = {"thresholding": False, "clip_sample": True, "clip_sample_range": 1.0, "timestep_spacing": "leading"}
    if unused := [f"{key} {quoted(scheduler[key])}" for key in usual if scheduler.get(key, usual[key]) != usual[key]]:
        note(f"{parts.scheduler}: how the library would sample is not used: {', '.join(unused)}")
    return Description(network, schedule, T, {}, prediction, "diffusers", {"parts": parts}, _variance(scheduler))


def class_name(config: Mapping[str, Any]) -> str:
    """Return the class of a network's configuration."""
    name = str(config.get("_class_name"))
    # Files from before it had a class of its own call a DiT by its parent's name.
    is_dit = name == "Transformer2DModel" and config.get("norm_type") == "ada_norm_zero"
    return "DiTTransformer2DModel" if is_dit else name


def _refuse_latent(path: Path, parts: Parts, config: Mapping[str, Any]) -> None:
    """Refuse a network that is no unconditional one of pixels, with what it needs if it can be used."""
    name = class_name(config)
    if name in OF_LATENTS:
        raise CheckpointError(
            f"{path} is a {name}, but an unconditional pixel model is needed here; give its entry 'latents'"
            " (docs/latent.md)"
        )
    known = f"known are UNet2DModel of pixels and {', '.join(OF_LATENTS)} of latents (docs/latent.md)"
    if name != "UNet2DModel":
        raise CheckpointError(f"{parts.config} is of a {quoted(name)}; {known}")
    if latent := [part for part in _LATENT if part in parts.index]:
        raise CheckpointError(f"{path} is a UNet2DModel of what its {latent[0]!r} makes; {known}")


def _variance(scheduler: Mapping[str, Any]) -> str | None:
    """Return the fixed variance of ancestral steps that a scheduler asks for, None where it asks for none."""
    kind = str(scheduler.get("variance_type", "fixed_small" if scheduler.get("_class_name") == "DDPMScheduler" else ""))
    return next((f"fixed-{size}" for size in ("small", "large") if kind.startswith(f"fixed_{size}")), None)


def _check_channels(parts: Parts, network: dict[str, Any], variance: Any) -> None:
    """Fill in the library's defaults of the channels and refuse outputs that are not images, or images twice."""
    channels, outputs = (network.setdefault(key, 3) for key in ("in_channels", "out_channels"))
    if not all(isinstance(value, int) and value > 0 for value in (channels, outputs)):
        raise CheckpointError(f"{parts.config}: in_channels and out_channels must be positive whole numbers")
    widths = network.get("block_out_channels", [1])
    if not isinstance(widths, list) or not 0 < len(widths) <= _MOST_LAYERS:
        words = f"block_out_channels must be a list of up to {_MOST_LAYERS} numbers"
        raise CheckpointError(f"{parts.config} describes no network ({words})")
    if outputs not in (channels, 2 * channels):
        raise CheckpointError(f"{parts.config}: out_channels must be in_channels, {channels}, or twice that")
    if network.get("class_embed_type") is not None:
        raise CheckpointError(f"{parts.config} sets 'class_embed_type', which cannot be used; class labels can")
    learned = outputs == 2 * channels
    if learned and variance not in (None, "learned_range"):
        raise CheckpointError(
            f"{parts.scheduler}: variance_type {quoted(variance)} does not go with twice the channels;"
            " only 'learned_range' does"
        )
    if variance in ("learned", "learned_range") and not learned:
        raise CheckpointError(f"{parts.scheduler}: variance_type {variance!r} needs twice the channels as output")


def load_diffusers(path: Path, description: Description) -> Any:
    """Build the network of a description and load its weights, float32 in evaluation mode.

    Returns:
        A network called as ``network(x, t, class_labels).sample`` with x [B, C, H, W] and t [B], from 0.

    Raises:
        CheckpointError: missing, truncated, of another architecture, not floating-point numbers, or not finite.
    """
    import diffusers  # slow to import: only whoever needs a network pays

    ours = ("image_size", "num_classes")
    config = {key: value for key, value in description.network.items() if key not in ours}
    return build_unet(diffusers.UNet2DModel, config, description.content["parts"])


def hash_diffusers(path: Path, description: Description) -> str:
    """Return a sha256 over the two configurations and the weights, hexadecimal.

    Raises:
        CheckpointError: a part is missing or unreadable.
    """
    parts = description.content["parts"]
    return joint_hash(parts.config, parts.scheduler, parts.weights)


def build_unet(kind: type[Any], config: Mapping[str, Any], parts: Parts) -> Any:
    """Build a network of the library from a stranger's settings and weights, float32 in evaluation mode.

    Args:
        kind: the library's class.
        config: its constructor arguments.
        parts: where the weights are.

    Raises:
        CheckpointError: as for :func:`load_diffusers`.
    """
    arguments = inspect.signature(kind.__init__).parameters
    for key, value in config.items():
        if key not in arguments and value:  # what is off does not change the network
            raise CheckpointError(f"{parts.config} sets {quoted(key)}, unknown to this diffusers; upgrade it")
        if ("layers" in key or key.endswith("block_types")) and not _is_small(value):
            raise CheckpointError(f"{parts.config}: {quoted(key)} is beyond any network, {quoted(value)}")
    known = {key: value for key, value in config.items() if key in arguments}
    try:
        unet = without_weights(lambda: kind(**known))
    except Exception as error:  # on settings that do not fit together the library raises almost any kind
        raise CheckpointError(f"{parts.config} describes no network ({reason(error)})") from None
    misfit = f"{parts.weights} does not fit its config.json"
    unet.load_state_dict(dict(read_tensors(parts.weights, unet.state_dict(), misfit, _renamed)), assign=True)
    if any(buffer.is_meta for buffer in unet.buffers()):  # computed on construction, so not in the file
        loaded, unet = unet.state_dict(), kind(**known)
        unet.load_state_dict(loaded, assign=True)
    return unet.eval().requires_grad_(False)


def _is_small(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= _MOST_LAYERS and all(map(_is_small, value))
    return not isinstance(value, int | float) or abs(value) <= _MOST_LAYERS


def _renamed(name: str) -> str:
    head, _, last = name.rpartition(".")
    path, _, layer = head.rpartition(".")
    if ".attentions." in f".{path}" and layer in _RENAMED:
        return f"{path}.{_RENAMED[layer]}.{last}"
    return name
