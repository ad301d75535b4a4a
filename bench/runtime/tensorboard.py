"""TensorBoard scalars, where the ``tensorboard`` extra is installed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bench.runtime.errors import UserError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardError(UserError):
    """TensorBoard scalars were asked for and cannot be written; one line that says how to mend it."""


def require_tensorboard() -> type[SummaryWriter]:
    """Return the writer's class.

    Raises:
        TensorBoardError: the package is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise TensorBoardError('TensorBoard is not installed; pip install "exposure-bias-bench[tensorboard]"') from None
    return SummaryWriter


def open_writer(folder: Path, purge_from: int | None = None) -> SummaryWriter:
    """Open a folder for scalars, and make it where it is not there.

    Args:
        folder: what ``tensorboard --logdir`` is given.
        purge_from: scalars that an earlier run wrote at this step and above are no longer shown.

    Raises:
        TensorBoardError: the package is not installed, or the folder cannot be written.
    """
    writer = require_tensorboard()
    try:
        return writer(str(folder), purge_step=purge_from)
    except OSError as error:
        raise TensorBoardError(f"cannot write TensorBoard scalars to {folder} ({error.strerror})") from None
