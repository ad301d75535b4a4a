"""What a download left in the place of a file is named by every reader of checkpoints and images."""

import pytest

from bench.data import load_path
from bench.files.kinds import placeholder
from bench.models.checkpoints.formats import describe
from bench.models.checkpoints.state_dicts import file_hash
from bench.runtime.errors import CheckpointError, DataError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PAGES = ["<!DOCTYPE html><title>404", "\n <HTML lang='en'>", "<?xml version='1.0'?><Error>"]


@pytest.mark.parametrize("text", [POINTER, *PAGES])
@pytest.mark.parametrize("name", ["x.pt", "x.pkl", "x.safetensors", "x.npz", "x.zip", "x.tar.gz", "x"])
def test_readers_name_what_is_not_the_file(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    kind = "a pointer of Git LFS .* run git lfs pull" if text == POINTER else "a web page .* download it again"
    with pytest.raises(DataError, match=f"{name} is {kind}"):
        load_path("mine", path)
    read = describe if name.endswith((".pkl", ".safetensors")) else file_hash  # what a run does first
    with pytest.raises(CheckpointError, match=f"{name} is {kind}"):
        read(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02", b"version 2", b"<htm"])
def test_other_files_are_themselves(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    assert placeholder(tmp_path / "x") == ""
