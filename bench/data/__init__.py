"""Datasets: images in file order with labels and a held-out part."""

from bench.data.dataset import (
    CROPS,
    DATASETS,
    FILTERS,
    DataError,
    Dataset,
    Preprocessing,
    coloured,
    load,
    load_path,
    quantize,
    stratified_split,
    to_unit,
)  # fmt: skip

__all__ = [
    "CROPS", "DATASETS", "FILTERS", "DataError", "Dataset", "Preprocessing",
    "coloured", "load", "load_path", "quantize", "stratified_split", "to_unit",
]  # fmt: skip
