"""One picture out of the bytes of a file, PNG, JPEG, BMP or WEBP by content, and what is lost on the way."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image, UnidentifiedImageError

from bench.data.image_stack import Picture
from bench.data.preprocessing import Pixels
from bench.files.limits import refuse_large_picture, too_many_pixels
from bench.runtime.errors import DataError, reason

_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")  # Pillow knows others by content, some of which start programs
_PNG, _DEPTH = b"\x89PNG\r\n\x1a\n", 24  # how a PNG begins, and where its bits a channel stand
_ORIENTATION = 0x0112
_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")


def decode(where: str, content: bytes, stored: int) -> Picture:
    """Decode one image: uint8 [H, W, 1] where it is grey (with alpha or a palette, too), else [H, W, 3].

    Args:
        where: its name for messages.
        content: the bytes of its file.
        stored: bytes on disk.

    Raises:
        DataError: it is of another format, damaged, too large, or has more than 8 bits a channel.
    """
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            refuse_large_picture(where, image.width, image.height)
            # Of 16 bits in colour Pillow keeps the upper 8, and its mode does not tell.
            if image.mode[0] in "IF" or (content.startswith(_PNG) and content[_DEPTH] > 8):
                raise DataError(f"{where} has more than 8 bits a channel; convert it to 8 bits")
            remarks = tuple(_remarks(image))
            return Picture(where, _pixels(image), stored, _loss(image.format or "", content), remarks)
    except DataError:
        raise
    except Image.DecompressionBombError:  # Pillow's own limit, above ours
        raise too_many_pixels(where) from None
    except UnidentifiedImageError:
        raise DataError(f"{where} cannot be decoded (no {', '.join(_FORMATS)}); remove or convert it") from None
    except Exception as error:  # on damaged bytes Pillow, zipfile and zlib raise almost any kind
        raise DataError(f"{where} cannot be decoded ({reason(error)}); remove it or get it again") from None


def _pixels(image: Image.Image) -> Pixels:
    if image.mode in ("1", "L", "LA", "La"):
        return np.asarray(image.convert("L"))[..., None]
    pixels: Pixels = np.asarray(image.convert("RGB"))
    if image.mode in ("P", "PA") and (pixels == pixels[..., :1]).all():
        return pixels[..., :1]
    return pixels


def _remarks(image: Image.Image) -> Iterator[str]:
    """Yield what a viewer would show otherwise than it is read, in the plural of a count."""
    if _orientation(image) not in (0, 1):
        yield "rotated by EXIF, which is ignored"
    if getattr(image, "n_frames", 1) > 1:
        yield "of several frames, of which the first is read"
    has_alpha = image.mode in _ALPHA or "transparency" in image.info
    if has_alpha and image.convert("RGBA").getchannel("A").getextrema()[0] == 0:
        yield "with pixels of alpha 0, whose hidden colour is read"


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged remark beside the pixels, on which Pillow raises almost any kind
        return 1


def _loss(kind: str, content: bytes) -> str:
    """Return the compression with loss that the content has gone through, empty where the pixels are exact."""
    if kind == "WEBP":
        return "webp" if _is_lossy_webp(content) else ""
    return "jpeg" if kind in ("JPEG", "MPO") else ""


def _is_lossy_webp(content: bytes) -> bool:
    """Tell by the first chunk of pixels; that of an animation lies in its first frame, behind 16 bytes."""
    position = 12
    while position + 8 <= len(content):
        kind, size = content[position : position + 4], int.from_bytes(content[position + 4 : position + 8], "little")
        if kind in (b"VP8 ", b"VP8L"):
            return kind == b"VP8 "
        position += 8 + (16 if kind == b"ANMF" else size + size % 2)
    return True
