"""Shared settings and fixtures of all tests."""

from functools import partial

import pytest
import torch

# One thread a worker: tests run on as many workers as there are cores, and threads of two workers would collide.
torch.set_num_threads(1)


@pytest.fixture
def traced(monkeypatch):
    """Compile by tracing alone, which takes a second and runs the very same kernels; return how to count graphs."""
    from torch._dynamo.utils import counters  # slow to import: only these tests pay

    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    return lambda: counters["stats"]["unique_graphs"]
