"""Folders and zips of image files: members are read into memory, never extracted, and decoded one at a time."""

from __future__ import annotations

import json
import os
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.data.decoder import decode
from bench.data.image_stack import Picture, Pictures, ReadOptions, class_indices, gather
from bench.files.limits import refuse_large_file
from bench.runtime.errors import DataError, one_line, quoted, reason

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
LABELS_FILE = "dataset.json"  # of EDM and StyleGAN
_SPLIT = {"train", "test"}
_NAMED = 3  # folders and links that a note names
_SHORT = 12  # letters of a suffix in a note


@dataclass(frozen=True)
class _Member:
    name: PurePosixPath  # relative to the source
    where: str
    stored: int
    read: Callable[[], bytes]


@dataclass
class _Remarks:
    """What of a source is not in its images."""

    files: Counter[str] = field(default_factory=Counter)  # passed over, by suffix
    folders: set[str] = field(default_factory=set)  # whose names begin with a dot
    links: set[str] = field(default_factory=set)  # to folders
    pictures: Counter[str] = field(default_factory=Counter)
    lossy: set[str] = field(default_factory=set)

    def is_read(self, name: PurePosixPath) -> bool:
        """Tell whether a file is an image or holds labels; any other is counted."""
        for depth, part in enumerate(name.parts[:-1], start=1):
            if part.startswith("."):
                self.folders.add("/".join(name.parts[:depth]))
                return False
        kind = name.suffix.lower()
        if not name.name.startswith(".") and (kind in SUFFIXES or name.name == LABELS_FILE):
            return True
        kind = kind if len(kind) <= _SHORT else "of other suffixes"
        self.files["with a leading dot" if name.name.startswith(".") else kind or "without suffix"] += 1
        return False

    def passed_over(self) -> Iterator[str]:
        """Yield what was not read."""
        if self.files:
            kinds = sorted(self.files.items(), key=lambda item: (-item[1], item[0]))
            listed = ", ".join(f"{count} {kind}" for kind, count in kinds)
            yield f"{_number(self.files.total(), 'file', 'files')} passed over ({listed})"
        if self.folders:
            count = _number(len(self.folders), "folder", "folders")
            yield f"{count} with a leading dot passed over ({_first(self.folders)})"
        if self.links:
            count = _number(len(self.links), "link to a folder", "links to folders")
            yield f"{count} not followed ({_first(self.links)})"

    def note(self, source: str) -> str:
        """Return all of it in one line, empty where there is nothing."""
        read = (f"{_number(count, 'image', 'images')} {remark}" for remark, count in self.pictures.items())
        parts = "; ".join([*self.passed_over(), *read])
        return one_line(f"{source}: {parts}") if parts else ""


def _number(count: int, singular: str, plural: str) -> str:
    return f"{count} {singular if count == 1 else plural}"


def _first(names: set[str]) -> str:
    return ", ".join([*sorted(names)[:_NAMED], *(["..."] if len(names) > _NAMED else [])])


def read_folder(path: Path, options: ReadOptions) -> Pictures:
    """Read the images below a folder in the order of their paths.

    The class is what EDM's and StyleGAN's ``dataset.json`` says, else the name of an image's own folder. Where every
    image lies below a folder ``train`` or a folder ``test``, and both occur, those below ``test`` are held out. Links
    to folders are not followed, and names with a leading dot are passed over.

    Raises:
        DataError: no images, unreadable ones, images of different sizes, or records of a run of this suite.
    """
    samples = [*sorted(path.glob("cells/*/samples.npz")), *path.glob("samples.npz")]
    if samples:  # else its figures would be taken for images
        raise DataError(f"{path} holds records of a run, its samples are in files like {samples[0]}; name one of these")
    remarks = _Remarks()
    try:
        return _read(str(path), _files(path, remarks), remarks, options)
    except OSError as error:
        raise DataError(f"{error.filename or path} cannot be read ({reason(error)}); check links and rights") from None


def read_zip(path: Path, options: ReadOptions) -> Pictures:
    """Read a zip as :func:`read_folder` reads a folder.

    Raises:
        DataError: not a zip, or as there.
    """
    remarks = _Remarks()
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(str(path), _members(path, archive, remarks), remarks, options)
    except DataError:
        raise
    except Exception as error:  # on damaged bytes zipfile raises almost any kind
        raise DataError(f"{path} is neither an npz, a folder nor a zip of images ({reason(error)})") from None


def _read(source: str, members: Iterable[_Member], remarks: _Remarks, options: ReadOptions) -> Pictures:
    members = sorted(members, key=lambda member: member.name)
    label_files = [member for member in members if member.name.name == LABELS_FILE]
    images = [member for member in members if member.name.name != LABELS_FILE]
    if not images:
        nothing = f"{source} holds no images (looked for {', '.join(sorted(SUFFIXES))})"
        raise DataError("; ".join([nothing, *remarks.passed_over()]))
    names = [member.name for member in images]
    labels, heldout = _sort_out(names)
    given = _given_labels(label_files, names) if options.labels else None
    pixels = gather(source, len(images), _decoded(images, remarks), options)
    lossy = min(remarks.lossy, default="")  # jpeg before webp
    return Pictures(pixels, labels if given is None else given, heldout, lossy, remarks.note(source))


