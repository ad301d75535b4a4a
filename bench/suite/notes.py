"""Notes: what a user should know before a run starts, each in one line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.measure.features.extractors import ANY_SIZE, INCEPTION_EXTRACTORS, embedded_width
from bench.measure.quality.scores import comparison_refusal, frechet_refusal
from bench.suite.cells.reference import Reference
from bench.suite.registry.model import Model
from bench.suite.run import Run


def notes(run: Run, reference: Reference) -> Iterator[str]:
    """Yield what the dataset's files hold besides images, which models are equal, and a distance that is missing."""
    config = run.config
    if config.data.note:
        yield config.data.note
    yield from _equal_weights(config.named)
    if line := missing_distance(reference, config.request.samples):
        yield line


def _equal_weights(models: Sequence[Model]) -> Iterator[str]:
    """Yield a line for each file that was given two names; a model and its remedies share theirs by intention."""
    names: dict[str, list[str]] = {}
    for model in models:
        plain, known = model.base or model.name, names.setdefault(model.weights_hash(), [])
        known += [] if plain in known else [plain]
    for known in names.values():
        if len(known) > 1:
            yield f"{' and '.join(known)} have the same weights: what differs between them is not their training"


def missing_distance(reference: Reference, n: int) -> str:
    """Return why N samples have no Frechet distance to a reference, and what stands in its place; empty if they have.

    Args:
        reference: what samples are compared with.
        n: number of samples of a cell.
    """
    extractor = reference.extractor
    if extractor is None or extractor.widths is None:
        return ""
    (width, _), (known, singles) = extractor.widths, reference.counts()
    if not frechet_refusal(width, n, known):
        return ""
    need, kid = f"{width + 1} samples and {width + 1} reference images", extractor.metrics["kid"]
    here = f"{n}" if known is None else f"{n} and {known}"
    refusal = comparison_refusal(n, singles)
    instead = f"nor can {kid} be given ({refusal})" if refusal else f"{kid} is shown instead"
    advice = ""
    if known is None or known > width:
        advice = f"; --samples {width + 1} gives it"
    elif extractor.name in INCEPTION_EXTRACTORS and not frechet_refusal(embedded_width(ANY_SIZE), n, known):
        advice = f"; --features {ANY_SIZE} needs {embedded_width(ANY_SIZE) + 1} of both"
    return f"{extractor.metrics['frechet']} needs {need}; here {here}: {instead}{advice}"
