import hashlib
import importlib.metadata
import json
import zipfile

import numpy as np
import pytest
import torch
from cases import at_first
from PIL import Image
from refusals import outcome_of

from bench.data import load
from bench.measure.__main__ import main
from bench.measure.features.extractors import open_extractor
from bench.measure.quality.frechet import feature_moments, frechet_distance

DIGITS = ("--features", "digits", "--quiet", "--device", "cpu")
METRICS = [f"{name}_digits" for name in ("fd", "sfd")] + ["fd_digits_strat"]
METRICS += [f"{name}_digits" for name in ("kid", "precision", "recall", "is")]


@pytest.fixture(scope="module")
def heldout():
    return load("digits").part("heldout")[:200]


@pytest.fixture
def samples(tmp_path, heldout):
    """Write 200 digits as a npz."""
    return save(tmp_path / "samples.npz", heldout)


def save(path, images, **more):
    np.savez(path, arr_0=images.movedim(1, -1).numpy(), **more)
    return path


def measure(*args):
    return main([str(arg) for arg in args])


def table(capsys):
    """Return the printed rows as {metric: (value, N, reference)}."""
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["metric", "value", "N", "reference"]
    cells = [row.split(maxsplit=3) for row in rows if not row.startswith("note: ")]
    return {metric: (value, int(n), reference) for metric, value, n, reference in cells}


def scored(capsys, *args):
    """Return the rows that a command must print."""
    assert measure(*args) == 0
    return table(capsys)


def refused(capsys, *args):
    """Return the one line of a command that must fail."""
    outcome = outcome_of(capsys, main, *args)
    assert outcome.refused(), outcome
    assert outcome.out == ""
    return outcome.err


def test_scores_against_the_digits(samples, heldout, capsys):
    found = scored(capsys, samples, "--reference", "digits", *DIGITS)
    assert list(found) == METRICS
    assert all(n == 200 for _, n, _ in found.values())
    assert (found["is_digits"][2], found["kid_digits"][2]) == ("none", "digits-train (1442)")
    extractor = open_extractor("digits")
    ours, theirs = (extractor.extract(images)[0] for images in (heldout, load("digits").part("train")))
    wanted = frechet_distance(*feature_moments(ours), *feature_moments(theirs))
    assert float(found["fd_digits"][0]) == pytest.approx(wanted, rel=1e-5)  # six digits are printed


def test_the_record_says_what_the_scores_depend_on(samples, tmp_path, capsys):
    out = tmp_path / "new" / "scores.json"
    assert measure(samples, "--reference", "digits", "--out", out, *DIGITS) == 0
    assert [path.name for path in out.parent.iterdir()] == ["scores.json"]
    found = json.loads(out.read_text())
    assert (found["samples"]["shape"], found["reference"]["n"]) == ([200, 1, 8, 8], 1442)
    assert found["features"]["name"] == "digits"
    assert found["features"]["weights_sha256"] == open_extractor("digits").weights_hash
    assert found["versions"]["torch"] == importlib.metadata.version("torch")
    first = (found["samples"]["content_hash"], found["reference"]["statistics_hash"])
    changed = save(tmp_path / "samples.npz", load("digits").part("heldout")[1:201])
    measure(changed, "--reference", "digits", "--out", out, *DIGITS)
    again = json.loads(out.read_text())
    assert again["samples"]["content_hash"] != first[0]
    assert again["reference"]["statistics_hash"] == first[1]


def test_npz_folder_and_zip_score_alike(samples, heldout, tmp_path, capsys):
    folder = tmp_path / "folder"
    folder.mkdir()
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        for number, image in enumerate(heldout):
            path = folder / f"{number:03}.png"
            Image.fromarray(image[0].numpy()).save(path)
            archive.write(path, path.name)
    found = []
    for form in (samples, folder, tmp_path / "archive.zip"):
        assert measure(form, "--reference", form, *DIGITS) == 0
        said = capsys.readouterr().out
        assert "note: 200 of 200 samples are images of the reference" in said
        found.append([line.split()[1:3] for line in said.splitlines() if "_digits" in line])
    assert found[0] == found[1] == found[2]


def test_a_folder_with_a_test_part_is_a_reference_without_it(samples, heldout, tmp_path, capsys):
    for number, image in enumerate(heldout):
        folder = tmp_path / "data" / ("test" if number % 4 == 0 else "train") / "one"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(folder / f"{number:03}.png")
    assert scored(capsys, samples, "--reference", tmp_path / "data", *DIGITS)["fd_digits"][2] == "data-train (150)"


