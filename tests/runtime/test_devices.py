import ctypes
import sys
from types import SimpleNamespace

import pytest
import torch

from bench.runtime.devices import DEVICES, find_device, full_float32, keep_freed_memory

FOUND_DEVICES = [
    (False, False, {"auto": "cpu", "cpu": "cpu", "cuda": None, "mps": None}),
    (False, True, {"auto": "mps", "cpu": "cpu", "cuda": None, "mps": "mps"}),
    (True, False, {"auto": "cuda", "cpu": "cpu", "cuda": "cuda", "mps": None}),
]


@pytest.mark.parametrize(("cuda", "mps", "wanted"), FOUND_DEVICES)
def test_devices_that_are_there(monkeypatch, cuda, mps, wanted):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    found = {name: find_device(name) for name in DEVICES}
    assert {name: device and device.type for name, device in found.items()} == wanted


def test_full_float32_switches_tf32_off(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        full_float32()
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_convolutions_on_a_gpu_keep_float32():
    full_float32()
    g = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=g) for shape in ((2, 64, 16, 16), (64, 64, 3, 3)))
    wanted = torch.nn.functional.conv2d(x.double(), weight.double())
    found = torch.nn.functional.conv2d(x.cuda(), weight.cuda()).cpu()
    # Sums of 576 products of order 1, about 24 in size: float32 errs by about 24 * sqrt(576) * 6e-8 = 3e-5 at most,
    # TF32 with 11 bits by about sqrt(576) * 5e-4 = 1e-2.
    assert (found - wanted).abs().max() < 2e-4


@pytest.mark.parametrize(
    ("system", "library"), [("linux", "glibc"), ("linux", "musl"), ("darwin", "glibc"), ("win32", "")]
)
def test_freed_memory_is_kept_where_glibc_takes_the_setting(monkeypatch, system, library):
    told = {}
    glibc = SimpleNamespace(mallopt=lambda setting, value: told.update({setting: value}))
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: glibc if library == "glibc" else SimpleNamespace())
    keep_freed_memory()
    # malloc.h: M_TRIM_THRESHOLD is -1, M_MMAP_THRESHOLD -3; values are C ints.
    assert set(told) == ({-1, -3} if (system, library) == ("linux", "glibc") else set())
    assert all(0 < value < 2**31 for value in told.values())
