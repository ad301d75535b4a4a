import pytest

from analysis.output.writing import replacing, write_text
from bench.files.writing import partials


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "table.csv"
    write_text(path, "before")

    def fail():
        with replacing(path) as partial:
            partial.write_text("half")
            assert list(partials(tmp_path)) == [partial]  # the next run deletes what a killed process leaves
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("table.csv", "before")]
    write_text(path, "after")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("table.csv", "after")]
