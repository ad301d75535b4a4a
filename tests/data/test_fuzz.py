"""Every format with random damage: only a DataError of one line, or a dataset whose parts fit together, comes out."""

import gzip
import io
import zipfile

import numpy as np
import pytest
from pictures import as_tar, zipped

from bench.data import DataError, load_path

ROUNDS = 50


@pytest.fixture
def sample(images, encoded, batches, python_batch, python_2_batch, binary_batch):
    """A function of a format that returns the file's name and bytes, and what to wrap damaged bytes in."""

    def made(kind):
        if kind in ("png", "jpeg", "bmp", "webp"):
            return f"a.{kind}", encoded(images(1, 16)[0], kind), bytes
        if kind.startswith("zip"):
            members = {f"{k % 2}/{k}.png": encoded(image) for k, image in enumerate(images(3, 8))}
            method = zipfile.ZIP_DEFLATED if "deflated" in kind else zipfile.ZIP_STORED
            return "a.zip", zipped(io.BytesIO(), members, method).getvalue(), bytes
        if kind.startswith("npz"):
            file = io.BytesIO()
            save = np.savez_compressed if "deflated" in kind else np.savez
            save(file, arr_0=images(3, 8), arr_1=["a", "b", "a"])
            return "a.npz", file.getvalue(), bytes
        if kind.startswith("tar"):
            folder, files = "cifar-10-batches-bin", batches(binary_batch, ".bin")
            content = as_tar({f"{folder}/{name}": batch for name, batch in files.items()})
            return (
                ("a.tar.gz", gzip.compress(content, 1), bytes) if "gz" in kind else ("a.tar.gz", content, gzip.compress)
            )
        # Too many bytes are pixels to hit the opcodes by chance, so these come from one image.
        encode = python_2_batch if kind.endswith("2") else python_batch
        others = batches(python_batch)
        del others["data_batch_1"]

        def wrap(content):
            members = {f"cifar-10-batches-py/{name}": batch for name, batch in others.items()}
            return gzip.compress(as_tar(members | {"cifar-10-batches-py/data_batch_1": content}), 1)

        return "a.tar.gz", encode(images(1), [3]), wrap

    return made


def damaged(content, rng):
    """Flip a bit, overwrite, cut out, insert or cut off; half of the time near an end, where headers are."""
    size = len(content)
    at = int(rng.integers(size))
    if rng.random() < 0.5:
        at = min(size - 1, int(rng.exponential(60)))
        at = at if rng.random() < 0.5 else size - 1 - at
    length = int(rng.integers(1, 9))
    noise = rng.integers(0, 256, length, dtype=np.uint8).tobytes()
    return [
        content[:at] + bytes([content[at] ^ (1 << int(rng.integers(8)))]) + content[at + 1 :],
        content[:at] + noise + content[at + length :],
        content[:at] + content[at + length :],
        content[:at] + noise + content[at:],
        content[:at],
        content[:at] + b"\xff" * length + content[at + length :],
    ][int(rng.integers(6))]


KINDS = [
    "png", "jpeg", "bmp", "webp", "zip", "zip deflated", "npz", "npz deflated",
    "tar", "tar gz", "pickle", "pickle of python 2",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_damage_anywhere_is_refused_in_one_line_or_harmless(tmp_path, sample, sound, kind):
    rng = np.random.default_rng(KINDS.index(kind))
    name, content, wrap = sample(kind)
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / name
    source = tmp_path / "in" if kind in ("png", "jpeg", "bmp", "webp") else file
    file.write_bytes(wrap(content))
    sound(load_path("mine", source))
    messages = []
    for _ in range(ROUNDS):
        file.write_bytes(wrap(damaged(content, rng)))
        try:
            sound(load_path("mine", source))
        except DataError as error:
            messages.append(str(error))
    assert all(message.isprintable() and str(file) in message for message in messages)
    # Of all formats BMP has the largest part whose damage shows nowhere but in the pixels.
    assert len(messages) >= ROUNDS // 5
    assert [path.name for path in tmp_path.rglob("*")] == ["in", name]
