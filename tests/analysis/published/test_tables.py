from pathlib import Path

import pandas as pd
import pytest

from analysis.published.delta_t import caption, delta_table
from analysis.published.tables import TABLES, load_published, page, wide_table

NAMES = [*TABLES, "ts_dpm", "dcw_tables", "fid_vs_iterations", "delta_t_cifar10_20step", "delta_t_floor_cifar10_20step"]


@pytest.mark.parametrize("name", NAMES)
def test_every_row_has_its_source(name):
    table = load_published(name)
    assert len(table)
    assert table["source"].str.len().gt(10).all()
    assert table.drop(columns="source").duplicated().sum() == 0


def test_numbers_are_kept_as_printed():
    table = load_published("edm_es", as_printed=True)
    assert {"1.0005", "0.9985", "2.80"} <= set(table["b"]) | set(table["value"])
    numbers = load_published("edm_es")
    assert table["b"].isna().sum() == numbers["b"].isna().sum() > 0
    assert pd.api.types.is_float_dtype(numbers["value"])


def test_a_table_as_papers_print_it():
    table = wide_table(load_published("ddpm_ip_table3", as_printed=True))
    assert [name for name in table.columns if name.endswith("steps")] == [f"{n} steps" for n in (80, 100, 300, 1000)]
    assert len(table) == 5 * 2 * 2  # datasets, models, metrics
    row = table[(table["dataset"] == "FFHQ-128") & (table["model"] == "ADM-IP") & (table["metric"] == "FID")].iloc[0]
    assert row[["80 steps", "100 steps", "300 steps", "1000 steps"]].tolist() == ["6.89", "5.94", "3.74", "2.98"]
    assert "Table 3" in row["source"]


@pytest.mark.parametrize("name", [name for name in TABLES if name != "edm_es"])
def test_no_number_is_lost(name):
    table = load_published(name, as_printed=True)
    wide = wide_table(table)
    printed = wide.filter(regex=r"^\d+ steps$").to_numpy().ravel()
    assert sorted(value for value in printed if isinstance(value, str)) == sorted(table["value"])


def test_the_page_of_the_documentation_is_what_the_command_writes():
    docs = Path(__file__).parents[3] / "docs"
    assert (docs / "published.md").read_text() == page(caption(delta_table()))
