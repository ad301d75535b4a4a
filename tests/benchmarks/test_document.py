import pytest

from benchmarks.comparison import HEADER, line, ratios, read_csv, write_csv
from benchmarks.document import DOCUMENT, PUBLISHED, filled, measured


@pytest.mark.ci
def test_the_document_is_what_the_tables_make_it():
    assert DOCUMENT.read_text() == filled(DOCUMENT.read_text(), PUBLISHED)


def test_measured_rows_come_back_and_stand_in_the_table(tmp_path, tiny):
    path = tmp_path / "rows.csv"
    rows = [ratios("part", "what", "peer", [(1.0, 2.5)], tiny, goal=goal) for goal in (None, 1.1)]
    write_csv(path, rows)
    assert read_csv(path) == rows
    where = f"Measured with torch {rows[0].torch} on cpu, {rows[0].threads} threads."
    assert list(measured(path)) == [where, "", HEADER, *map(line, rows)]
    assert "Not measured yet" in "".join(measured(tmp_path / "none.csv"))
