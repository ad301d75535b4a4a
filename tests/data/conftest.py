"""Small datasets in every format, as their publishers write them."""

import gzip
import pickle
import struct

import numpy as np
import pictures
import pytest

from bench.data import DataError, Dataset, load, load_path

STEMS = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]


UNSET = b"J\xff\xff\xff\xff"  # the opcode of -1


def random_images(count, size=32, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


@pytest.fixture
def images():
    """A function of count, size, channels and seed that returns uint8 [N, H, W, C]."""
    return random_images


@pytest.fixture
def encoded():
    """A function that returns an image's bytes as a file of some format."""

    return pictures.encoded


@pytest.fixture
def refusal():
    """A function that loads a path, or a known name below it, and returns the one line of the DataError."""

    def refused(path, name=None, **options):
        with pytest.raises(DataError) as caught:
            load(name, path, **options) if name else load_path("mine", path, **options)
        message = str(caught.value)
        assert message.isprintable()
        return message

    return refused


@pytest.fixture
def sound():
    """A function that asserts that something is a dataset whose parts fit together."""

    def check(data):
        assert isinstance(data, Dataset)
        count = len(data.images)
        assert (data.images.dtype.itemsize, data.images.shape) == (1, (count, *data.shape))
        assert count > 0
        assert data.labels.shape == data.heldout.shape == (count,)
        assert data.labels.min() >= 0

    return check


def by_channel(pixels):
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).reshape(len(pixels), -1)


@pytest.fixture
def python_batch():
    """A function of images, labels and protocol that returns a batch as today's numpy pickles it."""

    def pickled(pixels, labels, protocol=2):
        entries = {b"batch_label": b"one", b"labels": labels, b"data": by_channel(pixels), b"filenames": [b"x.png"]}
        return pickle.dumps(entries, protocol=protocol)

    return pickled


def word(text):
    return b"U" + bytes([len(text)]) + text


@pytest.fixture
def python_2_batch():
    """A function of images and labels that returns the opcodes Python 2 wrote: byte strings, names of old numpy."""

    def pickled(pixels, labels):
        data = by_channel(pixels)
        rows, columns = (b"J" + struct.pack("<i", n) for n in data.shape)
        new = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + word(b"b") + b"\x87R"
        dtype = b"cnumpy\ndtype\n" + word(b"u1") + b"K\x00K\x01\x87R(K\x03" + word(b"|") + b"NNN" + UNSET * 2
        raw = b"T" + struct.pack("<i", data.size) + data.tobytes()
        array = new + b"(K\x01" + rows + columns + b"\x86" + dtype + b"K\x00tb" + b"\x89" + raw + b"tb"
        numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
        return b"\x80\x02}q\x00(" + word(b"data") + array + word(b"labels") + numbers + b"u."

    return pickled


@pytest.fixture
def binary_batch():
    """A function of images and labels that returns records of a label and 3072 bytes."""

    def packed(pixels, labels):
        return np.column_stack([np.array(labels, np.uint8), by_channel(pixels)]).tobytes()

    return packed


@pytest.fixture
def batches():
    """A function that returns six batches by file name: two images each, labels 0 to 9 and again 0, 1."""

    def written(encode, suffix=""):
        pixels, labels = random_images(12), [k % 10 for k in range(12)]
        return {
            stem + suffix: encode(pixels[2 * k : 2 * k + 2], labels[2 * k : 2 * k + 2]) for k, stem in enumerate(STEMS)
        }

    return written


@pytest.fixture
def packed():
    """A function that writes members by name into a tar.gz."""

    return lambda path, members: path.write_bytes(gzip.compress(pictures.as_tar(members), 1))
