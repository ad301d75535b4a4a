"""The report: what it holds, in which order, that it needs nothing beside it, and that nothing in it is markup."""

import base64
import json
import os
import re
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from synthetic_results import run_record

from analysis.output.entries import Output
from analysis.quality.main_table import analyse as quality
from analysis.records.load import load_results
from analysis.regenerate import regenerate
from analysis.report.html import build_report, list_configuration, without_paths, write_report
from analysis.report.verdict import verdict

HOSTILE = "<img src=x onerror=alert(1)>"
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """The elements of a report, in order, with their attributes and texts; every tag must be closed."""

    def __init__(self, text):
        super().__init__()
        self.elements, self._open = [], []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), []))
        if tag not in VOID:
            self._open.append(self.elements[-1])

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        for _, _, texts in self._open:
            texts.append(data)

    def all(self, *tags):
        return [(attributes, "".join(texts).strip()) for tag, attributes, texts in self.elements if tag in tags]

    def texts(self, *tags):
        return [text for _, text in self.all(*tags)]


@pytest.fixture
def results(folder):
    for model, value in (("adm", 0.5), ("ip", 0.4)):
        for steps in (5, 20):
            folder.cell(model, steps, value=value + 1 / steps, probes=False)
    return load_results(folder.root)


@pytest.fixture
def out(results):
    """An output with a figure and two tables, as analyses leave it."""
    out = Output(results.root)
    Image.fromarray(np.arange(600, dtype=np.uint8).reshape(20, 30)).save(out.figures / "curve.png")
    out.figure("Norms", [out.figures / "curve.png"], "A curve", "Its caption, a < b. N = 20.")
    out.table("Norms", "short", pd.DataFrame({"model": ["adm"], "z": [1.23456]}), "Short", "Of one row.")
    out.table("Spectra", "long", pd.DataFrame({"z": range(41)}), "Long", "Of many rows.")
    return out


def page(results, out):
    return Page(build_report(results, out))


def test_everything_stands_in_the_order_of_the_analyses(results, out):
    found = page(results, out)
    assert found.texts("h1", "h2", "h3") == [
        "Exposure bias: adm, ip", "Verdict", "Main table", "Norms", "A curve", "Short", "Spectra", "Long",
        "How to read this", "How this was made",
    ]  # fmt: skip
    anchors = [attributes["href"].removeprefix("#") for attributes, _ in found.all("a")]
    assert anchors == [attributes["id"] for attributes, text in found.all("h2") if text != "Verdict"]
    assert found.texts("li")[:3] == verdict(results)
    assert "adm, ip; ddpm at 5, 20 steps; N = 20 samples a seed, 1 seed (0)." in found.texts("p")
    # Short tables are shown and long ones named.
    assert [attributes.get("class") for attributes, text in found.all("td") if text == "1.235"] == ["number"]
    assert "41 rows, in tables/long.csv." in found.texts("p")
    assert found.texts("p").count("Of many rows.") == 1


def test_leading_figures_come_first_and_the_rest_is_folded(results, out):
    out.table("Appendix", "more", pd.DataFrame({"z": [1, 2]}), "More", "")
    out.figure("Samples", [out.figures / "curve.png"], "Images", "")
    found = page(results, out)
    sections = [text for text in found.texts("h2") if text not in ("Verdict", "Main table")]
    assert sections[:4] == ["Samples", "Norms", "Spectra", "Appendix"]
    # No figure of the first sections.
    assert found.texts("summary") == ["Short", "Long", "More", "Terms, bands and files"]


def test_columns_that_say_nothing_are_left_out(results, out):
    frame = pd.DataFrame({"model": ["a", "b"], "n": [20, 20], "none": [None, None], "z": [1, 2]})
    out.table("Norms", "constant", frame, "Constant", "Its caption.")
    found = page(results, out)
    assert found.texts("th")[-4:] == ["model", "z", "a", "b"]
    assert "In every row: n 20." in found.texts("p")


