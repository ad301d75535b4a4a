import pytest
import torch

from benchmarks.comparison import Setting


@pytest.fixture
def tiny():
    """Return a setting that takes a moment: everything in this process, on images of 8 pixels a side."""
    cpu = torch.device("cpu")
    return Setting(
        cpu, pairs=1, batch=2, steps=2, size=8, widths=(32,), features=24, counts=(12, 64), tested=20, levels=2,
        isolated=False,
    )  # fmt: skip
