import pytest
import torch


@pytest.fixture(scope="session")
def images():
    return torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
