from __future__ import annotations

import pytest

from benchmarks.__main__ import PARTS, main
from benchmarks.comparison import HEADER, line, ratios, read_csv, write_csv
from benchmarks.document import DOCUMENT, MEASURED, filled


def test_the_document_is_what_the_tables_make_it():
    assert DOCUMENT.read_text() == filled(DOCUMENT.read_text(), MEASURED)


def test_rows_come_back_as_they_were_written(tmp_path, tiny):
    path = tmp_path / "rows.csv"
    rows = [ratios("part", "what", "peer", [(1.0, 2.5)], tiny, goal=goal) for goal in (None, 1.1)]
    write_csv(path, rows)
    assert read_csv(path) == rows


def test_measured_rows_stand_in_the_document(tmp_path, tiny):
    path = tmp_path / "rows.csv"
    row = ratios("part", "what", "peer", [(1.0, 2.5)], tiny)
    write_csv(path, [row])
    text = filled(DOCUMENT.read_text(), path)
    assert f"{HEADER}\n{line(row)}\n<!-- end -->" in text
    assert f"on cpu, {row.threads} threads" in text
    assert "Not measured yet" not in text
    assert filled(text, tmp_path / "none.csv").count("Not measured yet") == 1


def test_every_flag_and_part_of_the_document_exists(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--device" in capsys.readouterr().out
    assert all(f"| `{part}` |" in DOCUMENT.read_text() for part in PARTS)
