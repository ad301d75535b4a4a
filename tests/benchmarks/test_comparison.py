import csv
import time
from dataclasses import replace

from benchmarks.comparison import HEADER, compare, line, ratios, write_csv


def test_a_ratio_is_theirs_over_ours(tiny):
    row = ratios("part", "what", "peer", [(1.0, 3.0), (2.0, 2.0), (4.0, 8.0)], tiny, unit="MiB", goal=1.5)
    assert (row.ours, row.theirs, row.ratio, row.low, row.high, row.pairs) == (2.0, 3.0, 2.0, 1.0, 3.0, 3)
    assert line(row) == "| part | what | peer | 2 | 3 | MiB | 2 | 1 to 3 | 1.5 |"
    assert line(row).count("|") == HEADER.splitlines()[0].count("|")


def test_pairs_are_interleaved_and_change_sides(tiny):
    called = []
    row = compare("p", "n", "q", lambda: called.append("o"), lambda: called.append("t"), tiny, pairs=3)
    assert ("".join(called), row.unit) == ("ot" + "ot" + "to" + "ot", "s")


def test_the_slower_side_has_the_larger_time(tiny):
    row = compare("p", "n", "q", lambda: None, lambda: time.sleep(0.02), tiny, images=4)
    assert row.theirs >= 1000 * 0.02 / 4 > row.ours
    assert row.unit == "ms/image"


def test_cpu_time_has_the_interval_of_its_median(tiny):
    """Of nine pairs the second and the eighth: P(at most one of nine is below the median) = 10 / 512 = 2 %."""
    times = iter(range(1000))
    clock = lambda: next(times) ** 2  # noqa: E731 - each reading is later by more
    row = compare("p", "n", "q", lambda: None, lambda: None, tiny, pairs=9, images=1, clock=clock)
    taken = [((4 * k + 1) ** 2 - (4 * k) ** 2, (4 * k + 3) ** 2 - (4 * k + 2) ** 2) for k in range(9)]
    each = sorted(b / a if k % 2 == 0 else a / b for k, (a, b) in enumerate(taken))
    assert (row.low, row.ratio, row.high) == (each[1], each[4], each[7])


def test_parts_measured_again_replace_their_rows(tmp_path, tiny):
    path = tmp_path / "new" / "performance.csv"
    first, second = (ratios(part, "what", "peer", [(1.0, 2.0)], tiny) for part in ("a", "b"))
    write_csv(path, [first, second])
    write_csv(path, [replace(first, name="again"), replace(first, name="other", device="GPU")])
    rows = list(csv.DictReader(path.open()))
    assert [(row["part"], row["name"], row["device"]) for row in rows] == [
        ("b", "what", "cpu"), ("a", "again", "cpu"), ("a", "other", "GPU"),
    ]  # fmt: skip
    assert not list(path.parent.glob(".*"))
    assert (rows[0]["ratio"], rows[0]["goal"]) == ("2", "")