def test_the_main_table_with_its_best_in_bold(results, out, terms):
    for record in results.cells:
        level = {"adm": 1.0, "ip": 0.5 if record.cell["steps"] == 5 else 1.0}[record.cell["model"]]
        np.save(record.folder / "kernel.npy", terms(level, seed=len(record.cell["model"])))
    quality(results, out)
    found = page(results, out)
    assert found.texts("h3").count("Frechet distance against steps") == 0  # once, at the top
    assert found.texts("th")[:4] == ["model", "sampler", "5 steps", "20 steps"]
    assert found.texts("td")[:9] == ["ddpm", "0.700", "0.550", "ddpm", "0.600", "0.450", "", "5", "20"]
    assert found.texts("b") == ["0.550", "0.600", "0.450"]


def test_a_folder_without_scores(folder):
    cell = folder.cell(probes=False)
    (cell / "metrics.json").write_text((cell / "metrics.json").read_text().replace("fd_toy", "other"))
    results = load_results(folder.root)
    found = page(results, Output(results.root))
    assert "No Frechet distance was computed." in found.texts("p")
    assert found.all("table") == []


def test_a_figure_is_the_file_itself(results, out):
    found = page(results, out)
    ((image, _),) = found.all("img")
    prefix = "data:image/png;base64,"
    assert image["src"].startswith(prefix)
    assert base64.b64decode(image["src"].removeprefix(prefix)) == (out.figures / "curve.png").read_bytes()
    assert (image["width"], image["height"], image["alt"]) == ("24", "16", "A curve")
    assert found.texts("figcaption") == ["Its caption, a < b. N = 20."]
    (out.root / "records.zip").touch()  # a published run, whose figures are files beside the report
    ((image, _),) = page(results, out).all("img")
    assert image["src"] == "figures/curve.png"


@pytest.mark.parametrize("content", [None, b"", b"\x89PNG"])
def test_a_figure_that_cannot_be_read_is_named(results, out, content):
    path = out.figures / "curve.png"
    path.unlink() if content is None else path.write_bytes(content)
    found = page(results, out)
    assert found.all("img") == []
    assert "figures/curve.png cannot be read." in found.texts("p")


def test_a_table_with_a_figures_caption_points_there_from_its_section(results, out):
    out.table("Norms", "again", pd.DataFrame({"z": [1]}), "Again", "Its caption, a < b. N = 20.")
    found = page(results, out)
    assert found.texts("figcaption") == ["Its caption, a < b. N = 20."]
    assert found.texts("p").count("See the figure “A curve”.") == 1
    assert found.texts("h2", "h3")[2:7] == ["Norms", "A curve", "Short", "Again", "Spectra"]


def test_nothing_is_loaded_from_elsewhere(results, out):
    text = build_report(results, out)
    links = [
        value
        for _, attributes, _ in Page(text).elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "data", "action", "poster", "background")
    ]
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "://" not in text
    assert re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", text) is None
    assert "default-src 'none'" in text


def test_names_are_never_markup(folder):
    folder.cell("adm", value=0.5, probes=False)
    folder.cell(HOSTILE, value=0.5, probes=False)
    folder.cell("$verdict & <b>", value=None, probes=False)
    (folder.root / "cells" / "<script>x<x>").mkdir()
    (folder.root / "run.json").write_text(json.dumps(run_record({HOSTILE: HOSTILE}, command=[HOSTILE])))
    results = load_results(folder.root)
    out = Output(results.root)
    Image.new("L", (9, 9)).save(out.figures / "a.png")
    out.figure(HOSTILE, [out.figures / "a.png"], f'"{HOSTILE}"', HOSTILE)
    out.table(HOSTILE, "t", pd.DataFrame({HOSTILE: [HOSTILE]}), HOSTILE, HOSTILE)
    text = build_report(results, out)
    found = Page(text)
    assert HOSTILE not in text
    assert len(found.all("img")) == 1
    assert found.all("img")[0][0]["alt"] == f'"{HOSTILE}"'
    assert len(found.all("script")) == 1
    assert not any(name.startswith("on") for _, attributes, _ in found.elements for name in attributes)
    assert found.texts("h1") == ["Exposure bias: adm"]
    assert f"model is {HOSTILE!r}, which is no name" in unescape(text)
    assert "cells/<script>x<x> is incomplete" in unescape(text)


