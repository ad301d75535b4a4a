"""Readers of records: what they give, and how they say what is wrong."""

import json
import os
import pickle
import zipfile

import numpy as np
import pandas as pd
import pytest
from refusals import refusal

from analysis.records import files as bounded
from analysis.records.files import open_records, read_bytes, read_json, read_npy, read_npz, read_table, reopen


def test_sound_files_come_back(tmp_path):
    arrays = {"a": np.arange(3), "b/c": np.full((2, 2), np.nan), "d": np.array(["x"]), "e": np.array(np.inf)}
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    found = read_npz(tmp_path / "a.npz")
    assert list(found) == list(arrays)
    assert all((np.array_equal(found[k], v, equal_nan=v.dtype.kind == "f")) for k, v in arrays.items())
    np.save(tmp_path / "a.npy", arrays["a"])
    assert read_npy(tmp_path / "a.npy").tolist() == [0, 1, 2]
    (tmp_path / "a.json").write_text(json.dumps({"ä": [1.5, None]}))
    assert read_json(tmp_path / "a.json") == {"ä": [1.5, None]}


def test_tables_are_those_of_pandas(tmp_path):
    table = pd.DataFrame({"x": [1, 2], "y": ["a", "b"], "z": [0.5, None]})
    table.to_csv(tmp_path / "a.csv", index=False)
    pd.testing.assert_frame_equal(read_table(tmp_path / "a.csv"), table)
    assert read_table(tmp_path / "a.csv", dtype={"x": str})["x"].tolist() == ["1", "2"]


@pytest.mark.parametrize("read", [read_json, read_npy, read_npz, read_table])
def test_files_that_are_not_there(tmp_path, read):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        read(tmp_path)


def test_one_kind_of_file_is_no_other_and_objects_are_not_unpickled(tmp_path):
    for array, reason in ((np.arange(3), ""), (np.array([{}], dtype=object), "allow_pickle=False")):
        np.savez(tmp_path / "a.npz", a=array)
        np.save(tmp_path / "a.npy", array)
        for end, read, other in (("npz", read_npz, read_npy), ("npy", read_npy, read_npz)):
            assert refusal(ValueError, other, tmp_path / f"a.{end}")
            assert not reason or reason in refusal(ValueError, read, tmp_path / f"a.{end}")


def test_what_unfolds_is_refused_unread(tmp_path, monkeypatch):
    """A thousand zeros a byte; the limit is 250 where it matters."""
    monkeypatch.setattr(bounded, "_MOST", 2**16)
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(2**17))
    assert "unfolds" in refusal(ValueError, read_npz, tmp_path / "a.npz")


def test_numbers_whose_squares_overflow(tmp_path):
    np.savez(tmp_path / "a.npz", small=np.float32([1e30]), large=np.array([1.0, -1e101]))
    assert refusal(ValueError, read_npz, tmp_path / "a.npz") == "large holds numbers beyond 1e+100"


def test_a_header_that_declares_any_size(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("a.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (2**50,)})
    assert refusal(ValueError, read_npz, tmp_path / "a.npz")


READERS = {
    (read_npy, read_npz): [b"", b"text", pickle.dumps([1]), b"PK\x03\x04", b"\x93NUMPY\x01\x00\xff\xff{"],
    (read_json,): [b"", b"[" * 200_000, b"\xff", b"{"],
    (read_table,): [b"", b"\xff\xfe\n\xff", b'a\n1\n"open', b"\x1f\x8b\x08"],
}


@pytest.mark.parametrize(
    ("read", "content"), [(read, one) for readers, all_ in READERS.items() for read in readers for one in all_]
)
def test_files_of_something_else(tmp_path, read, content):
    (tmp_path / "a").write_bytes(content)
    assert refusal(ValueError, read, tmp_path / "a")


def test_json_larger_than_any_record(tmp_path, monkeypatch):
    monkeypatch.setattr(bounded, "_LARGEST_JSON", 10)
    (tmp_path / "a.json").write_text("[" + "1," * 10 + "1]")
    assert "more than 10 bytes" in refusal(ValueError, read_json, tmp_path / "a.json")


@pytest.mark.parametrize(("offset", "value"), [(6, 1), (8, 99)])  # of the local header: encrypted; an unknown packing
def test_a_member_that_cannot_be_unpacked_is_damage(tmp_path, offset, value):
    path = tmp_path / "records.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("run.json", "{}")
    content = bytearray(path.read_bytes())
    content[offset] = value
    content[content.index(b"PK\x01\x02") + offset + 2] = value
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"encrypted|compression"):
        read_bytes(zipfile.Path(zipfile.ZipFile(path)) / "run.json")


def test_a_reopened_archive_has_a_position_of_its_own(tmp_path):
    """A descriptor that shares its position, as that of a forked process does, no longer moves it."""
    with zipfile.ZipFile(tmp_path / "records.zip", "w") as archive:
        archive.writestr("run.json", "{}")
    (tmp_path / "run.json").write_text("{}")
    records = open_records(tmp_path)
    shared = os.dup(records.root.fp.fileno())
    reopen(records)
    before = os.lseek(shared, 0, os.SEEK_CUR)
    assert read_bytes(records / "run.json") == b"{}"
    assert os.lseek(shared, 0, os.SEEK_CUR) == before
    os.close(shared)
