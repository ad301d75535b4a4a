import collections
import io
import os
import pickle
import warnings

import numpy as np
import pytest
import torch
from edm_files import Persistent, dump, edm_modules, module_state, write_edm_pickle
from hostile import Call, touch
from refusals import refusal

from bench.models.checkpoints.edm_pickle import StoredObject, StoredTensor, read_objects, stored_tensors
from bench.runtime.errors import CheckpointError


def written(path, content):
    """Write stand-ins and read them back."""
    with edm_modules():
        dump(path, content)
    return read_objects(path)


def test_objects_and_numbers_come_back_inert(tmp_path):
    kwargs = {"scale": np.sqrt(0.5), "count": np.int64(3), "single": np.float32(1.5), "plain": [1, 2.5, None, "x"]}
    content = written(tmp_path / "a.pkl", {"ema": Persistent("Net", {}, (1, 2), kwargs), "array": np.arange(3)})
    assert isinstance(content["ema"], StoredObject)
    assert (content["ema"].class_name, content["ema"].state["_init_args"]) == ("Net", (1, 2))
    assert content["ema"].state["_init_kwargs"] == kwargs
    assert type(content["ema"].state["_init_kwargs"]["scale"]) is float
    assert not isinstance(content["array"], np.ndarray)


def test_numbers_of_the_other_byte_order_are_not_misread(tmp_path):
    content = written(tmp_path / "a.pkl", {"scale": np.dtype(">f8").type(2.0), "dtype": np.dtype(">f8")})
    assert content["scale"] == 2.0  # numpy pickles its numbers in the native order
    swapped = pickle.dumps(np.float64(2.0)).replace(b"<", b">")
    (tmp_path / "b.pkl").write_bytes(swapped)
    assert not isinstance(read_objects(tmp_path / "b.pkl"), float)


def test_numbers_of_older_numpy_are_read(tmp_path):
    path = tmp_path / "a.pkl"
    data = pickle.dumps(np.float64(2.5), protocol=3)
    path.write_bytes(data.replace(b"numpy._core.", b"numpy.core."))  # its module had this name before numpy 2
    assert read_objects(path) == 2.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_are_decoded_as_float32(tmp_path, dtype):
    values = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    parts = {
        "weight": values,
        "turned": values.permute(2, 0, 1),
        "part": values[1:, :, 2],
        "one": values.sum(),
        "none": values[:0],
        "resample_filter": values[0],
    }
    module = written(tmp_path / "a.pkl", Persistent("Net", module_state(parts)))
    found = stored_tensors(module)
    assert set(found) == set(parts)
    for name, holder in found.items():
        assert isinstance(holder, StoredTensor)
        got = holder.tensor()
        assert got.dtype == torch.float32
        assert got.is_contiguous()
        assert torch.equal(got, parts[name].float())


def test_reading_warns_of_nothing(tmp_path):
    path = tmp_path / "a.pkl"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_edm_pickle(path)
        for holder in stored_tensors(read_objects(path)["ema"]).values():
            holder.tensor()


def test_names_are_those_of_a_state_dict(tmp_path):
    inner = Persistent("Inner", module_state({"weight": torch.ones(2), "bias": torch.zeros(2)}))
    outer = Persistent("Outer", module_state({"u": torch.ones(1)}, {"model": inner, "absent": None}))
    assert list(stored_tensors(written(tmp_path / "a.pkl", outer))) == ["u", "model.weight", "model.bias"]


def hostile(marker):
    return {
        "system": touch(marker),
        "eval": Call(eval, f"open({str(marker)!r}, 'w')"),
        "inside": Persistent("EDMPrecond", {"_modules": {"model": touch(marker)}}),
        "torch-load": Call(torch.load, str(marker)),
        "numpy-load": Call(np.load, str(marker)),
    }


@pytest.mark.parametrize("name", ["system", "eval", "inside", "torch-load", "numpy-load"])
def test_a_hostile_pickle_is_refused_unrun(tmp_path, name):
    marker = tmp_path / "ran"
    content = {"ema": hostile(marker)[name]}
    assert refusal(CheckpointError, written, tmp_path / "a.pkl", content, match=r"asks for .*; nothing of it was run")
    assert not marker.exists()


