"""Shared settings of all tests."""

from __future__ import annotations

import torch

# One thread a worker: tests run on as many workers as there are cores, and threads of two workers would collide.
torch.set_num_threads(1)
