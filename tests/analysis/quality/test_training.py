import pandas as pd
import pytest
from records import edited

from analysis.output.entries import Output
from analysis.quality.training import analyse, lengths_table, read_losses
from analysis.records.load import load_results

LOG = "iteration,images,mse,bound,penalty\n50,1600,0.5,0.25,0.0\n100,3200,0.25,0.125,0.0\n"


@pytest.fixture
def trained(folder):
    """Return a function that adds a cell of a recipe's checkpoint."""

    def add(model, recipe, images, value, seed=0, **changes):
        cell = folder.cell(model, 100, seed, value, probes=False)
        with edited(cell / "metrics.json") as facts:
            facts["training"] = {"recipe": recipe, "images": images} | changes
        return cell

    return add


def test_distances_by_recipe_and_images(folder, trained):
    for seed, shift in ((0, -0.5), (1, 0.5)):
        trained("early", "adm", 100, 4.0 + shift, seed)
        trained("adm", "adm", 200, 2.0 + shift, seed)
        trained("adm-ip", "adm-ip", 200, 1.0 + shift, seed)  # of one length only
    table = lengths_table(load_results(folder.root))
    assert table[["recipe", "sampler", "steps", "images", "value", "seeds"]].to_numpy().tolist() == [
        ["adm", "ddpm", 100, 100, 4.0, 2], ["adm", "ddpm", 100, 200, 2.0, 2],
    ]  # fmt: skip
    assert table["std"].tolist() == pytest.approx([0.5**0.5] * 2)


@pytest.mark.parametrize("told", [None, [], {"recipe": 3}, {"images": 0}, {"images": "many"}])
def test_records_that_do_not_say_are_passed_over(folder, trained, told):
    trained("adm", "adm", 200, 2.0)
    with edited(trained("early", "adm", 100, 4.0) / "metrics.json") as facts:
        facts["training"] = told if not told else facts["training"] | told
    assert lengths_table(load_results(folder.root)).empty


@pytest.mark.parametrize("change", [{"eps_scale": 1.01}, {"eps_slope": 1e-4}, {"remedies": [{"kind": "time-shift"}]}])
def test_remedies_are_no_training(folder, trained, change):
    trained("adm", "adm", 200, 2.0)
    trained("early", "adm", 100, 4.0)
    results = load_results(folder.root)
    assert not lengths_table(results).empty
    results.cells[1].cell.update(change)
    assert lengths_table(results).empty


def write_log(root, recipe, text):
    (root / "training" / recipe).mkdir(parents=True)
    (root / "training" / recipe / "loss.csv").write_text(text)


def test_losses_are_read_and_damaged_logs_named(folder):
    folder.cell(probes=False)
    logs = {"adm-ip": LOG, "adm": LOG}
    damaged = {"a": "iteration,images\n1,2\n", "b": LOG.replace("0.25", "nan"), "c": LOG.split("\n")[0] + "\n"}
    for name, text in (logs | damaged).items():
        write_log(folder.root, name, text)
    results = load_results(folder.root)
    found = read_losses(results)
    assert (list(found), found["adm"]["mse"].tolist()) == (["adm", "adm-ip"], [0.5, 0.25])
    assert found["adm-ip"]["mse"].tolist() == pytest.approx([0.5 - 0.01 / 1.01, 0.25 - 0.01 / 1.01])  # its constant
    assert len(results.problems) == 3
    assert all("copy the training's log again" in problem for problem in results.problems)


def test_figures_and_tables(folder, trained):
    for recipe in ("adm", "adm-ip"):
        trained(f"{recipe}-100", recipe, 100, 4.0)
        trained(recipe, recipe, 200, 2.0)
    write_log(folder.root, "adm", LOG)
    out = Output(folder.root)
    analyse(load_results(folder.root), out)
    assert [entry.name for entry in out.entries] == [
        "training_loss", "training_loss", "training_length", "training_length",
    ]  # fmt: skip
    last = pd.read_csv(folder.root / "tables" / "training_loss.csv")
    assert last[["recipe", "images", "mse"]].to_numpy().tolist() == [["adm", 3200, 0.25]]
    assert all((folder.root / "figures" / f"training_{name}.png").exists() for name in ("loss", "length"))
