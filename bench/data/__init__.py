"""Datasets: images in file order with labels and a held-out part."""

from bench.data.dataset import (
    DATASETS,
    EMBEDDED_DATASETS,
    Dataset,
    coloured,
    load,
    load_path,
    quantize,
    stratified_split,
    to_unit,
)
from bench.data.preprocessing import CROPS, FILTERS, Preprocessing
from bench.runtime.errors import DataError

__all__ = [
    "CROPS", "DATASETS", "EMBEDDED_DATASETS", "FILTERS", "DataError", "Dataset", "Preprocessing",
    "coloured", "load", "load_path", "quantize", "stratified_split", "to_unit",
]  # fmt: skip
