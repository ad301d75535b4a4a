"""Pickles that would run something, take all memory or never end: refused before a single object is made."""

import io
import os
import pickle
import struct
import subprocess
import sys
import warnings
import zipfile

import numpy as np
import pytest
import torch
from cases import at_first
from hostile import touch

from bench.data import cifar
from bench.files.pickles import UnfoldingError, UnsafePickleError, load_plain, restricted_load
from bench.models.checkpoints import edm_pickle as edm_objects
from bench.models.checkpoints.state_dicts import Inert


class Thing:
    """An inert stand-in."""

    def __init__(self, *args):
        self.args = args

    def __setstate__(self, state):
        self.state = state


def function(*args):
    return Thing(*args)


ALLOWED = {("a", "Thing"): Thing, ("a", "function"): function}


def load(data, encoding="ASCII"):
    return restricted_load(io.BytesIO(data), ALLOWED, encoding)


def number(opcode, kind, value):
    return opcode + struct.pack(kind, value)


PLAIN = {"x": [1, 2.5, None, True, "ä", b"\xff" * 300, (1, (2, 3)), {4}, 2**100, -1], "y": {"z": list(range(2000))}}


@pytest.mark.parametrize("protocol", range(2, 6))
def test_plain_values_come_back(protocol):
    if protocol < 4:  # these call builtins to make bytes and sets
        values = {"x": [1, 2.5, None, True, "ä", (1, (2, 3)), 2**100, -1], "y": {"z": list(range(2000))}}
        assert load(pickle.dumps(values, protocol)) == values
    else:
        assert load(pickle.dumps(PLAIN, protocol)) == PLAIN


def test_bytes_beyond_a_frame_come_back():
    """Picklers end a frame before a long text or bytes, and write these outside of frames."""
    values = [os.urandom(200_000), "x" * 200_000, bytearray(100_000), list(range(50_000))]
    assert load(pickle.dumps(values, 5)) == values


def test_texts_of_python_2_stay_bytes_if_asked():
    assert load(b"\x80\x02U\x02\xff\xfe.", encoding="bytes") == b"\xff\xfe"


def test_a_file_may_hold_more_before_and_after():
    file = io.BytesIO(b"before" + pickle.dumps([1]) + b"after")
    file.seek(6)
    assert restricted_load(file, {}) == [1]


def test_allowed_names_are_called():
    found = load(b"\x80\x02ca\nfunction\n(K\x01K\x02tRca\nThing\n)\x81}X\x01\x00\x00\x00kK\x03sb\x86.")
    assert (found[0].args, found[1].state) == ((1, 2), {"k": 3})


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_run(tmp_path, protocol):
    marker = tmp_path / "ran"
    data = pickle.dumps([touch(marker)], protocol)
    with pytest.raises(UnsafePickleError, match=r"asks for 'posix\.system', which such a file does not need"):
        load(data)
    assert not marker.exists()
    pickle.loads(data)  # the same bytes, read the usual way
    assert marker.exists()


def nested(step, count, end=b"N"):
    """A dictionary with one key: a tuple wrapped ``count`` times by ``step``."""
    return b"\x80\x02})" + step * count + end + b"s."


# In the frame: a list, LONG_BINPUT and half of its index; the rest of the frame is dropped by the unpickler, which then
# reads another index from beyond it.
CROSSING = b"\x80\x04" + number(b"\x95", "<Q", 4) + b"]r\x00\x00" + b"\x00\x00\xff\xff."
ABSURD = {
    "memo": (b"\x80\x02]" + number(b"r", "<I", 2**32 - 1) + b".", "memo index"),
    "memo by text": (b"]p99999999999\n.", "memo index"),
    "memo across a frame": (CROSSING, "crosses a frame"),
    "doubled key": (nested(b"2\x86", 64), "tuple"),
    "doubled by memo": (b"\x80\x02})" + b"q\x010h\x01h\x01\x86" * 64 + b"Ns.", "tuple"),
    "doubled after BUILD": (b"\x80\x02})" + b"2\x86Nb" * 64 + b"Ns.", "tuple"),
    "deep key": (nested(b"\x85", 100_000), "tuple"),
    "deep key by calls": (nested(b"q\x010ca\nfunction\nh\x01\x85R\x85", 1000), "tuple"),
    "long tuple": (b"(" + b"N" * 101 + b"t.", "tuple of more than 100"),
    "frozen sets": (b"\x80\x04}" + b"(\x91" * 40 + b"Ns.", "FROZENSET"),
    "extension": (b"\x80\x02\x82\x01.", "EXT1"),
    "empty sets": (b"\x80\x04" + b"\x8f" * 300_000 + b".", "more than 262144 steps"),
    "persistent": (b"\x80\x02Ncx\ny\nQ.", "outside itself|asks for"),
    "outside": (b"\x80\x02NQ.", "outside itself"),
    "poisoned class": (b"\x80\x02ca\nThing\nN}X\x01\x00\x00\x00kK\x01s\x86b.", "changes what stands for a name"),
    "poisoned function": (b"\x80\x02ca\nfunction\nN}X\x01\x00\x00\x00kK\x01s\x86b.", "changes what stands for a name"),
    "poisoned by memo": (
        b"\x80\x02ca\nfunction\nq\x010h\x01N}X\x01\x00\x00\x00kK\x01s\x86b.", "changes what stands for a name"
    ),
    "control characters": (b"ca\x1b[31m\nb\n.", r"asks for 'a\\x1b\[31m\.b', "),
    "endless name": (b"c" + b"a" * 10**6 + b"\nb\n.", r"asks for 'a{76}\.\.\., "),
}  # fmt: skip


