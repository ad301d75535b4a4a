import pytest

from analysis.metric_names import coverage_name, frechet_name, inception_score_name
from bench.measure.features.extractors import _metric_names

# Prefix and suffix of every kind of features, docs/metrics.md.
KINDS = [("", ""), ("", "_inception"), ("clean_", ""), ("clean_", "_inception"), ("", "_digits"), ("", "_cifar10")]


def scored(prefix, suffix):
    """Every score a cell has, in the suite's order."""
    names = _metric_names(prefix, suffix)
    frechet = names["frechet"]
    derived = [f"{frechet}{ending}" for ending in ("_inf", "_exact", "_exact_sd")]
    return names, ["nn_ratio", *derived, names["spatial"], frechet, *(v for k, v in names.items() if k != "frechet")]


@pytest.mark.parametrize(("prefix", "suffix"), KINDS)
def test_every_name_of_the_suite_is_known(prefix, suffix):
    names, present = scored(prefix, suffix)
    assert frechet_name(present) == names["frechet"]
    assert coverage_name(present, "precision") == names["precision"]
    assert coverage_name(present, "recall") == names["recall"]
    assert inception_score_name(present) == names["inception_score"]


@pytest.mark.parametrize(("prefix", "suffix"), KINDS)
def test_only_published_weights_make_a_fid(prefix, suffix):
    assert ("fid" in frechet_name(scored(prefix, suffix)[1])) == (not suffix)


def test_nothing_is_made_of_other_scores():
    others = ["nn_ratio", "sfid", "kid", "fid_inf", "sfd_digits", "clean_sfid"]
    assert frechet_name(others) is None
    assert coverage_name(others, "recall") is None
    assert inception_score_name(others) is None
