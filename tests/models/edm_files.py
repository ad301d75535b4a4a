"""Files in the format of EDM's released networks, small and with random weights, made without EDM's code."""

import json
import math
import pickle
import sys
import types
import zlib
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import torch

from bench.models.networks.arguments import shapes_of
from bench.models.networks.dhariwal import DhariwalUNet, dhariwal_shapes
from bench.models.networks.song import SongUNet

GOLDEN = Path(__file__).parent.parent / "golden"
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


def shapes_of_file(architecture, config):
    """Return name and shape of every tensor of a file, as the golden ones have them."""
    with torch.device("meta"):
        network = (SongUNet if architecture == "SongUNet" else DhariwalUNet)(config)
    return shapes_of(network.state_dict()) if architecture == "SongUNet" else dhariwal_shapes(network)


def golden_tensor(key, shape):
    """Return the tensor that ``tests/golden/README.md`` builds from a key and a shape."""
    values = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    if len(shape) > 1:
        return torch.from_numpy(values / np.float32(math.sqrt(math.prod(shape[1:]))))
    return torch.from_numpy((1 if key.endswith("weight") else 0) + np.float32(0.1) * values)


def random_tensors(architecture, config):
    """Return the golden weights of a network, under the names in its file."""
    return dict(_tensors(architecture, json.dumps(config)))


@cache
def _tensors(architecture, text):
    config = json.loads(text)
    taps = torch.tensor(config.get("resample_filter", [1, 1]), dtype=torch.float32)
    box = torch.outer(taps, taps)[None, None] / taps.sum() ** 2
    shapes = shapes_of_file(architecture, config)
    return {n: box.clone() if n.endswith("resample_filter") else golden_tensor(n, s) for n, s in shapes.items()}


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
        dtype: of the weights.
        constants: of the preconditioning, those that are not the defaults.
        network: other arguments of the architecture, under their published names.

    Returns:
        The network's tensors, names as in the file.
    """
    outputs = 2 * channels if preconditioning == "iDDPMPrecond" else channels
    config = small_config(architecture, image_size, channels, outputs, label_dim, **network)
    tensors = {name: t.to(dtype) for name, t in random_tensors(architecture, config).items()}
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