@pytest.mark.parametrize("name", ABSURD)
def test_what_no_pickler_writes_is_refused_in_one_line(name):
    data, message = ABSURD[name]
    with pytest.raises(UnsafePickleError, match=message) as caught:
        load(data)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200
    assert not hasattr(Thing, "k")
    assert not hasattr(function, "k")


DAMAGED = {
    "empty": b"",
    "text": b"no pickle at all",
    "cut": pickle.dumps(list(range(100)))[:-20],
    "frame beyond the end": b"\x80\x04" + number(b"\x95", "<Q", 2**60) + b"N.",
    "bytes": b"\x80\x04" + number(b"\x8e", "<Q", 2**40) + b"abc.",
    "text of any size": b"\x80\x04" + number(b"\x8d", "<Q", 2**40) + b"abc.",
    "bytearray": b"\x80\x05" + number(b"\x96", "<Q", 2**40) + b"abc.",
    "number": b"\x80\x02" + number(b"\x8b", "<i", 2**31 - 1) + b"1.",
    "digits": b"L" + b"9" * 100_000 + b"L\n.",
    "nothing to take": b"\x80\x02R.",
    "no mark": b"\x80\x02t.",
    "unknown memo": b"\x80\x02h\x07.",
    "a step that is none": b"\x80\x02\xff.",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_raises(name):
    with pytest.raises((ValueError, EOFError, LookupError)):
        load(DAMAGED[name])


@pytest.mark.parametrize("seed", at_first(range(4), 2))
def test_random_damage_raises_or_reads(seed):
    rng, whole = np.random.default_rng(seed), pickle.dumps(PLAIN, 2 + seed)
    refused = 0
    for _ in range(100):
        data = bytearray(whole)
        for at in rng.integers(len(data), size=rng.integers(1, 4)):
            data[at] = rng.integers(256)
        try:
            load(bytes(data))
        except MemoryError:
            pytest.fail(f"memory was taken for {bytes(data)!r}")
        except Exception:  # of which kind is the reader's affair: pickle raises almost any
            refused += 1
    assert refused > 30


LIMITED = """
import io, resource, sys
from bench.files.pickles import restricted_load
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
data = sys.stdin.buffer.read()
for file in (io.BytesIO(data), open(sys.argv[1], "rb")):
    try:
        restricted_load(file, {})
    except MemoryError:
        sys.exit("it ran out of memory")
    except Exception:  # of which kind is not what is asked here, only that it was refused without memory
        continue
    sys.exit("it was read")
"""


HUGE = [
    *(name for name in DAMAGED if b"\x80" in DAMAGED[name][:1]),
    "memo",
    "memo across a frame",
    pytest.param("empty sets", marks=pytest.mark.slow),  # as many steps as are allowed
]


@pytest.mark.parametrize("name", HUGE)
def test_nothing_is_made_room_for(tmp_path, name):
    """With a gigabyte of address space for everything; numpy and torch, which would fill it, are not imported."""
    data = DAMAGED[name] if name in DAMAGED else ABSURD[name][0]
    (tmp_path / "a.pkl").write_bytes(data)
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "a.pkl")]
    done = subprocess.run(command, input=data, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("allowed", [cifar._allowed(100), edm_objects._allowed()], ids=["cifar", "edm"])
def test_no_reader_lets_a_pickle_reach_a_real_name(allowed):
    """Whatever stands for a name is ours, and inert."""
    ours = {cifar.__name__, edm_objects.__name__, Inert.__module__}
    assert {stand_in.__module__ for stand_in in allowed.values()} <= ours


def test_bytes_that_a_text_stands_for_are_not_repeated_at_will():
    """Protocol 2 writes bytes as a call on a text; the call again and again would unfold a small file."""
    text = number(b"X", "<I", 1000) + b"a" * 1000
    data = b"\x80\x02](" + text + b"q\x01c_codecs\nencode\nq\x020" + b"h\x02h\x01\x85R" * 20 + b"e."
    with pytest.raises(ValueError, match="repeats its bytes"):
        restricted_load(io.BytesIO(data), cifar._allowed(len(data)))


@pytest.mark.parametrize(("zipped", "is_mapped"), [(True, False), (True, True), (False, False), (False, True)])
def test_plain_tensors_come_back(tmp_path, monkeypatch, zipped, is_mapped):
    load, mapped = torch.load, []
    monkeypatch.setattr(torch, "load", lambda path, **how: mapped.append(how["mmap"]) or load(path, **how))
    content = {"a": torch.arange(3.0), "b": {"c": [1, "x"]}}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    found = load_plain(tmp_path / "a.pt", is_mapped=is_mapped)
    assert mapped == [zipped and is_mapped]  # what is not zipped cannot be
    assert torch.equal(found["a"], content["a"])
    assert found["b"] == content["b"]


@pytest.mark.parametrize("zipped", [True, False])
def test_no_command_in_a_file_of_tensors_is_run(tmp_path, zipped):
    torch.save({"a": touch(tmp_path / "ran")}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
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
