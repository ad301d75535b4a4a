"""MPS has no float64: stand-ins for its tensors refuse it, and what runs on a device must do without."""

import re
from pathlib import Path

import pytest
import torch

import bench
from bench.measure.instruments.chains import image_errors


class Mps(torch.Tensor):
    """A tensor that says it is on MPS, computes on the CPU, and fails where an operation gives float64."""

    @staticmethod
    def __new__(cls, inner):
        tensor = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=torch.device("mps"))
        tensor.inner = inner
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if device is not None:
            kwargs["device"] = torch.device("cpu")
        args = torch.utils._pytree.tree_map(lambda value: value.inner if isinstance(value, cls) else value, args)
        out = func(*args, **kwargs)
        if device is not None and device.type == "cpu":
            return out
        assert not (isinstance(out, torch.Tensor) and out.dtype == torch.float64), f"float64 on MPS: {func}"
        return torch.utils._pytree.tree_map(lambda value: cls(value) if isinstance(value, torch.Tensor) else value, out)


def test_the_stand_in_flags_float64():
    x = Mps(torch.ones(2))
    assert (x + 1).device.type == "mps"
    with pytest.raises(AssertionError, match="float64 on MPS"):
        x.double()
    assert x.cpu().double().dtype == torch.float64


def test_errors_of_images_do_without():
    x = Mps(torch.ones(3, 1, 2, 2))
    assert image_errors(x, x * 0.5).tolist() == [[0.5, 0.25]] * 3


def test_nothing_is_widened_before_it_leaves_its_device():
    """``.cpu().double()``, never the other order."""
    for path in Path(bench.__file__).parent.rglob("*.py"):
        assert not re.search(r"\.double\(\)[\w.()]*\.cpu\(\)|float64\)[\w.()]*\.cpu\(\)", path.read_text()), path
