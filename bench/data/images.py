"""Folders and zips of image files: members are read into memory, never extracted, and decoded one at a time."""

from __future__ import annotations

import io
import os
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from bench.data.pictures import Picture, Pictures, ReadOptions, class_indices, gather
from bench.data.preprocessing import Pixels
from bench.files.limits import refuse_large_file, refuse_large_picture, too_many_pixels
from bench.runtime.errors import DataError, reason

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
_LOSSY = frozenset({".jpg", ".jpeg"})
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")  # Pillow knows others by content, some of which start programs
_SPLIT = {"train", "test"}


@dataclass(frozen=True)
class _Member:
    name: PurePosixPath  # relative to the source
    where: str
    stored: int
    read: Callable[[], bytes]


def read_folder(path: Path, options: ReadOptions) -> Pictures:
    """Read the images below a folder in the order of their paths; the class is the name of an image's own folder.

    Where every image lies below a folder ``train`` or a folder ``test``, and both occur, those below ``test`` are held
    out. Links to folders are not followed.

    Raises:
        DataError: no images, unreadable ones, or images of different sizes.
    """
    try:
        return _read(str(path), _files(path), options)
    except OSError as error:
        raise DataError(f"{error.filename or path} cannot be read ({reason(error)}); check links and rights") from None


def read_zip(path: Path, options: ReadOptions) -> Pictures:
    """Read a zip as :func:`read_folder` reads a folder.

    Raises:
        DataError: not a zip, or as there.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(str(path), _members(path, archive), options)
    except DataError:
        raise
    except Exception as error:  # on damaged bytes zipfile raises almost any kind
        raise DataError(f"{path} is neither an npz, a folder nor a zip of images ({reason(error)})") from None


def _read(source: str, members: Iterable[_Member], options: ReadOptions) -> Pictures:
    members = sorted(members, key=lambda member: member.name)
    if not members:
        raise DataError(f"{source} holds no images (looked for {', '.join(sorted(SUFFIXES))})")
    labels, heldout = _sort_out([member.name for member in members])
    lossy = any(member.name.suffix.lower() in _LOSSY for member in members)
    return Pictures(gather(source, len(members), _decoded(members), options), labels, heldout, lossy)


def _files(root: Path) -> Iterator[_Member]:
    def stop(error: OSError) -> None:
        raise error  # os.walk would leave out the folder without a word

    for folder, _, names in os.walk(root, onerror=stop):
        for name in names:
            path = Path(folder, name)
            relative = PurePosixPath(path.relative_to(root).as_posix())
            if not _is_image(relative):
                continue
            status = path.stat()
            if stat.S_ISREG(status.st_mode):
                refuse_large_file(str(path), status.st_size, status.st_size)
                yield _Member(relative, str(path), status.st_size, path.read_bytes)


def _members(path: Path, archive: zipfile.ZipFile) -> Iterator[_Member]:
    for info in archive.infolist():
        name = PurePosixPath(info.filename.replace("\\", "/"))
        where = f"{path}: {info.filename}"
        if name.is_absolute() or ".." in name.parts:  # nothing is extracted, but no zip of images needs such a name
            raise DataError(f"{where} leads out of the archive; pack it anew")
        if info.is_dir() or not _is_image(name):
            continue
        if stat.S_ISLNK(info.external_attr >> 16):
            raise DataError(f"{where} is a link, which no zip of images needs; pack the image itself")
        refuse_large_file(where, info.file_size, info.compress_size)
        yield _Member(name, where, info.compress_size, partial(_unpack, archive, info))


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with archive.open(info) as file:
        return file.read()


def _is_image(name: PurePosixPath) -> bool:
    """Tell image files by their suffix, without the shadows that macOS leaves beside files of any kind."""
    return name.suffix.lower() in SUFFIXES and not name.name.startswith("._")


def _sort_out(names: list[PurePosixPath]) -> tuple[NDArray[np.int64], NDArray[np.bool_] | None]:
    """Return the labels that the folders' names give, and the held-out part if the folders tell one."""
    sides = [_SPLIT.intersection(name.parts[:-1]) for name in names]
    if any(len(side) != 1 for side in sides) or len(set.union(*sides)) != 2:
        return class_indices([name.parent.name for name in names]), None
    classes = ["" if name.parent.name in _SPLIT else name.parent.name for name in names]
    return class_indices(classes), np.array(["test" in side for side in sides])


def _decoded(members: Iterable[_Member]) -> Iterator[Picture]:
    for member in members:
        yield Picture(member.where, _decode(member), member.stored)


def _decode(member: _Member) -> Pixels:
    """Decode one image to uint8 [H, W, 1] if it is grey, else [H, W, 3]."""
    where = member.where
    try:
        with Image.open(io.BytesIO(member.read()), formats=_FORMATS) as image:
            refuse_large_picture(where, image.width, image.height)
            if image.mode[0] in "IF":
                raise DataError(f"{where} has more than 8 bits a channel; convert it to 8 bits")
            grey = image.mode in ("1", "L")
            pixels: Pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except DataError:
        raise
    except Image.DecompressionBombError:  # Pillow's own limit, above ours
        raise too_many_pixels(where) from None
    except UnidentifiedImageError:
        raise DataError(f"{where} cannot be decoded (no {', '.join(_FORMATS)}); remove or convert it") from None
    except Exception as error:  # on damaged bytes Pillow, zipfile and zlib raise almost any kind
        raise DataError(f"{where} cannot be decoded ({reason(error)}); remove it or get it again") from None
    return pixels[..., None] if grey else pixels
