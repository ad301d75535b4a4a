import hashlib
import urllib.error

import pytest
import refusals
import torch
from hostile import Call
from torch_fidelity import feature_extractor_inceptionv3 as theirs

from bench.data import load
from bench.measure.features import inception
from bench.measure.features.classifier import CLASSIFIERS
from bench.measure.features.extractors import Extractor, open_extractor
from bench.measure.features.inception import InceptionFeatures
from bench.runtime.devices import full_float32
from bench.runtime.errors import FeatureError

FILE = "weights-inception-2015-12-05-6726825d.pth"


BOMB = Call(open, "/nonexistent-folder/never", "w")


def test_extraction_does_not_depend_on_the_batch():
    images, extractor = load("digits").images[:50], open_extractor("digits")
    whole, split = extractor.extract(images), extractor.extract(images, batch=7)
    for one, other, width in zip(whole, split, (64, 112), strict=True):
        assert (one.shape, one.dtype) == ((50, width), "float32")
        torch.testing.assert_close(torch.from_numpy(one), torch.from_numpy(other))


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_an_embedded_extractor_names_its_weights(name):
    digest = hashlib.sha256(CLASSIFIERS[name].weights.read_bytes()).hexdigest()
    extractor = open_extractor(name)
    assert (extractor.weights_hash, extractor.key) == (digest, f"{name}-{digest[:16]}")
    assert extractor.embedded


