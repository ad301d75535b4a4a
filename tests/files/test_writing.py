import hashlib
import json

import numpy as np
import pytest

from bench.files import writing


def test_atomic_writing_leaves_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    writing.write_atomic(path, lambda partial: partial.write_text("old") and None)

    def fail(partial):
        partial.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writing.write_atomic(path, fail)
    assert path.read_text() == "old"


def test_temporary_files_keep_the_suffix_and_vanish(tmp_path):
    seen = []
    writing.write_atomic(tmp_path / "a.npz", lambda partial: seen.append(partial) or partial.write_text(""))
    assert (seen[0].suffix, [path.name for path in tmp_path.iterdir()]) == (".npz", ["a.npz"])


def test_json_refuses_what_json_cannot_say(tmp_path):
    writing.write_json(tmp_path / "a.json", {"a": [1, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, None]}
    with pytest.raises(ValueError, match="JSON compliant"):
        writing.write_json(tmp_path / "a.json", {"a": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, None]}


@pytest.mark.parametrize("text", ["", "[]", "3", '{"a": ', None])
def test_damaged_json_is_none(tmp_path, text):
    path = tmp_path / "a.json"
    if text is not None:
        path.write_text(text)
    assert writing.read_json(path) is None
    path.write_text('{"a": 1}')
    assert writing.read_json(path) == {"a": 1}


def test_a_record_is_read_only_if_no_byte_has_changed(tmp_path):
    path = tmp_path / "a.json"
    writing.write_record(path, {"a": 1, "checksum": "an old one"})
    assert writing.read_record(path) == {"a": 1}
    path.write_text(path.read_text().replace("1", "2", 1))
    assert writing.read_record(path) is None
    path.write_text('{"a": 2}')  # a published run has no checksums
    assert writing.read_record(path) == {"a": 2}
    path.write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")
    assert writing.read_record(path) is None


@pytest.mark.parametrize("compressed", [True, False])
def test_arrays_come_back(tmp_path, compressed):
    blocks = [np.arange(6, dtype=np.uint8).reshape(3, 2), np.ones((1, 2), np.uint8)]
    writing.write_arrays(tmp_path / "a.npz", {"x": blocks[0], "y": blocks[1]}, compressed)
    writing.write_blocks(tmp_path / "b.npz", "x", 4, blocks, {"y": np.array(["a"])})
    writing.write_array(tmp_path / "c.npy", blocks[0])
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        np.testing.assert_array_equal(a["x"], blocks[0])
        np.testing.assert_array_equal(b["x"], np.concatenate(blocks))
        assert b["y"].tolist() == ["a"]
    np.testing.assert_array_equal(np.load(tmp_path / "c.npy"), blocks[0])


def test_files_are_told_unchanged_by_size_and_sum(tmp_path):
    writing.write_bytes(tmp_path / "a", b"abc")
    sums = {"a": hashlib.sha256(b"abc").hexdigest()}
    assert writing.unchanged(tmp_path, {"a": 3})
    assert writing.unchanged(tmp_path, {"a": 3}, sums)
    assert not writing.unchanged(tmp_path, {"a": 4})
    assert not writing.unchanged(tmp_path, {"a": 3}, {"a": "0"})
    assert not writing.unchanged(tmp_path, {"a": 3, "b": 1})
    assert not writing.unchanged(tmp_path, {"x" * 5000: 3})


def test_half_written_files_and_folders_are_dropped(tmp_path):
    writing.write_bytes(tmp_path / "in" / "whole", b"")
    writing.partial_path(tmp_path / "in" / "a.npz").write_bytes(b"")
    writing.partial_path(tmp_path / "folder").mkdir()
    writing.drop_partials(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["in", "whole"]
