"""Folders and zips of images: splits told by folders, strange names, links, bombs, and files that are no images."""

import io
import json
import os
import stat
import warnings
import zipfile
import zlib

import numpy as np
import pytest
from pictures import zipped
from PIL import Image, PngImagePlugin

from bench.data import Preprocessing, load, load_path
from bench.data.image_stack import class_indices
from bench.files import limits


def write(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.fixture(params=["folder", "zip"])
def source(request, tmp_path):
    """A function that writes files and returns the folder or the zip that holds them."""

    def written(files):
        if request.param == "folder":
            write(tmp_path / "set", files)
            return tmp_path / "set"
        return zipped(tmp_path / "set.zip", dict(reversed(files.items())))

    return written


@pytest.fixture
def tree(images, encoded):
    """A function that returns files by name, each another image."""

    def files(*names):
        return {name: encoded(image) for name, image in zip(names, images(len(names), 4), strict=True)}

    return files


@pytest.mark.parametrize("root", ["", "deeper/"])
def test_train_and_test_folders_are_a_split(source, tree, root):
    names = ("test/cat/0.png", "test/dog/0.png", "train/cat/0.png", "train/cat/1.png", "train/dog/0.png")
    data = load_path("mine", source(tree(*(root + name for name in names))))
    assert (data.heldout.tolist(), data.labels.tolist()) == ([True, True, False, False, False], [0, 1, 0, 0, 1])


def test_a_split_without_classes(source, tree):
    data = load_path("mine", source(tree("test/0.png", "train/0.png", "train/1.png")))
    assert (data.heldout.tolist(), data.labels.tolist()) == ([True, False, False], [0, 0, 0])


def test_a_number_goes_before_the_folders_split(source, tree):
    names = ("test/a/0.png", "test/a/1.png", "train/a/0.png", "train/a/1.png")
    data = load_path("mine", source(tree(*names)), heldout_every=4)
    assert data.heldout.tolist() == [False, False, False, True]


@pytest.mark.parametrize("names", [("train/a.png", "b.png"), ("train/a.png", "train/b.png"), ("train/test/a.png",)])
def test_folders_that_tell_no_split(source, tree, names):
    assert not load_path("mine", source(tree(*names))).heldout.any()


def test_the_split_is_told_by_folders_below_the_source(tmp_path, tree):
    write(tmp_path / "train" / "set", tree("test/a.png", "b.png"))
    assert not load_path("mine", tmp_path / "train" / "set").heldout.any()


CLASSES = [
    (["b", "a", "b", "c"], [1, 0, 1, 2]),
    (["10", "9", "10", "0"], [2, 1, 2, 0]),
    (["10", "9", "x", "0"], [1, 2, 3, 0]),
    (["01", "1", "0", "1"], [1, 2, 0, 2]),
    (["²", "1", "1", "٣"], [1, 0, 0, 2]),
]


@pytest.mark.parametrize(("names", "expected"), CLASSES)
def test_classes_are_numbered_by_name_or_number(names, expected):
    assert class_indices(names).tolist() == expected


NAMES = ["ü/é 漢字.png", "a b/\u200b.PNG", "-rf/*.png", "'\";/$(touch x).png", "\n\x1b[31m/line\nbreak.png"]


@pytest.mark.parametrize("name", NAMES)
def test_odd_names(source, tree, refusal, name):
    path = source(tree(name))
    assert len(load_path("mine", path).images) == 1
    broken = source({name: b"rubbish"})
    assert "cannot be decoded (no PNG, JPEG, BMP, WEBP)" in refusal(broken)


def test_names_that_are_no_unicode(tmp_path, tree, refusal):
    folder = os.fsencode(tmp_path) + b"/\xff\xfe"
    os.mkdir(folder)
    with open(folder + b"/\xe9.png", "wb") as file:
        file.write(tree("a")["a"])
    assert len(load_path("mine", tmp_path).images) == 1
    with open(folder + b"/\xe9.png", "wb") as file:
        file.write(b"rubbish")
    assert r"\udce9.png cannot be decoded" in refusal(tmp_path)


def test_names_of_windows_in_a_zip(tmp_path, tree):
    zipped(tmp_path / "x.zip", tree("train\\a\\0.png", "train\\b\\0.png", "test\\a\\0.png"))
    data = load_path("mine", tmp_path / "x.zip")
    assert (data.classes, data.heldout.sum()) == (2, 1)


def test_what_is_no_image_is_passed_over(source, tree):
    others = {"a/notes.txt": b"text", "__MACOSX/a/._0.png": b"shadow", "a/.DS_Store": b"", "b.gif": b""}
    data = load_path("mine", source(tree("a/0.png") | others))
    assert len(data.images) == 1
    assert data.note.endswith(": 4 files passed over (2 with a leading dot, 1 .gif, 1 .txt)")


def test_folders_with_a_leading_dot_are_no_classes(source, tree):
    """Jupyter and macOS leave copies there."""
    files = tree("cat/0.png", "dog/0.png", ".ipynb_checkpoints/0-checkpoint.png", "dog/.cache/deep/0.png")
    data = load_path("mine", source(files))
    assert data.labels.tolist() == [0, 1]
    assert data.note.endswith("2 folders with a leading dot passed over (.ipynb_checkpoints, dog/.cache)")


def test_links_to_folders_are_named(tmp_path, tree, refusal):
    write(tmp_path / "disk", tree("0.png"))
    for name in ("mine", "links"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train").symlink_to(tmp_path / "disk")
    assert refusal(tmp_path / "links").endswith("webp); 1 link to a folder not followed (train)")
    write(tmp_path / "mine", tree("a/0.png"))
    assert load_path("mine", tmp_path / "mine").note.endswith("mine: 1 link to a folder not followed (train)")


def labelled(tree, labels, root=""):
    """Return EDM's files: chunks of three images, and the labels of each in dataset.json."""
    files = tree(*(f"{root}{k // 3:05d}/img{k:08d}.png" for k in range(len(labels))))
    pairs = [[name.removeprefix(root), label] for name, label in zip(files, labels, strict=True)]
    return files | {f"{root}dataset.json": json.dumps({"labels": None if labels[0] is None else pairs}).encode()}


@pytest.mark.parametrize("root", ["", "deeper/"])
@pytest.mark.parametrize("as_vectors", [False, True])
def test_labels_of_edm_and_stylegan(source, tree, root, as_vectors):
    labels = [3, 0, 3, 1, 2, 0, 1]
    files = labelled(tree, np.eye(4)[labels].tolist() if as_vectors else labels, root)
    assert load_path("mine", source(files)).labels.tolist() == labels


def test_labels_that_are_null_are_one_class(source, tree):
    assert load_path("mine", source(labelled(tree, [None] * 7))).classes == 1


def test_nvidias_archive_of_cifar10_has_fifty_chunks(tmp_path, images, encoded):
    blank, labels = encoded(images(1)[0]), np.arange(50) % 10
    names = [f"{k:05d}/img{k:08d}.png" for k in range(50)]
    files = dict.fromkeys(names, blank) | {
        "dataset.json": json.dumps({"labels": list(zip(names, labels.tolist(), strict=True))})
    }
    zipped(tmp_path / "cifar10-32x32.zip", files)
    data = load("cifar10", tmp_path)
    assert (data.labels.tolist(), data.name, data.note) == (labels.tolist(), "cifar10", "")


WRONG_LABELS = {
    "an image without": ({"labels": [["00000/img00000000.png", 1]]}, "has no label of 00000/img00000001.png; add it"),
    "several": ({"labels": [["00000/img00000000.png", [1, 1, 0]]]}, "is no class); mend it, or remove it"),
    "a text": ({"labels": [["00000/img00000000.png", "cat"]]}, "'cat' is no class"),
    "no list": ({"labels": 3}, "does not give each image one class"),
}


@pytest.mark.parametrize(("content", "words"), WRONG_LABELS.values(), ids=WRONG_LABELS)
def test_wrong_files_of_labels(source, tree, refusal, content, words):
    files = labelled(tree, [1, 2, 0]) | {"dataset.json": json.dumps(content).encode()}
    assert words in refusal(source(files))
    assert load_path("mine", source(files), classes=False).classes == 1  # where no class is needed


def test_a_file_of_labels_that_is_another_programs(source, tree):
    data = load_path("mine", source(tree("a/0.png", "b/0.png") | {"dataset.json": b'{"name": "mine"}'}))
    assert data.labels.tolist() == [0, 1]


def test_a_folder_named_like_an_image(tmp_path, tree):
    write(tmp_path / "set", tree("a.png/0.png", "a.png/b.jpg/0.png"))
    assert len(load_path("mine", tmp_path / "set").images) == 2


@pytest.mark.parametrize("files", [{}, {"a/readme.txt": b"text"}])
def test_nothing_to_read(source, refusal, tmp_path, files):
    (tmp_path / "set").mkdir()
    assert "holds no images (looked for .bmp, .jpeg, .jpg, .png, .webp)" in refusal(source(files))


def test_what_is_neither_file_nor_folder(tmp_path, refusal):
    os.mkfifo(tmp_path / "pipe.zip")
    assert "neither a file nor a folder" in refusal(tmp_path / "pipe.zip")
    os.mkfifo(tmp_path / "pipe.png")
    assert "holds no images" in refusal(tmp_path)


@pytest.mark.parametrize("named", ["run", "run/cells/adm-ddpm-2-seed0"])
def test_a_results_folder_is_called_what_it_is(tmp_path, refusal, named):
    samples = tmp_path / "run/cells/adm-ddpm-2-seed0/samples.npz"
    samples.parent.mkdir(parents=True)
    samples.touch()
    assert f"{samples}; name one of these" in refusal(tmp_path / named)


def test_links(tmp_path, tree, refusal):
    write(tmp_path / "elsewhere", tree("0.png"))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "good.png").symlink_to(tmp_path / "elsewhere" / "0.png")
    assert len(load_path("mine", tmp_path / "set").images) == 1
    (tmp_path / "set" / "dangling.png").symlink_to("nowhere")
    assert "dangling.png cannot be read (No such file" in refusal(tmp_path / "set")
    (tmp_path / "set" / "dangling.png").unlink()
    (tmp_path / "set" / "circle.png").symlink_to("circle.png")
    assert "circle.png cannot be read" in refusal(tmp_path / "set")


def test_links_in_a_zip(tmp_path, refusal):
    (tmp_path / "secret.png").write_bytes(b"secret")
    info = zipfile.ZipInfo("a.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    zipped(tmp_path / "x.zip", {info: str(tmp_path / "secret.png")})
    assert "a.png is a link, which no zip of images needs" in refusal(tmp_path / "x.zip")


@pytest.mark.parametrize("what", ["file", "folder", "root"])
def test_what_may_not_be_read(tmp_path, tree, refusal, monkeypatch, what):
    """Whoever runs the tests may be allowed to read everything, so the refusal is the system's in name only."""
    write(tmp_path / "set", tree("a/0.png", "b/0.png"))
    denied = {"file": "a/0.png", "folder": "b", "root": ""}[what]

    def guarded(function):
        def call(path, *rest, **options):
            if os.fspath(path) == str(tmp_path / "set" / denied):
                raise PermissionError(13, "Permission denied", os.fspath(path))
            return function(path, *rest, **options)

        return call

    monkeypatch.setattr(os, "scandir", guarded(os.scandir))
    monkeypatch.setattr(io, "open", guarded(io.open))
    assert "cannot be" in (message := refusal(tmp_path / "set"))
    assert "Permission denied" in message


@pytest.mark.parametrize("mode", ["P", "LA", "CMYK", "RGBA", "L", "1"])
def test_pictures_become_rgb_unless_all_are_grey(tmp_path, images, mode):
    path = tmp_path / f"a.{'jpeg' if mode == 'CMYK' else 'png'}"
    Image.fromarray(images(1, 4)[0]).convert(mode).save(path)
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L" if mode in ("L", "LA", "1") else "RGB")).reshape(4, 4, -1)
    np.testing.assert_array_equal(load_path("mine", tmp_path).images, pixels.transpose(2, 0, 1)[None])


@pytest.mark.parametrize("kind", ["gif", "tiff", "ppm", "ico", "eps"])
def test_other_formats_under_a_known_suffix(tmp_path, images, encoded, refusal, kind):
    """Pillow hands EPS, a script, to Ghostscript."""
    (tmp_path / "a.png").write_bytes(encoded(images(1, 16)[0], kind))
    assert "no PNG, JPEG, BMP, WEBP" in refusal(tmp_path)


def test_resizing_makes_sizes_equal(source, images, encoded, refusal):
    path = source({"a.png": encoded(images(1, 9)[0]), "b.png": encoded(images(1, 7)[0, :5])})
    message = refusal(path)
    assert "images differ in size (9x9 and 5x7 of " in message
    assert message.endswith("b.png); resize them first, or use --resize")
    data = load_path("mine", path, preprocessing=Preprocessing(4, "center"))
    assert (data.shape, data.preprocessing) == ((3, 4, 4), "crop=center resize=4 filter=bicubic")


def test_colour_after_grey(source, images, encoded):
    grey, colour = images(2, 4, 1), images(1, 4)
    path = source({"0.png": encoded(grey[0]), "1.png": encoded(grey[1]), "2.png": encoded(colour[0])})
    expected = np.concatenate([grey.repeat(3, axis=3), colour]).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(load_path("mine", path).images, expected)


def test_a_member_that_unfolds_to_far_more(tmp_path, tree, refusal):
    padded = tree("a")["a"] + bytes(2**24)
    zipped(tmp_path / "x.zip", {"a.png": padded}, zipfile.ZIP_DEFLATED)
    assert "x.zip: a.png unfolds to over 250 times" in refusal(tmp_path / "x.zip")


def test_a_file_of_any_length(tmp_path, refusal):
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(2**40)  # takes no space on disk
    assert "a.png has 1099511627776 bytes, more than 268435456 for one file" in refusal(tmp_path)


def test_equal_pixels_by_the_million(source, refusal, monkeypatch, encoded):
    monkeypatch.setitem(limits._SMALL, "pixels", 2**20)
    blank = encoded(np.zeros((512, 512, 3), np.uint8))
    assert "unfolds to over 250 times" in refusal(source({"a.png": blank, "b.png": blank}))


def test_more_than_fits(source, images, encoded, refusal, monkeypatch):
    monkeypatch.setattr(limits, "MAX_TOTAL", 95)
    path = source({"0.png": encoded(images(1, 4)[0]), "1.png": encoded(images(1, 4)[0])})
    assert "needs 96 bytes of pixels, more than 95; keep fewer or smaller images" in refusal(path)


def test_a_picture_whose_texts_unfold(tmp_path, refusal):
    texts = PngImagePlugin.PngInfo()
    texts.add_text("comment", "x" * 2**21, zip=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=texts)
    assert "a.png cannot be decoded (Decompressed data too large" in refusal(tmp_path)


def spoil(path, offset, value):
    """Overwrite two bytes of every record of a zip: the local headers and, 2 bytes on, the central directory."""
    data = bytearray(path.read_bytes())
    for magic, shift in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
        at = data.find(magic)
        while at >= 0:
            data[at + offset + shift : at + offset + shift + 2] = value.to_bytes(2, "little")
            at = data.find(magic, at + 4)
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["x.npz", "x.zip"])
@pytest.mark.parametrize(("offset", "value", "words"), [(6, 1, "encrypted"), (8, 99, "compression")])
def test_zips_that_are_encrypted_or_strangely_compressed(tmp_path, images, tree, refusal, name, offset, value, words):
    if name == "x.npz":
        np.savez_compressed(tmp_path / name, arr_0=images(3))
    else:
        zipped(tmp_path / name, tree("0.png", "1.png"), zipfile.ZIP_DEFLATED)
    spoil(tmp_path / name, offset, value)
    assert words in refusal(tmp_path / name)


def test_members_are_opened_one_at_a_time(tmp_path, tree, monkeypatch):
    """Whatever number of images there is, one file is open."""
    zipped(tmp_path / "set.zip", tree(*(f"{k}.png" for k in range(5))))
    open_now, most, opened = [], [], zipfile.ZipFile.open

    def spy(archive, *args, **options):
        file = opened(archive, *args, **options)
        open_now.append(file)
        most.append(sum(not other.closed for other in open_now))
        return file

    monkeypatch.setattr(zipfile.ZipFile, "open", spy)
    load_path("mine", tmp_path / "set.zip")
    assert most == [1] * 5


def test_folders_of_a_zip_are_no_images(tmp_path, tree):
    zipped(tmp_path / "x.zip", tree("a.png") | {"b.png/": b""})
    assert len(load_path("mine", tmp_path / "x.zip").images) == 1


@pytest.mark.parametrize("side", [9500, 30000])
def test_a_picture_beyond_pillows_own_limits(tmp_path, refusal, side):
    """Pillow warns above 89 million pixels and raises above twice that; only the header says so here."""
    header = b"IHDR" + 2 * side.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    data = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(data + (0).to_bytes(4, "big") + b"IDAT" + zlib.crc32(b"IDAT").to_bytes(4, "big"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "a.png has more than 67108864 pixels, too many to decode" in refusal(tmp_path)
