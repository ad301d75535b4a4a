import pandas as pd

from analysis.output.selection import first_sampler, most_steps

BOTH = pd.DataFrame({"sampler": ["ddim", "ddpm", "ddim", "ddpm"], "steps": [4, 8, 9, 2]})


def test_the_first_sampler_is_the_ancestral_one_and_the_most_steps_are_its():
    table, sampler = first_sampler(BOTH)
    assert (table["steps"].tolist(), sampler) == ([8, 2], "ddpm")
    table, sampler = first_sampler(BOTH[BOTH["sampler"] == "ddim"])
    assert (table["steps"].tolist(), sampler) == ([4, 9], "ddim")
    table, sampler, steps = most_steps(BOTH)
    assert (table.index.tolist(), sampler, steps) == ([1], "ddpm", 8)
