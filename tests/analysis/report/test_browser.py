"""The report in a real browser: it sorts, every image decodes, it fits a phone, it is silent, and it loads nothing."""

from pathlib import Path

import browser as chromium
import pytest

from analysis.exposure_bias import norms, variance, x0_error
from analysis.output.entries import Output
from analysis.quality import main_table as quality
from analysis.quality import samples
from analysis.records.load import load_results
from analysis.regenerate import regenerate
from analysis.report.html import write_report
from bench.suite.cli import run

pytestmark = [
    pytest.mark.ci,  # which has a browser
    pytest.mark.skipif(chromium.missing() is not None, reason=str(chromium.missing())),
]

ROOT = Path(__file__).parents[3]
TABLE = "#main-table ~ div table"
COLUMN = "thead th:nth-child(3)"  # the first of the distances


@pytest.fixture(scope="module")
def browser():
    with chromium.Browser() as session:
        yield session


@pytest.fixture(scope="module")
def report(folder_at, tmp_path_factory):
    """The report of four models, one of them not scored at the first step count."""
    folder = folder_at(tmp_path_factory.mktemp("browser") / "results")
    for model, values in {"adm": (10.0, 3.0), "ip": (9.0, 1.0), "es": (None, 2.0), "y": (0.5, 4.0)}.items():
        for steps, value in zip((5, 20), values, strict=True):
            folder.cell(model, steps, value=value, probes=model in ("adm", "ip"))
    folder.order("adm", "ip", "es", "y")
    results, out = load_results(folder.root), Output(folder.root)
    for analysis in (quality, samples, variance, norms, x0_error):
        analysis.analyse(results, out)
    return write_report(results, out)


@pytest.fixture
def opened(report, browser):
    """A browser that has just opened the report."""
    for log in ("browser", "performance"):
        browser.log(log)
    browser.devtools("Emulation.clearDeviceMetricsOverride")
    browser.open(report)
    return browser


def models(browser):
    return browser.run(
        f"return Array.from(document.querySelector('{TABLE}').tBodies[0].rows, r => r.cells[0].textContent)"
    )


def direction(browser):
    return browser.run(f"return document.querySelector('{TABLE} {COLUMN}').ariaSort")


def test_a_click_sorts_by_number_and_empty_entries_come_last(opened):
    assert models(opened) == ["adm", "ip", "es", "y"]
    opened.click(f"{TABLE} {COLUMN} button")
    assert (models(opened), direction(opened)) == (["y", "ip", "adm", "es"], "ascending")
    opened.click(f"{TABLE} {COLUMN} button")
    assert (models(opened), direction(opened)) == (["adm", "ip", "y", "es"], "descending")
    opened.click(f"{TABLE} thead th button")  # by name now
    assert (models(opened), direction(opened)) == (["adm", "es", "ip", "y"], "none")


@pytest.mark.parametrize("key", ["\ue007", " "], ids=["enter", "space"])
def test_the_keyboard_sorts(opened, key):
    opened.press(f"{TABLE} {COLUMN} button", key)
    assert (models(opened), direction(opened)) == (["y", "ip", "adm", "es"], "ascending")
    opened.press(f"{TABLE} {COLUMN} button", key)
    assert (models(opened), direction(opened)) == (["adm", "ip", "y", "es"], "descending")


def test_every_image_decodes(opened):
    assert min(widths_of_images(opened)) > 0


def test_the_images_of_a_published_run_are_files(browser):
    browser.open(ROOT / "results/digits/report.html")
    browser.run("for (const part of document.querySelectorAll('details')) part.open = true")
    assert len(widths := widths_of_images(browser)) > 10
    assert min(widths) > 0


def widths_of_images(browser):
    return browser.run("return Array.from(document.images, image => image.naturalWidth)")


@pytest.mark.parametrize("width", [320, 390, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_and_text_stands_out(opened, width, scheme):
    opened.devtools(
        "Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 500
    )
    opened.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    sizes = "const page = document.documentElement; return [innerWidth, page.scrollWidth, page.clientWidth]"
    window, content, room = opened.run(sizes)
    assert window == width  # a phone zooms out where something is too wide
    assert content <= room
    colours = "const style = getComputedStyle(document.body); return [style.color, style.backgroundColor]"
    ink, page = (sum(map(int, value[4:-1].split(","))) for value in opened.run(colours))
    assert (ink < 200 and page > 600) if scheme == "light" else (ink > 600 and page < 200)
    card = opened.run("return getComputedStyle(document.querySelector('figure .scroll')).backgroundColor")
    assert card == "rgb(255, 255, 255)"  # figures are drawn on white


@pytest.mark.slow
def test_the_default_runs_report_has_a_third_of_the_length_it_had(browser, tmp_path):
    """24,000 pixels once. The default models at as many step counts as by default, fewer steps and samples."""
    out = tmp_path / "run"
    assert run(["--steps", "5,6,8,10", "--samples", "64", "--quiet", "--out", str(out)])[0] == 0
    regenerate(out)
    browser.devtools("Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False)
    browser.open(out / "report.html")
    assert browser.run("return document.documentElement.scrollHeight") <= 8000
    assert browser.run("return document.images.length") >= 12


def test_the_console_is_silent_and_nothing_leaves(opened):
    opened.click(f"{TABLE} {COLUMN} button")
    opened.run("for (const part of document.querySelectorAll('details')) part.open = true")
    assert opened.log("browser") == []
    requests = [event["message"] for event in opened.log("performance") if "requestWillBeSent" in event["message"]]
    assert requests  # the page itself
    assert not [event for event in requests if '"url":"file:' not in event and '"url":"data:' not in event]


def test_the_report_prints(opened):
    assert opened.devtools("Page.printToPDF", preferCSSPageSize=True)["data"].startswith("JVBERi")  # %PDF, in base64
