"""A folder whose one cell has neither scores nor records: no analysis makes anything of it, and none complains."""

import pkgutil
from importlib import import_module

import pytest
from synthetic_results import make_cell

import analysis
from analysis.output.entries import Output
from analysis.records.load import load_results

NAMES = [module.name for module in pkgutil.walk_packages(analysis.__path__, "analysis.") if not module.ispkg]
ANALYSES = [name for name in NAMES if hasattr(import_module(name), "analyse")]


@pytest.mark.parametrize("name", ANALYSES)
def test_nothing_is_made_of_nothing(tmp_path, name):
    make_cell(tmp_path, "adm")
    (tmp_path / "tuning").mkdir()
    results, out = load_results(tmp_path), Output(tmp_path)
    import_module(name).analyse(results, out)
    assert (out.entries, results.problems) == ([], [])
