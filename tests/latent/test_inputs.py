"""Latents of a file: their conditions, what is refused, and the warning where their scale was forgotten."""

import zipfile

import numpy as np
import pytest
import torch
from refusals import refusal

from bench.data import to_unit
from bench.latent.inputs import read_embeddings, read_latents
from bench.runtime.errors import UserError

LATENTS = np.random.default_rng(0).normal(size=(6, 4, 8, 8)).astype(np.float32)


def test_latents_are_a_dataset_of_floats(tmp_path, capsys):
    """A condition that no latent has counts too; nothing is scaled."""
    np.savez(tmp_path / "latents.npz", latents=LATENTS, cond=np.array([0, 2, 2, 0, 3, 3]))
    data = read_latents(tmp_path / "latents.npz")
    assert (data.shape, data.classes, data.count("train"), data.count("heldout")) == ((4, 8, 8), 4, 6, 0)
    assert torch.equal(to_unit(data.pick("train", torch.tensor([1, 4]))), torch.from_numpy(LATENTS[[1, 4]]))
    assert data.pick_labels("train", torch.tensor([1, 4])).tolist() == [2, 3]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("factor", [5.49, 0.18])
def test_a_forgotten_scaling_factor_is_a_warning_with_the_number(tmp_path, capsys, factor):
    np.savez(tmp_path / "latents.npz", latents=factor * LATENTS)
    assert read_latents(tmp_path / "latents.npz").classes == 1
    line = capsys.readouterr().err
    assert line.startswith("warning: the latents of")
    assert f"have standard deviation {factor * LATENTS.std(ddof=1):.3g}, far from 1" in line
    assert line.count("\n") == 1


UNUSABLE = [
    ({"other": LATENTS}, "no array 'latents'"),
    ({"latents": LATENTS[0]}, r"not \[N, C, h, w\]"),
    ({"latents": LATENTS[:1]}, "at least two latents"),
    ({"latents": LATENTS[..., :1]}, "at least two latents of at least 2x2"),
    ({"latents": LATENTS.astype(int)}, "not float32"),
    ({"latents": LATENTS * np.inf}, "not finite"),
    ({"latents": LATENTS, "cond": np.zeros(5, int)}, r"'cond' is \[5\], not \[6\]"),
    ({"latents": LATENTS, "cond": np.zeros(6)}, "not a whole number"),
    ({"latents": LATENTS, "cond": np.arange(6) - 1}, "from 0, not from -1"),
]


@pytest.mark.parametrize(("arrays", "message"), UNUSABLE)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_latents_that_cannot_be_used_are_one_line(tmp_path, arrays, message):
    np.savez(tmp_path / "latents.npz", **arrays)
    assert refusal(UserError, read_latents, tmp_path / "latents.npz", match=message)


@pytest.mark.parametrize("rows", [1, 3])
def test_sizes_of_images_are_shared_or_one_a_prompt(tmp_path, rows):
    """The row of no condition takes the first one's."""
    arrays = {"embeddings": np.zeros((3, 5, 12), np.float32), "negative_embeddings": np.ones((2, 5, 12), np.float32)}
    ids = np.arange(6 * rows, dtype=np.float32).reshape(rows, 6)
    np.savez(tmp_path / "e.npz", **arrays, time_ids=ids)
    conditions, has_null = read_embeddings(tmp_path / "e.npz")
    assert has_null
    assert (conditions.embeddings.shape, conditions.embeddings[3].min()) == ((4, 5, 12), 1)
    assert conditions.added["time_ids"].tolist() == (ids.tolist() if rows == 1 else [*ids.tolist(), ids[0].tolist()])


@pytest.mark.parametrize(("count", "message"), [(75_000, "unfolds to over 250 times"), (10_000_000, "more than")])
def test_latents_that_unfold_beyond_reason_are_not_read(tmp_path, count, message):
    """A header declares them; nothing of that size is allocated."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (count, 4, 16, 16)}
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive, archive.open("latents.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(UserError, match=message):
        read_latents(tmp_path / "bomb.npz")
