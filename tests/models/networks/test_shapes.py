import pytest
import torch

from bench.models.networks.shapes import misfit, shapes_of
from bench.runtime.errors import quoted

EXPECTED = {"a": (3,), "b": (2, 3), "c": (), "d": (1,)}


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (EXPECTED, None),
        ({**EXPECTED, "e": (1,)}, "has 'e' which it should not"),
        ({"a": (3,), "b": (2, 3), "c": ()}, "lacks 'd'"),
        ({"c": ()}, "lacks 'a', 'b' and 1 more"),
        ({**EXPECTED, "b": (3, 2)}, "'b' is (3, 2) and not (2, 3)"),
        ({**EXPECTED, "a": (1, 3), "c": (1,), "d": ()}, "'a' is (1, 3) and not (3), 'c' is (1) and not () and 1 more"),
        (
            {"a": (3,), "b": (2,), "c": (), "e": (1,)},
            "lacks 'd'; has 'e' which it should not; 'b' is (2) and not (2, 3)",
        ),
    ],
)
def test_differences_are_told_in_one_line(found, message):
    assert misfit(found, EXPECTED) == message


def test_names_from_a_file_stay_short_and_on_one_line():
    said = misfit({**EXPECTED, "long\n" * 10000: (1,), "x\r\x1b[2J": (1,)}, EXPECTED)
    assert said.isprintable()
    assert len(said) < 200
    assert quoted("plain") == "'plain'"


def test_shapes_are_those_of_the_tensors():
    assert shapes_of({"a": torch.zeros(2, 3), "b": torch.zeros(())}) == {"a": (2, 3), "b": ()}
