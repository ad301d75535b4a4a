"""Files in the format of EDM's released networks, small and with random weights, made without EDM's code.

The listing of names and shapes is written from the published tables (Karras et al. 2022, appendix F) and shares nothing
with the networks under test.
"""

from __future__ import annotations

import math
import pickle
import sys
import types
from contextlib import contextmanager

import numpy as np
import torch

SONG = {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
DHARIWAL = {"model_channels": 32, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
NCSNPP = {
    "embedding_type": "fourier",
    "channel_mult_noise": 2,
    "encoder_type": "residual",
    "resample_filter": [1, 3, 3, 1],
}


def small_config(architecture, image_size=8, channels=1, out_channels=None, label_dim=0, **others):
    """Return the published arguments of a small network."""
    defaults = SONG if architecture == "SongUNet" else DHARIWAL
    sizes = {"img_resolution": image_size, "in_channels": channels, "out_channels": out_channels or channels}
    return {**sizes, "label_dim": label_dim, **defaults, **others}


class Listing:
    """Names and shapes of a released network, collected in ``shapes`` (weight and bias) and ``bare`` (as they are)."""

    def __init__(self, architecture, config):
        self.song = architecture == "SongUNet"
        self.config = {"augment_dim": 0, "channel_mult_emb": 4, "encoder_type": "standard", "decoder_type": "standard"}
        self.config |= {"resample_filter": [1, 1], **config}
        self.hidden = self.config["model_channels"] * self.config["channel_mult_emb"]
        taps = len(self.config["resample_filter"])
        self.filter = (1, 1, taps, taps)
        self.shapes, self.bare = {}, {}

    def block(self, name, into, out, attended=False, resampled=False):
        self.shapes[f"{name}.norm0"] = (into,)
        self.shapes[f"{name}.conv0"] = (out, into, 3, 3)
        self.shapes[f"{name}.affine"] = (out if self.song else 2 * out, self.hidden)
        self.shapes[f"{name}.norm1"] = (out,)
        self.shapes[f"{name}.conv1"] = (out, out, 3, 3)
        if into != out or (resampled and self.song):
            self.shapes[f"{name}.skip"] = (out, into, 1, 1)
        if resampled:
            self.bare[f"{name}.conv0.resample_filter"] = self.bare[f"{name}.skip.resample_filter"] = self.filter
        if attended and (self.song or out >= 64):
            self.shapes[f"{name}.norm2"] = (out,)
            self.shapes[f"{name}.qkv"] = (3 * out, out, 1, 1)
            self.shapes[f"{name}.proj"] = (out, out, 1, 1)

    def maps(self):
        config = self.config
        width = config["model_channels"] * config.get("channel_mult_noise", 1)
        self.shapes |= {"map_layer0": (self.hidden, width), "map_layer1": (self.hidden, self.hidden)}
        if config.get("embedding_type") == "fourier":
            self.bare["map_noise.freqs"] = (width // 2,)
        if config["label_dim"] and self.song:
            self.shapes["map_label"] = (width, config["label_dim"])
        elif config["label_dim"]:
            self.bare["map_label.weight"] = (self.hidden, config["label_dim"])
        if config["augment_dim"]:
            self.bare["map_augment.weight"] = (width, config["augment_dim"])

    def down(self, sizes, widths):
        """List the way down; return the widths of the states that are kept."""
        config = self.config
        carried, now = config["in_channels"], config["model_channels"] if self.song else widths[0]
        self.shapes[f"enc.{sizes[0]}x{sizes[0]}_conv"] = (now, carried, 3, 3)
        kept = [now]
        for size, out in zip(sizes, widths, strict=True):
            at = f"enc.{size}x{size}"
            if size != sizes[0]:
                self.block(f"{at}_down", now, now, resampled=True)
                kept.append(now)
                if config["encoder_type"] == "skip":
                    self.bare[f"{at}_aux_down.resample_filter"] = self.filter
                    self.shapes[f"{at}_aux_skip"] = (now, carried, 1, 1)
                if config["encoder_type"] == "residual":
                    self.bare[f"{at}_aux_residual.resample_filter"] = self.filter
                    self.shapes[f"{at}_aux_residual"] = (now, carried, 3, 3)
                    carried = now
            for i in range(config["num_blocks"]):
                self.block(f"{at}_block{i}", now, out, size in config["attn_resolutions"])
                now = out
                kept.append(now)
        return kept

    def up(self, sizes, widths, kept):
        config, now = self.config, kept[-1]
        for size, out in zip(reversed(sizes), reversed(widths), strict=True):
            at = f"dec.{size}x{size}"
            if size == sizes[-1]:
                self.block(f"{at}_in0", now, now, attended=True)
                self.block(f"{at}_in1", now, now)
            else:
                self.block(f"{at}_up", now, now, resampled=True)
            for i in range(config["num_blocks"] + 1):
                may_attend = not self.song or i == config["num_blocks"]
                self.block(f"{at}_block{i}", now + kept.pop(), out, size in config["attn_resolutions"] and may_attend)
                now = out
            if config["decoder_type"] == "skip" and size != sizes[-1]:
                self.bare[f"{at}_aux_up.resample_filter"] = self.filter
            if self.song and (config["decoder_type"] == "skip" or size == sizes[0]):
                self.shapes |= {f"{at}_aux_norm": (now,), f"{at}_aux_conv": (config["out_channels"], now, 3, 3)}
        if not self.song:
            self.shapes |= {"out_norm": (now,), "out_conv": (config["out_channels"], now, 3, 3)}


def shapes_of_file(architecture, config):
    """List name and shape of every tensor of a released network."""
    listing = Listing(architecture, config)
    sizes = [config["img_resolution"] // 2**level for level in range(len(config["channel_mult"]))]
    widths = [config["model_channels"] * multiple for multiple in config["channel_mult"]]
    listing.maps()
    listing.up(sizes, widths, listing.down(sizes, widths))
    weights = {f"{name}.weight": shape for name, shape in listing.shapes.items()}
    biases = {f"{name}.bias": shape[:1] for name, shape in listing.shapes.items()}
    return weights | biases | listing.bare


def random_tensors(architecture, config, seed=0):
    """Return random weights of a network, scaled so that its output has about the size of its input."""
    generator = torch.Generator().manual_seed(seed)
    taps = torch.tensor(config.get("resample_filter", [1, 1]), dtype=torch.float32)
    box = torch.outer(taps, taps)[None, None] / taps.sum() ** 2
    tensors = {}
    for name, shape in shapes_of_file(architecture, config).items():
        values = torch.randn(shape, generator=generator)
        if name.endswith("resample_filter"):
            tensors[name] = box.clone()
        elif len(shape) > 1:
            tensors[name] = values / math.sqrt(math.prod(shape[1:]))
        else:
            tensors[name] = 0.1 * values + (".norm" in name or "_norm" in name) * name.endswith("weight")
    return tensors


@contextmanager
def edm_modules():
    """Put modules with the names of EDM's own in place, for pickle to refer to, and take them away again."""
    names = ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util")
    assert not any(name in sys.modules for name in names)
    made = {name: types.ModuleType(name) for name in names}

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("the file was unpickled in the ordinary way")

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    made["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj
    made["torch_utils"].persistence = made["torch_utils.persistence"]
    made["dnnlib.util"].EasyDict = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})
    made["dnnlib"].util = made["dnnlib.util"]
    sys.modules.update(made)
    try:
        yield made
    finally:
        for name in names:
            del sys.modules[name]


class Persistent:
    """A stand-in for an object of one of EDM's classes; pickled as theirs are."""

    def __init__(self, class_name, state, args=(), kwargs=None):
        self.state = {**state, "_init_args": args, "_init_kwargs": kwargs or {}}
        self.class_name = class_name

    def __reduce__(self):
        source = "raise SystemExit('the source code of a checkpoint was run')"
        meta = {"type": "class", "version": 6, "module_src": source, "class_name": self.class_name, "state": self.state}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


def module_state(tensors, children=()):
    """Return what a torch module's dictionary holds."""
    buffers = {name: tensor for name, tensor in tensors.items() if name in ("resample_filter", "freqs", "u")}
    weights = {k: torch.nn.Parameter(v, requires_grad=False) for k, v in tensors.items() if k not in buffers}
    return {
        **vars(torch.nn.Module()),
        "_parameters": weights,
        "_buffers": {**buffers, "unset": None},
        "_modules": dict(children),
        "training": False,
    }


def _module(class_name, tensors, kwargs=None):
    """Nest flat tensor names into modules."""
    own = {name: tensor for name, tensor in tensors.items() if "." not in name}
    heads = dict.fromkeys(name.split(".")[0] for name in tensors if "." in name)
    children = {}
    for head in heads:
        below = {name.removeprefix(f"{head}."): t for name, t in tensors.items() if name.startswith(f"{head}.")}
        if head in ("enc", "dec"):
            children[head] = torch.nn.ModuleDict()
            children[head].__dict__["_modules"] = _module("", below).state["_modules"]
        else:
            children[head] = _module(
                "UNetBlock" if any("." in name for name in below) else "Conv2d", below, {"skip_scale": np.sqrt(0.5)}
            )
    return Persistent(class_name, module_state(own, children), (), kwargs)


def edm_object(architecture, config, tensors, preconditioning="EDMPrecond", constants=None):
    """Return the stand-in of a preconditioned network."""
    outer = {
        "img_resolution": config["img_resolution"],
        "img_channels": config["in_channels"],
        "label_dim": config["label_dim"],
        "use_fp16": True,
        "model_type": architecture,
        **(constants or {}),
    }
    model = _module(architecture, tensors, config)
    buffers = {"u": torch.zeros(1001)} if preconditioning == "iDDPMPrecond" else {}
    return Persistent(preconditioning, module_state(buffers, {"model": model}), (), outer)


def dump(path, content):
    """Pickle anything made of the stand-ins."""
    with path.open("wb") as file:
        pickle.dump(content, file)


def write_edm_pickle(
    path,
    architecture="SongUNet",
    image_size=8,
    channels=1,
    label_dim=0,
    preconditioning="EDMPrecond",
    *,
    seed=0,
    dtype=torch.float32,
    constants=None,
    **network,
):
    """Write a small checkpoint in the format of EDM's released ``.pkl`` files.

    Args:
        path: where to.
        architecture: ``SongUNet`` or ``DhariwalUNet``.
        image_size: pixels a side.
        channels: of the images; iDDPM's network has twice as many outputs.
        label_dim: class labels, 0 for none.
        preconditioning: ``EDMPrecond``, ``VPPrecond``, ``VEPrecond`` or ``iDDPMPrecond``.
        seed: of the weights.
        dtype: of the weights.
        constants: of the preconditioning, those that are not the defaults.
        network: other arguments of the architecture, under their published names.

    Returns:
        The network's tensors, names as in the file.
    """
    outputs = 2 * channels if preconditioning == "iDDPMPrecond" else channels
    config = small_config(architecture, image_size, channels, outputs, label_dim, **network)
    tensors = {name: t.to(dtype) for name, t in random_tensors(architecture, config, seed).items()}
    with edm_modules() as modules:
        easy = modules["dnnlib.util"].EasyDict
        content = {
            "ema": edm_object(architecture, config, tensors, preconditioning, constants),
            "loss_fn": Persistent("EDMLoss", {"P_mean": -1.2}),
            "augment_pipe": Persistent("AugmentPipe", {"p": 0.12, "matrix": np.eye(3)}),
            "dataset_kwargs": easy(path="datasets/images.zip", resolution=image_size),
        }
        dump(path, content)
    return tensors
