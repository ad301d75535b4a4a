"""Shared settings and fixtures of all tests."""

import os
import sys
from functools import partial

# One thread a worker and a process that it starts, in torch, numpy and scipy, which read this when they are imported:
# tests run on as many workers as there are cores, and threads of two workers would collide.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch


@pytest.fixture
def traced(monkeypatch):
    """Compile by tracing alone, which takes a second and runs the very same kernels; return how to count graphs."""
    from torch._dynamo.utils import counters  # slow to import: only these tests pay

    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    return lambda: counters["stats"]["unique_graphs"]


@pytest.fixture
def unrendered(monkeypatch):
    """Give figures their files without their pixels, for tests of everything else that an analysis makes."""
    import analysis.regenerate  # noqa: F401 - with all that draws
    from analysis.output import style

    def save(figure, folder, name):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.png"
        path.touch()
        return [path]

    for module in [module for name, module in sys.modules.items() if name.startswith("analysis.")]:
        if getattr(module, "save", None) is style.save:
            monkeypatch.setattr(module, "save", save)


def pytest_collection_modifyitems(items):
    """Put first what starts processes and waits for them: no worker is left alone with it at the end."""
    items.sort(key=lambda item: "tests/suite/" not in item.nodeid)
