from pathlib import Path

import pytest

from bench.models.checkpoints import formats
from bench.models.checkpoints.formats import located
from bench.runtime.errors import CheckpointError


@pytest.fixture
def resolved(monkeypatch, tmp_path):
    """The ids that were looked up, which all are found."""
    asked = []
    monkeypatch.setattr(formats, "resolve_hub", lambda name: asked.append(name) or tmp_path)
    monkeypatch.chdir(tmp_path)
    return asked


@pytest.mark.parametrize("name", ["google/ddpm-cifar10-32", "owner/model-1.0", "owner/v2.5", "o.w/n.e_r"])
def test_hub_ids_are_looked_up(resolved, tmp_path, name):
    assert located(Path(name)) == tmp_path
    assert resolved == [name]


@pytest.mark.parametrize(
    "name", ["dir/file.pt", "dir/file.SAFETENSORS", "dir/net.pkl", "file.pt", "a/b/c", "../a", "/a/b", "model", ""]
)
def test_paths_are_left_alone(resolved, name):
    assert located(Path(name)) == Path(name)
    assert resolved == []


@pytest.mark.parametrize("name", ["owner/model", "owner/model-1.0"])
def test_a_folder_that_is_there_comes_first(resolved, tmp_path, name):
    (tmp_path / name).mkdir(parents=True)
    assert located(Path(name)) == Path(name)
    assert resolved == []


ID, FILE = "write the model's id, ", "download the file and give its path"


ADDRESSES = [
    ("https://huggingface.co/owner/name", f"{ID}owner/name"),
    ("http://www.hf.co/owner/name/", f"{ID}owner/name"),
    ("hf.co/owner/name", f"{ID}owner/name"),
    ("hf://owner/name", f"{ID}owner/name"),
    ("https://huggingface.co/owner/name.git", f"{ID}owner/name"),
    ("https://huggingface.co/owner/name?library=diffusers", f"{ID}owner/name"),
    ("huggingface.co/owner/name/tree/main", f"{ID}owner/name"),
    ("huggingface.co/owner/name/tree/v1.0/unet", f"{ID}owner/name@v1.0"),
    ("huggingface.co/owner/name/blob/main/unet/diffusion_pytorch_model.safetensors", f"{ID}owner/name"),
    ("huggingface.co/owner/name/resolve/main/x.pt?download=true", f"{ID}owner/name, or {FILE}"),
    ("https://huggingface.co/datasets/owner/name", FILE),
    ("https://example.com/model.pt", FILE),
    ("file:///data/model.pt", "give the path alone"),
]


@pytest.mark.parametrize(("address", "advice"), ADDRESSES)
def test_an_address_of_the_web_says_what_to_write_instead(resolved, address, advice):
    with pytest.raises(CheckpointError) as caught:
        located(Path(address))
    assert str(caught.value).endswith(f" is an address of the web, not a path; {advice}")
    assert resolved == []


@pytest.mark.parametrize("name", ["C:/data/model.pt", "hf.community/x/model.pt", "hf.co/owner/name"])
def test_paths_that_look_like_addresses_are_paths(resolved, tmp_path, name):
    (tmp_path / "hf.co/owner/name").mkdir(parents=True)
    assert located(Path(name)) == Path(name)
