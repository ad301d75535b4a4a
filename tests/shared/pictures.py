"""Images as their publishers and users keep them: files, class folders and archives."""

import io
import tarfile
import zipfile

from PIL import Image

CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def encoded(image, kind="png", **options):
    """Return the bytes of a file: of an image of Pillow's, or of pixels [H, W] or [H, W, 1 or 3]."""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def class_folders(root, images, number=0):
    """Write an image a class of CIFAR-10."""
    for name, image in zip(CIFAR_CLASSES, images, strict=True):
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / f"{number}.png").write_bytes(encoded(image))


def zipped(target, members, method=zipfile.ZIP_STORED):
    """Write members by name into a zip; return its path or file."""
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target


def as_tar(members):
    """Return the bytes of a tar of members by name."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()