def test_problems_are_shown_without_the_folders_path(results, out):
    assert "What was left out, and why" not in page(results, out).texts("h2")
    results.problem(f"{results.root / 'cells' / 'half'} is incomplete and left out; run again to finish it")
    text = build_report(results, out)
    assert "cells/half is incomplete and left out; run again to finish it" in Page(text).texts("li")
    assert str(results.root) not in text


COMMAND = ["/suite/run_bench.py", "--out", "/mine/runs/first", "--models", "adm,mine=/mine/w.pt"]


def test_the_settings_are_folded_away_or_said_to_be_unknown(results, out, folder):
    found = page(results, out)
    assert "Not known: there is no run.json." in found.texts("p")
    assert "Full configuration and environment" not in found.texts("summary")
    (folder.root / "run.json").write_text(json.dumps(run_record({"steps": [5, 20]}, command=COMMAND)))
    text = build_report(load_results(folder.root), out)
    found = Page(text)
    assert "steps[5, 20]" in found.texts("details")[-1].replace("\n", "")
    assert "run_bench.py --out first --models adm,mine=w.pt" in found.texts("td")
    assert "/mine" not in text
    assert "/suite" not in text


def test_a_report_is_replaced_whole(results, out, monkeypatch):
    path = write_report(results, out)
    assert path == results.root / "report.html"
    first = path.read_bytes()
    assert write_report(results, out).read_bytes() == first  # the same records, the same bytes
    out.table("Spectra", "more", pd.DataFrame({"z": [1]}), "More", "")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_report(results, out)
    assert path.read_bytes() == first
    assert [item.name for item in results.root.glob("*report*")] == ["report.html"]
    assert list(results.root.glob(".*")) == []


def test_regenerate_writes_the_report(folder):
    folder.cell("adm", 5)
    folder.cell(HOSTILE, 5)
    regenerate(folder.root)
    path = folder.root / "report.html"
    found = Page(path.read_text(encoding="utf-8"))
    drawn = {file.stem for file in (folder.root / "figures").glob("*.png")}
    assert len(found.all("img")) == len(drawn) >= 3
    assert all(caption for caption in found.texts("figcaption"))
    assert path.stat().st_size < 15e6 * len(drawn) / 20


def test_the_settings_are_listed_without_paths():
    settings = {"models": {"adm": {"eps": [[1.0, 0.0]], "weights": "/mine/w.pt"}}, "steps": [5, 20]}
    record = {"configuration": settings, "command": COMMAND, "packages": {"numpy": "2.4"}, "device": "cpu", "end": None}
    command = "run_bench.py --out first --models adm,mine=w.pt"
    assert list_configuration(record) == {
        "Configuration": [("models.adm.eps", "[[1.0, 0.0]]"), ("models.adm.weights", "w.pt"), ("steps", "[5, 20]")],
        "Environment": [("command", command), ("packages.numpy", "2.4"), ("device", "cpu")],
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--out=/a/b c/d", "--out=d"), ("C:\\runs\\first", "first"), ("~/runs/x", "x"), ("results/x", "results/x"),
        ("10,20", "10,20"), ("a=/b/c,d=/e/f", "a=c,d=f"), ("/", ""), ("", ""),
    ],
)  # fmt: skip
def test_paths_are_cut_to_their_last_part(text, expected):
    assert without_paths(text) == expected
