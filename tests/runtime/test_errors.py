import pytest

from bench.runtime.errors import DataError, one_line, reason

MESSAGES = [
    ("plain, ä and 漢", "plain, ä and 漢"), ("a\nb\r\x1b[2J\u2028", "a\\nb\\r\\x1b[2J\\u2028"), ("\udcff", "\\udcff"),
    (ValueError("two\nlines"), "two\\nlines"), ("x" * 1000, "x" * 1000),
    ("a" * 1000 + "b" * 1000, "a" * 497 + " ... " + "b" * 497),
]  # fmt: skip


@pytest.mark.parametrize(("said", "shown"), MESSAGES)
def test_messages_stay_on_one_line(said, shown):
    assert (one_line(said), str(DataError(str(said)))) == (shown, shown)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("a\nb"), "a"),
        (KeyError(), "KeyError"),
        (FileNotFoundError(2, "Nothing there", "name"), "Nothing there"),
    ],
)
def test_reasons_are_short(error, said):
    assert reason(error) == said
