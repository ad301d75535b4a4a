"""What a run leaves out where the images of its dataset are not at hand."""

from __future__ import annotations

from dataclasses import replace

from bench.measure.quality.committed import COMMITTED
from bench.suite.config.resolve import Request
from bench.suite.registry.tune import OF_IMAGES
from bench.suite.settings import ConfigError

__all__ = ["without_images"]

_NEED_IMAGES = {
    "normality": "normality (single-step errors on real images)",
    "chains": "chains (from real images)",
    "response": "response (of real noised images)",
}
_ALWAYS = "nn_ratio (neighbours among real images)"
_FORCED = "the teacher-forced and paired arms of steps (x0_hat errors, variance gaps to real noised images)"


def without_images(request: Request) -> tuple[Request, tuple[str, ...]]:
    """Return what is left of a request where there are no real images, and a name of each thing that was left out.

    Raises:
        ConfigError: nothing would be left, as scores and fits need the images.
    """
    home = "give the images' folder with --data-dir"
    if request.tune is not None and not request.tune.values and request.tune.constant in OF_IMAGES:
        raise ConfigError(f"--tune {request.tune.text} needs the images; {home}")
    if request.reference is None and request.features not in (*COMMITTED, "none"):
        raise ConfigError(
            f"--features {request.features} needs the images, of which the package keeps statistics of"
            f" {', '.join(COMMITTED)} alone; {home}, or a file of statistics with --reference"
        )
    kept = tuple(name for name in request.measure if name not in _NEED_IMAGES)
    left_out = [_FORCED] if "steps" in kept else []
    left_out += [text for name, text in _NEED_IMAGES.items() if name in request.measure]
    return replace(request, measure=kept), (*left_out, _ALWAYS)
