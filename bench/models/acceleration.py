"""Networks called faster: in lower precision, compiled, or both.

Only the network call changes. Its input and output stay float32, and so do levels, noise, solver and probes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from bench.models.checkpoints.adapter import Adapted
from bench.models.interface import Output
from bench.runtime.errors import UserError, reason

PRECISIONS = ("fp32", "tf32", "bf16")
_ARCHITECTURES = 256  # compiled side by side; torch goes back to eager calls, without a word, after 8
_WARM_UP = 3  # calls: CUDA graphs are recorded in the second


class CompileError(UserError):
    """A network cannot be compiled here; the message says why, in one line."""


def precision_refusal(precision: str, device: torch.device) -> str | None:
    """Return why a precision of :data:`PRECISIONS` cannot be had on a device, None where it can."""
    if precision == "tf32" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0)):
        return f"tf32 has no effect on {device.type}, it needs an NVIDIA GPU of 2020 (Ampere) or later"
    if precision == "bf16" and not torch.amp.is_autocast_available(device.type):
        return f"bf16 cannot be had on {device.type}"
    return None


@contextmanager
def _tf32() -> Iterator[None]:
    """Let CUDA's float32 products keep TF32's 11 bits of their factors; the sums stay float32."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


class Accelerated:
    """A network in the convention of the others, ``network(x, t, class_labels).sample``.

    In ``fp32`` and not compiled it is the network itself, bit for bit. ``tf32`` rounds the factors of CUDA's products,
    ``bf16`` is autocast: products in bfloat16, weights kept in float32.

    Args:
        network: float32 in evaluation mode.
        precision: one of :data:`PRECISIONS`.
    """

    def __init__(self, network: Any, precision: str = "fp32") -> None:
        self.network, self.precision = network, precision
        self._compiled: Callable[[Tensor, Tensor, Tensor | None], Any] | None = None
        self._batch = 0

    @property
    def is_compiled(self) -> bool:
        """Tell whether batches of one size run compiled code."""
        return self._compiled is not None

    def to(self, device: torch.device | str) -> Accelerated:
        """Move the network."""
        self.network = self.network.to(device)
        return self

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Any:
        """Ask the network about x [B, C, H, W] at t [B], with class labels int64 [B] if it takes them.

        Returns:
            Something with ``sample`` [B, outputs, H, W] in x's dtype.
        """
        if self._compiled is not None and len(x) == self._batch:
            return self._call_compiled(x, t, labels)
        if self.precision == "fp32":
            return self.network(x, t, labels)
        with self._context(x.device):
            return Output(self.network(x, t, labels).sample.to(x.dtype))

    @torch.no_grad()  # a walk has none either; code is compiled for the one or the other
    def _call_compiled(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Output:
        assert self._compiled is not None  # its caller asked
        replays = _replays(x.device)
        if replays:
            torch.compiler.cudagraph_mark_step_begin()
        # So one compilation serves levels of whole and of broken indices; our networks make float32 of t themselves.
        t = t if isinstance(self.network, Adapted) else t.float()
        with self._context(x.device):
            sample = self._compiled(x.contiguous(), t, labels).sample
        # The next call of a CUDA graph writes where this one has written, and Heun's method looks back.
        return Output(sample.to(x.dtype, copy=replays))

    def _context(self, device: torch.device) -> AbstractContextManager[object]:
        if self.precision == "bf16":
            return torch.autocast(device.type, torch.bfloat16)
        return _tf32() if self.precision == "tf32" else nullcontext()

    def compile(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> None:
        """Compile for batches like these, on the network's device; others, of any other size, are called as before.

        Networks of one architecture share the code, which takes the first of them most of a minute.

        Args:
            x: states [B, C, H, W].
            t: [B].
            labels: int64 [B] if the network takes them.

        Raises:
            CompileError: there is no compiler, or it fails. The network then is as it was.
        """
        self._compiled, self._batch = _compiled(self.network, x.device), len(x)
        with ExitStack() as undo:
            undo.callback(self.stop_compiled)
            with compiler_errors():
                for _ in range(_WARM_UP):
                    self._call_compiled(x, t, labels)
            undo.pop_all()

    def stop_compiled(self) -> None:
        """Go back to calling the network as it is."""
        self._compiled = None


def _replays(device: torch.device) -> bool:
    """Tell whether compiled calls replay a CUDA graph: one launch a call, into memory that stays where it is."""
    return device.type == "cuda"


@contextmanager
def compiler_errors() -> Iterator[None]:
    """Turn what fails in the first calls of compiled code into one line.

    Left out are two warnings of torch: that a cached version number of a library is computed again, to no effect, and
    that Python 3.13.0 checks compiled code more slowly than its later versions.

    Raises:
        CompileError: there is no compiler, or it fails.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`", UserWarning)
            warnings.filterwarnings("ignore", "Guards may run slower on Python 3.13.0", RuntimeWarning)
            yield
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # torch's compiler calls others, and any of them may fail in its own way
        raise CompileError(reason(error)) from None


def _compiled(network: Any, device: torch.device) -> Any:
    """Return the network with its code compiled at the first call, and the same weights.

    Raises:
        CompileError: a plain function of a user's, whose code may do anything.
    """
    torch._dynamo.config.recompile_limit = _ARCHITECTURES
    how: dict[str, Any] = {"dynamic": False}
    if _replays(device):
        how["mode"] = "reduce-overhead"
    if not isinstance(network, Adapted):
        return torch.compile(network, **how)
    if not isinstance(network.network, nn.Module):
        raise CompileError(f"{network.name} is a plain function; only a torch.nn.Module can be compiled")
    return Adapted(network.name, torch.compile(network.network, **how), network.outputs)
