import json
from pathlib import Path

import numpy as np
import pytest
from edm_files import golden_tensor

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture(scope="session")
def published_weights():
    """The weights of the golden networks, as tests/golden/README.md builds them from keys and shapes."""

    def build(shapes):
        return {key: golden_tensor(key, shape) for key, shape in sorted(shapes.items())}

    return build


@pytest.fixture(scope="session")
def adm_16px():
    """The golden ADM U-Net: its configuration, weight shapes, inputs and output."""
    with np.load(GOLDEN / "unet_adm_16px.npz", allow_pickle=False) as file:
        stored = dict(file)
    shapes = [tuple(json.loads(text)) for text in stored["shapes"].tolist()]
    stored["shapes"] = dict(zip(stored["keys"].tolist(), shapes, strict=True))
    stored["config"] = json.loads(str(stored["config"]))
    return stored


@pytest.fixture(scope="session")
def variants():
    """The other golden shapes: name to configuration, weight shapes and output."""
    with np.load(GOLDEN / "unet_variants.npz", allow_pickle=False) as file:
        described = json.loads(file["variants"].tobytes())
        return {name: {**what, "output": file[name]} for name, what in described.items()}
