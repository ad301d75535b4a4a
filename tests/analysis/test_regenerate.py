import re
import runpy
import signal
import sys

import numpy as np
import pytest
from refusals import outcome_of
from synthetic_results import assert_figures

import analysis.regenerate
from analysis.__main__ import main
from analysis.exposure_bias.norms import draw_eps_norm, norm_table
from analysis.exposure_bias.variance import draw_variance_gap
from analysis.exposure_bias.x0_error import draw_x0_error
from analysis.output.style import pdf_too
from analysis.quality.main_table import draw_quality, quality_table
from analysis.quality.samples import draw_samples
from analysis.records.load import load_results
from analysis.regenerate import regenerate


@pytest.fixture
def results(folder):
    for model in ("adm", "ip"):
        for steps in (5, 20):
            for seed in (0, 1):
                folder.cell(model, steps, seed, value=1.0 / steps + seed)
    return load_results(folder.root)


def draw_norms(steps, folder):
    return draw_eps_norm(steps, norm_table(steps), folder)


STEP_FIGURES = {"eps_norm": draw_norms, "variance_gap": draw_variance_gap, "x0_error": draw_x0_error}


@pytest.mark.parametrize(("name", "draw"), STEP_FIGURES.items())
@pytest.mark.parametrize("counts", [(1,), (2, 3, 4, 5, 6)])
def test_step_figures_of_one_step_without_heldout_images_and_of_two_samplers(folder, tmp_path, name, draw, counts):
    """The exact arm has no sampling error: n and std are empty, it has no band and must not break the figure."""
    for steps in counts:
        folder.cell("adm", steps)
    if len(counts) > 1:
        folder.cell("adm", 4, sampler="ddim")
    table = load_results(folder.root).steps
    assert table[table["arm"] == "gaussian"]["n"].isna().all()
    table = table if len(counts) > 1 else table[table["arm"] != "forced-heldout"]
    assert_figures(draw(table, tmp_path / "figures"), name)


@pytest.mark.parametrize("values", [(None, None), (1.0, None)])
def test_quality_figure_with_empty_scores(folder, tmp_path, values):
    for steps, value in zip((5, 10), values, strict=True):
        folder.cell("adm", steps, value=value)
    assert_figures(draw_quality(quality_table(load_results(folder.root)), tmp_path), "fid_vs_steps")


def test_samples_need_images_and_a_shared_step_count(folder, tmp_path):
    (folder.cell("adm", 5) / "samples.npz").unlink()
    assert draw_samples(load_results(folder.root), tmp_path) == []
    folder.cell("adm", 20)
    folder.cell("ip", 10)
    assert draw_samples(load_results(folder.root), tmp_path) == []


def test_samples_of_samplers_with_other_seeds(folder, tmp_path):
    # The model that comes first, DDIM, has no cell at the lowest seed of all.
    folder.cell("adm", 5, seed=1, sampler="ddim")
    folder.cell("ip", 5, seed=0)
    folder.order("adm", "ip")
    assert_figures(draw_samples(load_results(folder.root), tmp_path), "samples")


def test_figures_repeat_byte_for_byte_as_pdf_too(results, tmp_path):
    with pdf_too(True):
        first, second = (draw_x0_error(results.steps, tmp_path / name) for name in ("first", "second"))
    assert_figures(first, "x0_error", kinds=("png", "pdf"))
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_regenerate_writes_everything(results):
    regenerate(results.root)
    names = {path.name for path in (results.root / "figures").iterdir()}
    expected = {f"{name}.png" for name in ("fid_vs_steps", "samples", *STEP_FIGURES)}
    assert expected <= names
    tables = {path.name for path in (results.root / "tables").iterdir()}
    assert {"metrics.csv", "fid_vs_steps.csv", "fid_vs_steps.md", "fid_vs_steps.tex"} <= tables


@pytest.mark.ci
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere one process draws")
def test_two_processes_write_what_one_writes_even_if_one_is_lost(folder, monkeypatch):
    for model in ("adm", "ip"):
        cell = folder.cell(model, 5)
    (cell / "moments.npz").write_text("damaged")
    written, problems = [], []
    for processes in (1, 2, 2):
        problems.append(sorted(regenerate(folder.root, processes=processes).problems))
        written.append({path.name: path.read_bytes() for path in folder.root.rglob("*.*") if path.is_file()})
        if processes == 2:
            monkeypatch.setattr(analysis.regenerate, "_send", lambda *arguments: None)
    assert written[0] == written[1] == written[2]
    assert problems[0] == problems[1] == problems[2] != []


def test_without_probes_or_scores_what_was_scored_before_is_not_left_lying(folder):
    cell = folder.cell(probes=False)
    regenerate(folder.root)
    assert len([*folder.root.rglob("fid_vs_steps.*")]) == 4  # csv, md, tex and png
    (cell / "metrics.json").write_text((cell / "metrics.json").read_text().replace("fd_toy", "other"))
    regenerate(folder.root)
    made = {path.name for part in ("tables", "figures") for path in (folder.root / part).iterdir()}
    assert {name for name in made if not name.startswith("scores.")} == {"metrics.csv", "samples.png"}


def test_the_command_where_nothing_can_be_written(folder, capsys):
    folder.cell(probes=False)
    (folder.root / "tables").write_text("in the way")
    assert outcome_of(capsys, main, folder.root).refused(f"cannot write {folder.root / 'tables'}: ")


def test_the_command_prints_the_table(folder, capsys):
    folder.cell(probes=False)
    assert main([str(folder.root)]) == 0
    captured = capsys.readouterr()
    assert re.search(r"adm +ddpm +1\.000", captured.out)
    assert str(folder.root) in captured.out
    assert captured.err == ""
    assert main([str(folder.root), "--quiet"]) == 0
    assert capsys.readouterr().out == ""


DAMAGE = {
    "half-done": ("metrics.json", None),
    **{name: (name, b"rubbish") for name in ("steps.csv", "samples.npz", "kernel.npy")},
    "kernel of texts": ("kernel.npy", np.array([["a", "b"]])), "kernel of none": ("kernel.npy", np.zeros((0, 2))),
    "two channels": ("samples.npz", np.zeros((3, 8, 8, 2), np.uint8)),
    "no samples": ("samples.npz", np.zeros((0, 8, 8, 3), np.uint8)),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content"), DAMAGE.values(), ids=DAMAGE)
def test_the_command_on_a_damaged_record(folder, capsys, terms, name, content):
    folder.cell(probes=False)
    bad = folder.cell("bad", terms=terms(1.0), probes=name == "steps.csv")
    said = f"/{name} is damaged"
    if content is None:
        (bad / name).unlink()
        said = " is incomplete"
    elif isinstance(content, bytes):
        (bad / name).write_bytes(content)
    else:
        np.save(bad / name, content) if name == "kernel.npy" else np.savez(bad / name, arr_0=content)
        said = f"/{name} does not hold"
    assert main([str(folder.root)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"bad-ddpm-10-seed0{said}" in line
    assert (folder.root / "tables" / "fid_vs_steps.md").exists()  # what is sound is drawn


def test_an_interrupted_command_says_so_in_one_line(folder, monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(analysis.regenerate, "regenerate", interrupted)
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    monkeypatch.setattr(sys, "argv", ["analysis", str(folder.root)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(analysis.__main__.__file__, run_name="__main__")
    assert stop.value.code == 130
    assert capsys.readouterr().err == "interrupted; the same command draws everything again\n"
