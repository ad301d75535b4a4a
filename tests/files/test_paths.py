import pytest

from bench.files.paths import with_home


@pytest.mark.parametrize("key", ["weights", "adapter", "alphas_cumprod", "latents", "embeddings", "vae", "path"])
def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path, key):
    monkeypatch.setenv("HOME", str(tmp_path))
    entry = {key: "~/x.py:load", "T": 10, "schedule": "~"}
    assert with_home(entry) == {key: f"{tmp_path}/x.py:load", "T": 10, "schedule": "~"}
    assert with_home({key: "a/~/x"}) == {key: "a/~/x"}