def test_a_name_of_many_lines_is_shown_in_one(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x04\x8c\x0ba\nb\x1b[31mcde\x8c\x01x\x93.")
    assert refusal(CheckpointError, read_objects, path, match="nothing of it was run")


def test_a_file_cannot_change_what_stands_for_its_names(tmp_path):
    """BUILD with a pair sets attributes of whatever it finds, so that a later file would meet them."""
    path = tmp_path / "a.pkl"
    with edm_modules():
        for name in (
            "torch._utils\n_rebuild_tensor_v2", "torch_utils.persistence\n_reconstruct_persistent_obj",
            "collections\nOrderedDict", "dnnlib.util\nEasyDict",
        ):  # fmt: skip
            head = b"\x80\x02c" + f"{name}\n".encode()
            path.write_bytes(head + b"N}X\x06\x00\x00\x00poisonK\x01s\x86b.")
            with pytest.raises(CheckpointError):
                read_objects(path)
    assert not any(hasattr(kind, "poison") for kind in (StoredTensor, StoredObject, collections.OrderedDict))


def nested_key(depth):
    """A dictionary whose key is a tuple within a tuple, and so on: its hash calls itself."""
    return b"\x80\x02}" + b")" + b"\x85" * depth + b"N" + b"s."


ABSURD = {
    "cut": pickle.dumps({"ema": list(range(100))})[:-20],
    "key": nested_key(100_000),
    "persistent-id": b"\x80\x02X\x01\x00\x00\x00aQ.",
}


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_bytes_are_refused_in_one_line(tmp_path, name):
    path = tmp_path / "a.pkl"
    path.write_bytes(ABSURD[name])
    assert refusal(CheckpointError, read_objects, path, match=r"a\.pkl is (truncated or )?not an EDM")


def storage_bytes(values):
    """Return the pickle of a storage, as torch writes it inside another pickle."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch deprecates the kind of storage that its pickles hold
        torch.save(values.storage(), file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def zip_bytes(values):
    file = io.BytesIO()
    torch.save(values, file)
    return file.getvalue()


def tensor_of(data, offset=0, size=(4,), stride=(1,)):
    return Call(
        torch._utils._rebuild_tensor_v2, Call(torch.storage._load_from_bytes, data), offset, size, stride, False, {}
    )


FOUR = storage_bytes(torch.ones(4))
BAD_TENSORS = {
    "beyond-the-end": (tensor_of(FOUR, 1), "beyond its stored numbers"),
    "unfolding": (tensor_of(FOUR, 0, (10**6, 10**6), (0, 0)), "beyond its stored numbers"),
    "negative": (tensor_of(FOUR, 0, (4,), (-1,)), "not an ordinary tensor"),
    "huge": (tensor_of(FOUR, 0, (10**30,), (1,)), "not an ordinary tensor"),
    "shape-of-text": (tensor_of(FOUR, 0, ("a",), (1,)), "not an ordinary tensor"),
    "no-tuple": (tensor_of(FOUR, 0, 4, 1), "not an ordinary tensor"),
    "ragged": (tensor_of(FOUR, 0, (2, 2), (1,)), "not an ordinary tensor"),
    "integers": (tensor_of(storage_bytes(torch.ones(4, dtype=torch.int64))), "int64, not floating-point"),
    "cut": (tensor_of(FOUR[:-6]), "cannot be read"),
    "no-storage": (tensor_of(b"abc"), "cannot be read"),
    "hostile": (tensor_of(pickle.dumps(Call(os.system, "true"), protocol=2)), "cannot be read"),
    "zip": (tensor_of(zip_bytes(torch.ones(4))), "cannot be read"),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_bad_tensors_are_refused_when_decoded(tmp_path, name):
    tensor, message = BAD_TENSORS[name]
    module = written(tmp_path / "a.pkl", Persistent("Net", {"_parameters": {"weight": tensor}}))
    with pytest.raises(CheckpointError, match=message):
        stored_tensors(module)["weight"].tensor()


NO_MODULES = [
    ({"_parameters": {"weight": 3}}, "'weight' in it is not a tensor"),
    ({"_parameters": [1]}, "'_parameters' is not a dictionary of names"),
    ({"_parameters": {3: 1}}, "'_parameters' is not a dictionary of names"),
    ({"_modules": {"model": 3}}, "'model' in it is not a module"),
    ({"_modules": {"model": Persistent("Net", {"_buffers": {"u": "x"}})}}, "'model.u' in it is not a tensor"),
]


@pytest.mark.parametrize(("state", "message"), NO_MODULES)
def test_what_is_no_module_is_refused(tmp_path, state, message):
    with pytest.raises(CheckpointError, match=message):
        stored_tensors(written(tmp_path / "a.pkl", Persistent("Net", state)))


def test_modules_that_repeat_without_end_are_refused(tmp_path):
    module = Persistent("Net", module_state({}))
    for _ in range(40):  # 2^40 paths lead to the innermost
        module = Persistent("Net", {"_modules": {"a": module, "b": module}})
    with pytest.raises(CheckpointError, match="more than 20000 modules"):
        stored_tensors(written(tmp_path / "a.pkl", module))