def test_saved_statistics_stand_for_their_images(samples, tmp_path, capsys):
    saved = tmp_path / "reference.npz"
    first = scored(capsys, samples, "--reference", "digits", "--save-statistics", saved, *DIGITS)
    again = scored(capsys, samples, "--reference", saved, *DIGITS)
    assert {name: row[:2] for name, row in again.items()} == {name: row[:2] for name, row in first.items()}
    assert (again["fd_digits"][2], again["kid_digits"][2]) == ("reference.npz (1442)", "images of reference.npz (1442)")


def test_bare_statistics_give_the_frechet_distance_alone(samples, tmp_path, capsys):
    extractor = open_extractor("digits")
    mean, cov = feature_moments(extractor.extract(load("digits").part("train"))[0])
    np.savez(tmp_path / "edm.npz", mu=mean, sigma=cov)
    assert measure(samples, "--reference", tmp_path / "edm.npz", *DIGITS) == 0
    out = capsys.readouterr().out
    assert "note: the reference does not say which features it is of" in out
    values = {line.split()[0]: line.split()[1] for line in out.splitlines() if "_digits" in line}
    assert {name for name, value in values.items() if value != "-"} == {"fd_digits", "is_digits"}
    assert "mu_s" in next(line for line in out.splitlines() if line.startswith("sfd"))


@pytest.mark.parametrize(("batch", "channels"), at_first([(7, 3), (1000, 1)], 1))
def test_batch_and_channels_do_not_matter(samples, heldout, tmp_path, capsys, batch, channels):
    wide = save(tmp_path / "wide.npz", heldout.expand(-1, channels, -1, -1))
    first = scored(capsys, samples, "--reference", "digits", *DIGITS)
    for name, (value, *_) in scored(capsys, wide, "--reference", "digits", "--batch-size", batch, *DIGITS).items():
        if value != "-":
            assert float(value) == pytest.approx(float(first[name][0]), rel=1e-3, abs=1e-3)


MISTAKES = [
    (["--reference", "absent.npz"], "--reference absent.npz: there is no such file or folder"),
    (["--reference", "digits", "--device", "cuda"], "--device cuda is not available here; use --device auto"),
    (["--reference", "SAMPLES", "--features", "cifar10"], "--features cifar10 reads 32x32 images only, not 8x8"),
    (["--reference", "digits", "--inception-weights", "x.pth"], "no effect with --features digits"),
    (["--reference", "digits", "--batch-size", "0"], "--batch-size must lie between 1 and"),
    (["--reference", "digits", "--out", "scores.txt"], "--out must name a .json file"),
    (["--reference", "digits", "--save-statistics", "."], "--save-statistics must name a .npz file"),
    (["--reference", "other.npz"], "'mu' is [3], not [64] as --features digits"),
    (["--reference", "hostile.npz"], "'mu' is object"),
    (["--reference", "empty.npz"], "empty.npz"),
    (["--reference", "."], "no images"),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES)
def test_mistakes_are_one_line_and_write_nothing(samples, tmp_path, monkeypatch, capsys, change, message):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    np.savez("other.npz", mu=np.zeros(3), sigma=np.eye(3))
    np.savez("hostile.npz", mu=np.array([{}]), sigma=np.eye(1))
    (tmp_path / "work" / "empty.npz").write_bytes(b"")
    before = sorted(tmp_path.rglob("*"))
    change = [str(samples) if word == "SAMPLES" else word for word in change]
    asked = [samples, *DIGITS, "--out", "scores.json", "--save-statistics", "saved.npz", *change]
    assert message in refused(capsys, *asked)
    assert sorted(tmp_path.rglob("*")) == before


def test_samples_that_are_not_there(tmp_path, capsys):
    assert "SAMPLES" in (said := refused(capsys, tmp_path / "absent.npz", "--reference", "digits", *DIGITS))
    assert "absent.npz: there is no such file or folder" in said