def test_resized_features_are_cifars_of_images_of_any_size():
    images = torch.randint(0, 256, (5, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    resized = open_extractor("cifar10-resized")
    for one, other in zip(resized.extract(images), open_extractor("cifar10").extract(images), strict=True):
        assert (one == other).all()
    for shape in ((3, 16, 16), (1, 8, 8), (3, 40, 70)):
        flat = torch.full((2, *shape), 90, dtype=torch.uint8)  # of one colour, it stays so
        whole = torch.full((2, 3, 32, 32), 90, dtype=torch.uint8)
        torch.testing.assert_close(*(torch.from_numpy(resized.extract(x)[0]) for x in (flat, whole)))
    assert resized.metrics["frechet"] == "fd_cifar10_resized"
    assert resized.embedded


def test_none_opens_nothing_and_unknown_features_are_refused():
    assert open_extractor("none") is None
    with pytest.raises(
        FeatureError, match="unknown features 'vgg'; choose digits, cifar10, cifar10-16, cifar10-resized, inception, "
    ):
        open_extractor("vgg")


def test_a_missing_weights_file_is_named_with_its_source(tmp_path):
    message = refusal(tmp_path / "absent.pth")
    assert FILE in message
    assert "https://" in message


def test_offline_without_weights_says_what_goes_where(standard_place, monkeypatch):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    message = refusals.refusal(FeatureError, open_extractor, "inception")
    assert str(standard_place) in message
    assert "--inception-weights" in message


@pytest.fixture
def standard_place(tmp_path, monkeypatch):
    """Return where the published weights would be downloaded to."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return tmp_path / "hub" / "checkpoints" / FILE


def test_a_download_is_checked_before_it_takes_its_place(standard_place, tmp_path, monkeypatch):
    source = tmp_path / "source.pth"
    source.write_bytes(b"something else")
    monkeypatch.setattr(inception, "URL_INCEPTION_V3", source.as_uri())
    with pytest.raises(FeatureError, match=r"cannot be had \(invalid hash value"):
        open_extractor("inception")
    assert list(standard_place.parent.iterdir()) == []


@pytest.mark.parametrize("name", ["inception", "clean-fid"])
def test_the_standard_place_holds_the_published_file_or_none(standard_place, name):
    standard_place.parent.mkdir(parents=True)
    torch.save({"weight": BOMB}, standard_place)
    message = r"is damaged: its sha256 begins with .* and not 6726825d; remove it"
    assert str(standard_place) in refusals.refusal(FeatureError, open_extractor, name, match=message)


def refusal(path):
    """Return the one-line message of the FeatureError."""
    message = refusals.refusal(FeatureError, open_extractor, "inception", path)
    assert str(path) in message
    return message


NO_STATE, OTHER_NETWORK = "does not hold a state dict", "does not hold torch-fidelity's Inception"
CONTENTS = {
    "code": ({"weight": BOMB}, "damaged or not plain tensors"),
    "numbers for names": ({1: torch.zeros(3)}, NO_STATE),
    "a tensor": (torch.zeros(3), NO_STATE),
    "nested": ({"model": {"weight": torch.zeros(3)}}, NO_STATE),
    "integers": ({"weight": torch.zeros(3, dtype=torch.int64)}, "weight is torch.int64, not floating point"),
    "a huge shape": ({"Conv2d_1a_3x3.conv.weight": torch.zeros(1).expand(2**20, 2**20)}, OTHER_NETWORK),
    "another network": ({"weight": torch.zeros(3)}, f"{OTHER_NETWORK} (Missing key(s)"),
}


@pytest.mark.parametrize(("content", "message"), CONTENTS.values(), ids=CONTENTS)
def test_files_of_something_else_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "weights.pth")
    assert message in refusal(tmp_path / "weights.pth")


def test_damaged_files_and_folders_are_refused(tmp_path):
    assert "no Inception weights at" in refusal(tmp_path)
    for content in (b"", b"not a pickle", b"PK\x03\x04 half a zip"):
        (tmp_path / "weights.pth").write_bytes(content)
        assert "damaged or not plain tensors" in refusal(tmp_path / "weights.pth")


@pytest.mark.slow
def test_weights_of_another_shape_are_refused(random_inception, tmp_path):
    state = torch.load(random_inception)
    state["fc.bias"] = torch.zeros(7)
    torch.save(state, tmp_path / "weights.pth")
    assert "(size mismatch for fc.bias" in refusal(tmp_path / "weights.pth")


class Elsewhere(torch.nn.Module):
    """A network on another device, as far as this machine can have one: it notes where its images are sent."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, device="meta"))

    def forward(self, images):
        self.seen = images.device
        return torch.zeros(len(images), 2), torch.zeros(len(images), 3)


@pytest.mark.parametrize(("name", "size"), [("digits", "8x8"), ("cifar10", "32x32"), ("cifar10-16", "16x16")])
def test_images_of_another_size_are_refused(name, size):
    with pytest.raises(FeatureError, match=f"--features {name} reads {size} images only, not 8x9"):
        open_extractor(name).extract(torch.zeros(2, 3, 8, 9, dtype=torch.uint8))


def test_images_are_sent_to_the_network():
    network = Elsewhere()
    pooled, spatial = Extractor("toy", network, {}, "0").extract(load("digits").images[:5], batch=3)
    assert (network.seen, pooled.shape, spatial.shape) == (torch.device("meta"), (5, 2), (5, 3))


def test_the_network_is_moved_to_its_device():
    for device in ("meta", torch.device("meta")):
        assert next(open_extractor("digits", device=device).network.parameters()).device.type == "meta"


@pytest.fixture
def sent_home(monkeypatch):
    """Give tensors of the ``meta`` device, which hold nothing, values on the host; note which came from there."""
    came = []

    def cpu(self):
        came.append(self.device)
        return torch.zeros(self.shape) if self.device.type == "meta" else self

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    return came


def inception_elsewhere():
    """Inception's last layer alone, on the ``meta`` device."""
    network = InceptionFeatures.__new__(InceptionFeatures)
    torch.nn.Module.__init__(network)
    network.fc = torch.nn.Linear(2048, 1008, device="meta")
    return network


@pytest.mark.parametrize(
    ("make", "width", "classes"),
    [(lambda: open_extractor("digits", device="meta"), 64, 10), (inception_elsewhere, 2048, 1008)],
)
def test_logits_of_another_device_are_of_and_on_the_host(sent_home, make, width, classes):
    """On the host, the product with weights elsewhere would be refused."""
    found = make().logits(torch.zeros(5, width))
    assert ([device.type for device in sent_home], found.device.type, found.shape) == (["meta"], "cpu", (5, classes))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_features_and_logits_of_another_device_come_home():
    full_float32()
    images = load("digits").images[:50]
    here, there = (open_extractor("digits", device=device) for device in ("cpu", "cuda"))
    for one, other in zip(here.extract(images), there.extract(images), strict=True):
        assert other.dtype == "float32"
        # Sums of at most 576 float32 products of order 1, in another order and four layers deep: 1e-6 each.
        torch.testing.assert_close(torch.from_numpy(one), torch.from_numpy(other), rtol=1e-4, atol=1e-4)
    pooled = torch.from_numpy(here.extract(images)[0])
    torch.testing.assert_close(here.logits(pooled), there.logits(pooled), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def pictures():
    return torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.slow
def test_inception_features(random_inception, pictures):
    extractor = open_extractor("inception", random_inception)
    seen = []
    extractor.network.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: seen.append(output))
    pooled, spatial = extractor.extract(pictures)
    assert (pooled.shape, spatial.shape) == ((3, 2048), (3, 17 * 17 * 7))
    assert spatial.min() == 0  # after rectification
    # Height, width, channel: entry (h, w, c) stands at (17 h + w) * 7 + c.
    assert seen[0].shape == (3, 192, 17, 17)
    assert spatial[1, (17 * 4 + 9) * 7 + 2] == seen[0][1, 2, 4, 9]
    plain = theirs.FeatureExtractorInceptionV3("plain", ["2048"], feature_extractor_weights_path=str(random_inception))
    assert torch.equal(torch.from_numpy(pooled), plain(pictures)[0])


KINDS = ("frechet", "spatial", "kid", "precision", "recall", "inception_score")
PLAIN = ("fid", "sfid", "kid", "precision", "recall", "is")
OTHER = ("fd", "sfd", "kid", "precision", "recall", "is")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "prefix"), [("inception", ""), ("clean-fid", "clean_")])
def test_only_published_weights_make_a_fid(random_inception, monkeypatch, name, prefix):
    found = open_extractor(name, random_inception).metrics
    assert dict(found) == {kind: f"{prefix}{stem}_inception" for kind, stem in zip(KINDS, OTHER, strict=True)}
    monkeypatch.setattr(inception, "CHECKSUM", hashlib.sha256(random_inception.read_bytes()).hexdigest()[:8])
    found = open_extractor(name, random_inception).metrics
    assert dict(found) == {kind: f"{prefix}{stem}" for kind, stem in zip(KINDS, PLAIN, strict=True)}


@pytest.mark.slow
def test_logits_are_the_graphs_without_bias(random_inception, pictures):
    extractor = open_extractor("inception", random_inception)
    layers = ["2048", "logits_unbiased"]
    plain = theirs.FeatureExtractorInceptionV3("plain", layers, feature_extractor_weights_path=str(random_inception))
    pooled, logits = plain(pictures)
    assert torch.equal(extractor.logits(pooled), logits)


@pytest.mark.slow
def test_weights_that_are_not_finite_are_refused(random_inception, tmp_path):
    state = torch.load(random_inception, weights_only=True)
    state["fc.weight"][3, 4] = float("nan")
    torch.save(state, tmp_path / "weights.pth")
    assert "fc.weight holds values that are not finite" in refusal(tmp_path / "weights.pth")


@pytest.mark.slow
def test_the_standard_place_serves_what_has_the_published_checksum(random_inception, standard_place, monkeypatch):
    standard_place.parent.mkdir(parents=True)
    standard_place.symlink_to(random_inception)
    monkeypatch.setattr(inception, "CHECKSUM", hashlib.sha256(random_inception.read_bytes()).hexdigest()[:8])
    assert open_extractor("inception").metrics["frechet"] == "fid"
