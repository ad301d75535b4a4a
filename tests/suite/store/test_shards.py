"""Shards: read whole and unchanged, or not at all."""

import os
import shutil
import subprocess

import numpy as np
import pytest

from bench.suite.store import shards
from bench.suite.store.shards import DamagedShard, is_intact, read_shard, write_shard

ARRAYS = {
    "samples": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    "free/state/mean": np.linspace(0, 1, 5),
    "pooled": np.ones((2, 3), np.float32),
    "extractor": np.array("digits-2"),
    "nfe": np.array(3),
    "empty": np.zeros((0, 4)),
}


@pytest.fixture
def shard(tmp_path):
    write_shard(tmp_path / "shard", ARRAYS)
    return tmp_path / "shard"


def alone(folder):
    """Tell whether nothing lies beside a shard."""
    return [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_arrays_come_back_as_they_were(shard):
    found = read_shard(shard)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
    assert is_intact(shard)
    assert alone(shard)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_the_checksum_is_one_that_a_shell_can_check(shard):
    check = ["sha256sum", "--check", "SHA256SUMS"]
    assert subprocess.run(check, cwd=shard, capture_output=True, text=True).stdout == "arrays.npz: OK\n"
    (shard / "arrays.npz").write_bytes(b"other")
    assert subprocess.run(check, cwd=shard, capture_output=True, text=True).returncode == 1


@pytest.mark.parametrize("file", ["arrays.npz", "SHA256SUMS"])
@pytest.mark.parametrize("bit", [0, 7])
def test_any_flipped_bit_is_found(shard, file, bit):
    content = (shard / file).read_bytes()
    for position in {*range(0, len(content), 97), len(content) - 1}:
        flipped = bytearray(content)
        flipped[position] ^= 1 << bit
        (shard / file).write_bytes(flipped)
        assert not is_intact(shard)
        with pytest.raises(DamagedShard, match="is damaged"):
            read_shard(shard)
    (shard / file).write_bytes(content)
    assert is_intact(shard)


@pytest.mark.parametrize("file", ["arrays.npz", "SHA256SUMS", ""])
@pytest.mark.parametrize("spoil", [os.remove, lambda path: path.write_bytes(b""), lambda path: os.truncate(path, 20)])
def test_what_is_cut_or_gone_is_found(shard, file, spoil):
    spoil(shard / file) if file else shutil.rmtree(shard)
    assert not is_intact(shard)
    with pytest.raises(DamagedShard, match=str(shard)):
        read_shard(shard)


def test_objects_are_neither_written_nor_read(shard, tmp_path):
    with pytest.raises(ValueError, match="allow_pickle"):
        write_shard(tmp_path / "objects", {"a": np.array([{}], dtype=object)})
    assert not (tmp_path / "objects").exists()
    np.savez(shard / "arrays.npz", a=np.array([{}], dtype=object))
    for content in ((shard / "arrays.npz").read_bytes(), b"PK rubbish"):  # of the right checksum
        (shard / "arrays.npz").write_bytes(content)
        (shard / "SHA256SUMS").write_bytes(shards._sums(content))
        with pytest.raises(DamagedShard, match="is damaged"):
            read_shard(shard)


def test_a_shard_takes_the_place_of_a_damaged_one(shard):
    (shard / "SHA256SUMS").unlink()
    write_shard(shard, {"a": np.ones(2)})
    assert read_shard(shard)["a"].tolist() == [1, 1]
    assert alone(shard)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("there", [True, False])
def test_what_cannot_be_written_is_not_there(tmp_path, monkeypatch, error, there):
    def fail(*args):
        raise error

    folder = tmp_path / "shard"
    if there:
        write_shard(folder, ARRAYS)
        (folder / "SHA256SUMS").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(shards.os, "replace", fail)
        with pytest.raises(type(error)):
            write_shard(folder, {"a": np.ones(2)})
    assert not is_intact(folder)
    left = [path for path in tmp_path.iterdir() if path != folder]
    assert isinstance(error, KeyboardInterrupt) or not left  # a full disk needs the room
    write_shard(folder, {"a": np.ones(2)})
    assert read_shard(folder)["a"].tolist() == [1, 1]