def _files(root: Path, remarks: _Remarks) -> Iterator[_Member]:
    def stop(error: OSError) -> None:
        raise error  # os.walk would leave out the folder without a word

    for folder, folders, names in os.walk(root, onerror=stop):
        inside = Path(folder).relative_to(root)
        remarks.links |= {(inside / name).as_posix() for name in folders if os.path.islink(Path(folder, name))}
        remarks.folders |= {(inside / name).as_posix() for name in folders if name.startswith(".")} - remarks.links
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path, relative = Path(folder, name), PurePosixPath((inside / name).as_posix())
            if not remarks.is_read(relative):
                continue
            status = path.stat()
            if stat.S_ISREG(status.st_mode):
                refuse_large_file(str(path), status.st_size, status.st_size)
                yield _Member(relative, str(path), status.st_size, path.read_bytes)
            else:
                remarks.files["of another kind"] += 1  # a pipe or device


def _members(path: Path, archive: zipfile.ZipFile, remarks: _Remarks) -> Iterator[_Member]:
    for info in archive.infolist():
        name = PurePosixPath(info.filename.replace("\\", "/"))
        where = f"{path}: {info.filename}"
        if name.is_absolute() or ".." in name.parts:  # nothing is extracted, but no zip of images needs such a name
            raise DataError(f"{where} leads out of the archive; pack it anew")
        if info.is_dir() or not remarks.is_read(name):
            continue
        if stat.S_ISLNK(info.external_attr >> 16):
            raise DataError(f"{where} is a link, which no zip of images needs; pack the image itself")
        refuse_large_file(where, info.file_size, info.compress_size)
        yield _Member(name, where, info.compress_size, partial(archive.read, info))


def _sort_out(names: list[PurePosixPath]) -> tuple[NDArray[np.int64], NDArray[np.bool_] | None]:
    """Return the labels that the folders' names give, and the held-out part if the folders tell one."""
    sides = [_SPLIT.intersection(name.parts[:-1]) for name in names]
    if any(len(side) != 1 for side in sides) or len(set.union(*sides)) != 2:
        return class_indices([name.parent.name for name in names]), None
    classes = ["" if name.parent.name in _SPLIT else name.parent.name for name in names]
    return class_indices(classes), np.array(["test" in side for side in sides])


def _given_labels(files: Sequence[_Member], names: Sequence[PurePosixPath]) -> NDArray[np.int64] | None:
    """Return the labels, int64 [N], that files of labels give the images below their folders; None without any."""
    tables = {file.name.parent: table for file in files if (table := _label_table(file)) is not None}
    if not tables:
        return None
    where = {file.name.parent: file.where for file in files}
    labels = np.zeros(len(names), dtype=np.int64)
    for k, name in enumerate(names):
        root = next((parent for parent in name.parents if parent in tables), None)
        label = None if root is None else tables[root].get(str(name.relative_to(root)), tables[root].get(""))
        if label is None:
            place = next(iter(where.values())) if root is None else where[root]
            raise DataError(f"{place} has no label of {name}; add it, or remove that image")
        labels[k] = label
    return labels


def _label_table(file: _Member) -> Mapping[str, int] | None:
    """Return the label of each image's path below the file; the label of all under "" where there are no classes.

    None where the file is another program's.
    """
    try:
        content = json.loads(file.read())
        if not isinstance(content, dict) or "labels" not in content:
            return None
        pairs = content["labels"]
        if pairs is None:
            return {"": 0}
        return {str(PurePosixPath(str(name).replace("\\", "/"))): _label(value) for name, value in pairs}
    except Exception as error:  # on damaged bytes zipfile and json raise almost any kind
        raise DataError(
            f"{file.where} does not give each image one class ({reason(error)}); mend it, or remove it to take the"
            " folders as classes"
        ) from None


def _label(value: Any) -> int:
    """Return a class that is a whole number, or a vector with a single 1."""
    if isinstance(value, list) and sorted(value) == [0] * (len(value) - 1) + [1]:
        return value.index(1)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 2**31:
        raise ValueError(f"{quoted(value)} is no class")
    return value


def _decoded(members: Iterable[_Member], remarks: _Remarks) -> Iterator[Picture]:
    for member in members:
        try:
            content = member.read()
        except Exception as error:  # on damaged bytes zipfile and zlib raise almost any kind
            raise DataError(f"{member.where} cannot be decoded ({reason(error)}); remove it or get it again") from None
        picture = decode(member.where, content, member.stored)
        remarks.pictures.update(picture.remarks)
        remarks.lossy |= {picture.lossy} - {""}
        yield picture
