import pytest

from analysis.comparison.baselines import Remedy, corrections, find_remedies
from analysis.records.load import CellRecord, Results


def results(tmp_path, **models):
    """Results of one cell a model: its weights, and what else its cell says."""
    made = []
    for name, (weights, *more) in models.items():
        cell = {"model": name.replace("_", "-"), "sampler": "ddpm", "steps": 10, "seed": 0, "weights": weights}
        made.append(CellRecord(tmp_path, cell | (more[0] if more else {}), {}))
    return Results(tmp_path, made)


ES = {"eps_scale": 1.01, "eps_slope": 0.0}
TS = {"eps_scale": 1.0, "eps_slope": 0.0, "remedies": [{"kind": "time-shift", "window": 2.0}]}


FAMILIES = [
    ({"adm": "a", "adm_es": ("a", ES)}, [("adm-es", "adm", "sampling")]),
    ({"adm": "a", "adm_ts": ("a", TS)}, [("adm-ts", "adm", "sampling")]),
    ({"adm": "a", "adm_ip": "b"}, [("adm-ip", "adm", "training")]),
    (
        {"adm": "a", "adm_ip": "b", "adm_ip_es": ("b", ES)},
        [("adm-ip", "adm", "training"), ("adm-ip-es", "adm-ip", "sampling")],
    ),
    ({"adm": "a", "adm_ip_es": ("b", ES)}, [("adm-ip-es", "adm", "training")]),  # its own base was not run
    ({"adm": "a", "tuned": ("a", ES)}, [("tuned", "adm", "sampling")]),  # whatever it is called
    ({"adm": "a", "adm_es": "a"}, [("adm-es", "adm", "sampling")]),  # a neutral constant
    ({"adm": "a", "adm_ip": "b", "adm_ip_t": "c"}, [("adm-ip", "adm", "training"), ("adm-ip-t", "adm", "training")]),
    ({"adm": "a", "ddpm_y": "b", "admire": "c"}, []),
    ({"adm": "a", "adm_t2": "b", "adm_ip_t2": "c"}, [("adm-ip-t2", "adm-t2", "training")]),
    ({"adm_es": ("a", ES)}, []),
    ({"adm": None, "adm_ip": None, "ddpm": None}, [("adm-ip", "adm", "training")]),  # weights not recorded
]


@pytest.mark.parametrize(("models", "wanted"), FAMILIES)
def test_baselines(tmp_path, models, wanted):
    models = {name: made if isinstance(made, tuple) else (made,) for name, made in models.items()}
    assert find_remedies(results(tmp_path, **models)) == [Remedy(*row) for row in wanted]


def test_a_model_that_corrects_at_one_step_count_is_not_plain(tmp_path):
    found = results(tmp_path, adm=("a",), adm_es=("a",))
    found.cells.append(CellRecord(tmp_path, found.cells[1].cell | ES | {"steps": 20}, {}))
    assert find_remedies(found) == [Remedy("adm-es", "adm", "sampling")]


TEXTS = [
    ({}, ""),
    ({"eps_scale": 1.0, "eps_slope": 0.0, "remedies": []}, ""),
    ({"eps_scale": 1.014, "eps_slope": 0.0}, "epsilon-scaling(b=1.014)"),
    ({"eps_scale": 1.0, "eps_slope": 0.01}, "epsilon-scaling(b=1, k=0.01)"),
    ({"eps_scale": 1.1, "remedies": [{"kind": "a", "c": 2}, {"kind": "b"}]}, "a(c=2), b"),  # in their order, no others
    ({"remedies": [{"kind": "x0-std", "reference": [[1, 2]] * 9}]}, "x0-std(reference=[9 values])"),
    ({"remedies": "a\nb"}, "a b"),
]


@pytest.mark.parametrize(("cell", "text"), TEXTS)
def test_corrections_as_text(cell, text):
    assert corrections(cell) == text
