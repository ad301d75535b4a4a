"""Limits of datasets: files of strangers can declare any size, or unfold to it."""

from __future__ import annotations

from bench.runtime.errors import DataError

MAX_PIXELS = 2**26  # of one picture; larger ones are refused rather than decoded
MAX_FILE = 2**28  # bytes of one file, or of one member of an archive once unpacked
MAX_TOTAL = 2**34  # bytes of all pixels kept: ImageNet at 64x64 fits (15.7e9), at 128x128 it does not
_SHARE = 250  # bytes of pixels for a byte on disk; photographs have below 100
_SMALL = {"member": 2**24, "pixels": 2**28}  # bytes below which unfolding is harmless, however small the file


def refuse_large_file(where: str, size: int, stored: int) -> None:
    """Refuse a file, or an archive's member of ``stored`` bytes, whose ``size`` in bytes no picture needs.

    Raises:
        DataError: it is too large, or unfolds too far.
    """
    if size > MAX_FILE:
        raise DataError(f"{where} has {size} bytes, more than {MAX_FILE} for one file; save it smaller")
    refuse_unfolding(where, "member", size, stored)


def refuse_large_picture(where: str, width: int, height: int) -> None:
    """Refuse a picture with too many pixels to decode.

    Raises:
        DataError: it has more than MAX_PIXELS.
    """
    if width * height > MAX_PIXELS:
        raise too_many_pixels(where)


def too_many_pixels(where: str) -> DataError:
    """Return the error of a picture with more than MAX_PIXELS."""
    return DataError(f"{where} has more than {MAX_PIXELS} pixels, too many to decode; resize it first")


def refuse_total(where: str, size: int) -> None:
    """Refuse a dataset whose pixels take more than MAX_TOTAL bytes.

    Raises:
        DataError: they do.
    """
    if size > MAX_TOTAL:
        raise DataError(f"{where} needs {size} bytes of pixels, more than {MAX_TOTAL}; keep fewer or smaller images")


def refuse_unfolding(where: str, what: str, size: int, stored: int) -> None:
    """Refuse a decompression bomb: ``size`` bytes out of ``stored`` ones, of a ``member`` or of all ``pixels``.

    Raises:
        DataError: the size is neither harmless nor in proportion.
    """
    if size > max(_SMALL[what], _SHARE * stored):
        raise DataError(f"{where} unfolds to over {_SHARE} times its size on disk, as no real data do; repack it")