def test_the_network_computes_in_full_float32_where_it_was_asked_to(samples, monkeypatch, capsys):
    # cuDNN's default, and a default that somebody may have changed.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    seen = []

    def opened(name, weights, device):
        seen.append((torch.backends.cudnn.allow_tf32, device))
        return open_extractor(name, weights, device)

    monkeypatch.setattr("bench.measure.__main__.open_extractor", opened)
    assert measure(samples, "--reference", "digits", *DIGITS) == 0
    assert seen == [(False, torch.device("cpu"))]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_scores_on_a_gpu_are_those_on_the_host(samples, capsys):
    found = []
    for device in ("cpu", "cuda"):
        found.append(scored(capsys, samples, "--reference", "digits", *DIGITS, "--device", device))
    for name, (value, *_) in found[0].items():
        if value != "-":
            # Features differ by 1e-5 at most, distances of order 1 by no more than some tens of that.
            assert float(found[1][name][0]) == pytest.approx(float(value), rel=1e-3, abs=1e-3)


def test_two_sets_are_told_apart(samples, heldout, tmp_path, capsys):
    """Held-out digits against the same with noise: the plain ones are closer, by both signs of the difference."""
    noise = torch.randint(-60, 60, heldout.shape, generator=torch.Generator().manual_seed(0))
    noisy = (heldout.int() + noise).clamp(0, 255).to(torch.uint8)
    paths = [save(tmp_path / "plain.npz", heldout.expand(-1, 3, -1, -1)), save(tmp_path / "noisy.npz", noisy)]
    tests, distances = [], []
    for first, second in (paths, paths[::-1]):
        out = tmp_path / "scores.json"
        assert measure(first, "--reference", "digits", "--against", second, "--out", out, "--quiet") == 0
        facts = json.loads(out.read_text())
        tests.append(facts["test"])
        distances += [row["value"] for row in facts["scores"] if row["metric"] == "fd_digits"]
        assert f"less that of {second}, paired by place: fd_digits: " in capsys.readouterr().out
    assert tests[0]["z"] == -tests[1]["z"] < -5
    assert tests[0]["p"] < 1e-6
    assert tests[0]["delta"] == pytest.approx(distances[0] - distances[1])
    few = save(tmp_path / "few.npz", heldout[:3])
    assert "give as many of both" in refused(capsys, paths[0], "--reference", "digits", "--against", few, *DIGITS)


def test_samples_that_are_reference_images_are_counted(tmp_path, heldout, capsys):
    rest = load("digits").part("train")[:100]
    sets = {
        "another order": (heldout.flip(0), 200),
        "the first half": (heldout[:100], 100),
        "every third": (heldout[::3], 67),
        "in colour, beside others": (torch.cat([heldout[:30], rest]).expand(-1, 3, -1, -1), 30),
        "others": (rest, 0),
    }
    reference = save(tmp_path / "reference.npz", heldout)
    for name, (images, count) in sets.items():
        assert measure(save(tmp_path / "some.npz", images), "--reference", reference, *DIGITS) == 0
        said = f"{count} of {len(images)} samples are images of the reference"
        assert (said in capsys.readouterr().out) is (count > 0), name


def test_images_are_resized_and_their_labels_are_not_read(tmp_path, heldout, capsys):
    """Samples of 8x8 in squares of 2x2 equal pixels, with labels that no dataset could have, are the samples again."""
    large = heldout.repeat_interleave(2, 2).repeat_interleave(2, 3).movedim(1, 3).numpy()
    np.savez(tmp_path / "large.npz", arr_0=large, arr_1=np.eye(200))
    save(tmp_path / "as_is.npz", heldout)
    tables = []
    for name, flags in (("large", ["--resize", "8", "--resize-filter", "box"]), ("as_is", [])):
        out = tmp_path / f"{name}.json"
        assert measure(tmp_path / f"{name}.npz", "--reference", "digits", *flags, "--out", out, *DIGITS) == 0
        tables.append({row["metric"]: row["value"] for row in json.loads(out.read_text())["scores"]})
    assert tables[0] == pytest.approx(tables[1])
    assert json.loads((tmp_path / "large.json").read_text())["samples"]["preprocessing"] == "resize=8 filter=box"


def test_what_was_passed_over_is_told(tmp_path, heldout, capsys):
    for number, image in enumerate(heldout[:60]):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{number}.png")
    (tmp_path / "0.tif").write_bytes(b"")
    measure(tmp_path, "--reference", "digits", *DIGITS)
    assert f"note: {tmp_path}: 1 file passed over (1 .tif)" in capsys.readouterr().out


