from __future__ import annotations

import os
import warnings
import zipfile

import pytest
import torch

from bench.files.pickles import UnfoldingError, load_plain


@pytest.mark.parametrize("zipped", [True, False])
def test_plain_tensors_come_back(tmp_path, zipped):
    content = {"a": torch.arange(3.0), "b": {"c": [1, "x"]}}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    found = load_plain(tmp_path / "a.pt")
    assert torch.equal(found["a"], content["a"])
    assert found["b"] == content["b"]


class Command:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_is_run(tmp_path, zipped):
    torch.save({"a": Command(tmp_path / "ran")}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(Exception, match="nsupported"):  # torch's own kind, of which it has several
        load_plain(tmp_path / "a.pt")
    assert not (tmp_path / "ran").exists()


def test_a_compressed_archive_is_refused_unread(tmp_path):
    torch.save({"a": torch.zeros(10)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as source:
        members = {name: source.read(name) for name in source.namelist()}
    for method, refused in ((zipfile.ZIP_STORED, False), (zipfile.ZIP_DEFLATED, True), (zipfile.ZIP_LZMA, True)):
        with zipfile.ZipFile(tmp_path / "a.pt", "w", method) as target:
            for name, content in members.items():
                target.writestr(name, content)
        if refused:
            with pytest.raises(UnfoldingError, match="compressed archive"):
                load_plain(tmp_path / "a.pt")
        else:
            assert torch.equal(load_plain(tmp_path / "a.pt")["a"], torch.zeros(10))


def test_an_archive_whose_members_overlap_is_refused_unread(tmp_path):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt", "a") as archive:
        archive.filelist += [max(archive.infolist(), key=lambda info: info.file_size)] * 3
        archive._didModify = True
    with pytest.raises(UnfoldingError):
        load_plain(tmp_path / "a.pt")


def test_oddities_cause_no_warning(tmp_path):
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "a.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_plain(tmp_path / "a.pt")["a"].is_sparse
