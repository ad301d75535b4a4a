import dataclasses
import sys

import pytest
import torch

from bench.models.train import trainer as training
from bench.models.train.__main__ import main
from bench.models.train.recipes import RECIPES
from bench.models.train.trainer import learning_rate, train
from bench.runtime.tensorboard import TensorBoardError, open_writer

CPU = torch.device("cpu")


def scalars(folder):
    """Return tag to [(step, value), ...] as TensorBoard reads them."""
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reading.EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.fixture
def missing(monkeypatch):
    """As if the package were not installed."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)


@pytest.mark.usefixtures("missing")
def test_without_the_package_one_line_says_how_to_get_it(tmp_path, capsys):
    with pytest.raises(TensorBoardError, match=r'pip install "exposure-bias-bench\[tensorboard\]"$'):
        open_writer(tmp_path / "scalars")
    words = ["--recipe", "adm", "--quiet", "--out", str(tmp_path / "out"), "--tensorboard", str(tmp_path / "scalars")]
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == 'error: TensorBoard is not installed; pip install "exposure-bias-bench[tensorboard]"\n'
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "file").write_text("")
    with pytest.raises(TensorBoardError, match=r"^cannot write TensorBoard scalars to .*file \(") as caught:
        open_writer(tmp_path / "file")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_training_writes_its_log_as_scalars_too(tmp_path, monkeypatch):
    """The file holds float32: 1e-6 relative."""
    pytest.importorskip("tensorboard")
    monkeypatch.setattr(training, "LOG_EVERY", 2)
    images = torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    recipe = dataclasses.replace(RECIPES["adm-gp"], iterations=5, batch=4)
    train(recipe, tmp_path / "out", CPU, True, images, tensorboard=tmp_path / "scalars")
    found = scalars(tmp_path / "scalars")
    assert set(found) == {"mse", "bound", "penalty", "learning_rate", "images_per_second"}
    rows = [line.split(",") for line in (tmp_path / "out" / "loss.csv").read_text().splitlines()[1:]]
    for column, tag in enumerate(("mse", "bound", "penalty"), start=2):
        assert found[tag] == [(int(row[1]), pytest.approx(float(row[column]), rel=1e-6)) for row in rows]
    assert found["learning_rate"] == [(4 * k, pytest.approx(learning_rate(recipe, k - 1), rel=1e-6)) for k in (2, 4, 5)]
    assert all(speed > 0 for _, speed in found["images_per_second"])


def test_scalars_after_the_point_of_resumption_are_purged(tmp_path):
    pytest.importorskip("tensorboard")
    for first, steps in ((None, (1, 2, 3)), (3, (3, 4))):
        with open_writer(tmp_path, first) as writer:
            for step in steps:
                writer.add_scalar("a", 10.0 * (first or 0) + step, step)
    assert scalars(tmp_path) == {"a": [(1, 1.0), (2, 2.0), (3, 33.0), (4, 34.0)]}