def test_a_distance_of_small_photos_needs_no_download(tmp_path, capsys):
    pixels = torch.randint(0, 256, (400, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    first, second = save(tmp_path / "a.npz", pixels[:200]), save(tmp_path / "b.npz", pixels[200:])
    rows = scored(capsys, first, "--reference", second, "--features", "cifar10-resized", "--quiet")
    value, _, reference = rows["fd_cifar10_resized"]
    assert float(value) > 0
    assert reference == "b.npz (200); CIFAR-10's classifier on images resized to 32x32"


def test_statistics_of_samples_have_the_distances_of_their_images(samples, tmp_path, capsys):
    saved, out = tmp_path / "saved.npz", tmp_path / "scores.json"
    assert measure(samples, "--reference", samples, "--save-statistics", saved, *DIGITS) == 0
    with np.load(saved) as file:
        arrays = {name: file[name] for name in file.files if name != "arr_0"}
    np.savez(saved, **arrays)
    capsys.readouterr()
    of_images = scored(capsys, samples, "--reference", "digits", *DIGITS)
    of_statistics = scored(capsys, saved, "--reference", "digits", "--out", out, *DIGITS)
    for name in ("fd_digits", "sfd_digits"):
        assert of_statistics[name][:2] == of_images[name][:2]
    assert of_statistics["kid_digits"] == ("-", 200, "digits-train (1442) [needs the samples' images]")
    assert json.loads(out.read_text())["samples"]["n"] == 200


def test_statistics_without_their_number_and_tests_of_them_are_refused(samples, tmp_path, capsys):
    np.savez(tmp_path / "edm.npz", mu=np.zeros(64), sigma=np.eye(64))
    asked = (tmp_path / "edm.npz", "--reference", "digits", *DIGITS)
    assert "does not say of how many images it is" in refused(capsys, *asked)
    assert "a test of two sets needs the images of both" in refused(capsys, *asked, "--against", samples)
    np.savez(tmp_path / "edm.npz", m=np.zeros(64), s=np.eye(64), n=100)
    assert measure(*asked) == 0
    assert "the samples' file does not say which features it is of" in capsys.readouterr().out


@pytest.mark.parametrize("args", [[], ["samples.npz"], ["samples.npz", "--reference", "digits", "--features", "vgg"]])
def test_a_wrong_command_line_is_one_line(args, capsys):
    assert refused(capsys, *args)


def test_one_image_leaves_everything_empty(tmp_path, heldout, capsys):
    found = scored(capsys, save(tmp_path / "one.npz", heldout[:1]), "--reference", "digits", *DIGITS)
    assert {value for value, *_ in found.values()} == {"-"}
    assert found["fd_digits"][2] == "digits-train (1442) [a covariance of 64 features needs 65 images, not 1]"
    found = scored(capsys, save(tmp_path / "all.npz", heldout), "--reference", tmp_path / "one.npz", *DIGITS)
    assert {name for name, (value, *_) in found.items() if value != "-"} == {"is_digits"}


def test_an_interruption_says_so(samples, monkeypatch, capsys):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("bench.measure.__main__.collect", interrupt)
    assert measure(samples, "--reference", "digits", *DIGITS) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.slow
def test_inception_scores_images_of_different_sizes(random_inception, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("EXPOSURE_BIAS_CACHE", str(tmp_path / "cache"))
    for name in ("statistics.FEWEST_COMPARED", "scores.FEWEST_COMPARED", "scores.FEWEST_SCORED"):
        monkeypatch.setattr(f"bench.measure.quality.{name}", 4)  # a hundred images would take minutes
    generator = torch.Generator().manual_seed(0)
    sets = [torch.randint(0, 256, (5, 3, size, size), generator=generator, dtype=torch.uint8) for size in (16, 24)]
    small, large = (save(tmp_path / f"{len(images[0, 0])}.npz", images) for images in sets)
    for features, prefix in (("inception", ""), ("clean-fid", "clean_")):
        asked = ["--features", features, "--inception-weights", random_inception, "--quiet"]
        assert measure(small, "--reference", large, *asked, "--out", tmp_path / "scores.json") == 0
        out = capsys.readouterr().out
        assert "note: samples are 16x16, the reference's images 24x24: the extractor resizes both" in out
        values = {line.split()[0]: line.split()[1] for line in out.splitlines()[1:] if not line.startswith("note")}
        filled = {name for name, value in values.items() if value != "-"}
        stems = ("kid_inception", "kid_inception_error", "precision_inception", "recall_inception", "is_inception")
        assert filled == {prefix + stem for stem in stems}
        digest = hashlib.sha256(random_inception.read_bytes()).hexdigest()
        assert json.loads((tmp_path / "scores.json").read_text())["features"]["weights_sha256"] == digest
    assert len(list((tmp_path / "cache" / "statistics").iterdir())) == 2
