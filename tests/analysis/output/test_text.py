import numpy as np
import pandas as pd
import pytest
from records import edited

from analysis.output.text import clips, other_causes, used_x0, without_constants
from analysis.records.load import load_results
from bench.suite.settings import short_hash


@pytest.fixture
def results(folder):
    """Return a function that makes a folder of one cell with changes to its configuration."""

    def make(**changes):
        with edited(folder.cell(probes=False) / "metrics.json") as facts:
            facts["cell"] |= changes
            facts |= {"key": short_hash(facts["cell"])}
        return load_results(folder.root)

    return make


@pytest.mark.parametrize(
    ("clip", "used", "causes"),
    [
        (True, "scaled and clipped", "the network, clipping and data that are not Gaussian"),
        (False, "scaled but not clipped", "the network and data that are not Gaussian"),
    ],
)
def test_clipping_is_named_only_where_it_was_done(results, clip, used, causes):
    made = results(clip=clip)
    assert clips(made) == clip
    assert used_x0(made).endswith(used)
    assert other_causes(made) == causes


def test_guidance_is_named_among_the_causes(results):
    assert "the classifier's guidance" in other_causes(results(classifier="abc", classifier_scale=0.5))


TABLES = [
    ({"a": [1, 2], "b": [3, 3], "c": [np.nan, np.nan]}, ["a"], "In every row: b 3."),
    ({"a": [1, 2], "b": ["", None]}, ["a"], ""),
    ({"a": [1], "b": [3], "c": [None]}, ["a", "b"], ""),  # one row has no constants
    ({"a": [1, 1], "b": [3, 3], "c": [None, None]}, ["a", "b"], ""),  # rows alike throughout
    ({"a": [0.1, 0.1 + 1e-9], "b": ["x", "y"], "d": ["z", "z"]}, ["b"], "In every row: a 0.1, d z."),
    ({"a": [1, np.nan], "b": [True, False]}, ["a", "b"], ""),
]


@pytest.mark.parametrize(("columns", "left", "repeated"), TABLES)
def test_columns_that_say_nothing_leave_a_readable_table(columns, left, repeated):
    frame, sentence = without_constants(pd.DataFrame(columns))
    assert (list(frame.columns), sentence, len(frame)) == (left, repeated, len(next(iter(columns.values()))))
