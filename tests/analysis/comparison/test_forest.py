import numpy as np
import pandas as pd
import pytest
from synthetic_results import assert_figures, drawn_texts

from analysis.comparison import forest
from analysis.comparison.forest import draw_mitigations


def table(samplers, models=3, factor=1.0, baselines=("adm",)):
    """A comparison of some models, the last of which is ``factor`` times farther off than the others."""
    rng, made = np.random.default_rng(0), []
    for sampler, counts in samplers.items():
        for steps in counts:
            for number in range(models):
                ratio = float(np.exp(rng.normal(0, 0.1))) * (factor if number == models - 1 else 1)
                baseline = baselines[number % len(baselines)]
                verdict = ("win", "tie", "loss", "")[number % 4]
                made.append(
                    {"sampler": sampler, "steps": steps, "model": f"{baseline}-{number}", "baseline": baseline}
                    | {"kind": ("sampling", "training")[number % 2], "verdict": verdict}
                    | {"ratio": ratio, "ratio_low": 0.8 * ratio, "ratio_high": 1.2 * ratio}
                )
    return pd.DataFrame(made)


@pytest.mark.parametrize(
    ("samplers", "models"), [({"ddpm": [10]}, 1), ({"ddpm": [10, 20], "heun": [7]}, 20), ({"ddim": range(1, 10)}, 3)]
)
def test_figure(tmp_path, samplers, models):
    assert_figures(draw_mitigations(table(samplers, models), "fd_toy", tmp_path), "mitigations")


def test_a_point_far_off_is_named_at_the_edge(tmp_path, monkeypatch):
    drawn = drawn_texts(monkeypatch, forest)
    made = table({"ddpm": [10]}, 8, factor=50.0)
    draw_mitigations(made, "fd_toy", tmp_path)
    assert f"{made['ratio'].max():.2g}" in drawn[0]


def test_baselines_are_named_where_there_are_several_and_the_key_explains_what_occurs(tmp_path, monkeypatch):
    drawn = drawn_texts(monkeypatch, forest)
    draw_mitigations(table({"ddpm": [10]}, 1), "fd_toy", tmp_path)
    draw_mitigations(table({"ddpm": [10]}, baselines=("adm", "y")), "fd_toy", tmp_path)
    assert {"adm-0", "win", "training-free"} <= set(drawn[0])
    assert not {"tie", "loss", "not tested", "other weights"} & set(drawn[0])
    assert {"adm-0 / adm", "y-1 / y", "tie", "loss", "other weights"} <= set(drawn[1])
