"""What the documents name is there: links, paths, modules, and the flags of their commands."""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench.suite.config.flags import make_parser

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "results/README.md", ROOT / "tests/golden/README.md"]
)
FOLDERS = ("bench", "analysis", "benchmarks", "tests", "docs", "results", "examples", ".ci", ".github")
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def anchors(page):
    """Return the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pages
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            place = (page.parent / path).resolve() if path else page
            assert place.exists(), target
            assert not anchor or anchor in anchors(place), target


@pages
def test_paths_and_modules_are_there(page):
    if page.name == "CHANGELOG.md":
        return  # it also names what is gone
    text = page.read_text()
    for path in re.findall(rf"`((?:{'|'.join(map(re.escape, FOLDERS))})/[\w./-]+)`", text):
        made = path.startswith(("results/", "training/")) and not Path(path).suffix
        assert made or (ROOT / path).exists() or path == "results/benchmarks.csv", path
    for module in re.findall(r"python -m ((?:bench|analysis|benchmarks)[\w.]*)", text.replace("\n", " ")):
        assert find_spec(module.rstrip(".")), module


def commands():
    """Yield the runs that stand in code blocks, but for those with a variable or an ellipsis in them."""
    for page in PAGES:
        for block in re.findall(r"```\w*\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.splitlines():
                _, found, arguments = line.partition("python run_bench.py ")
                if found and not re.search(r"\$|\.\.\.", arguments):
                    yield f"{page.relative_to(ROOT)}: {arguments}", arguments


def test_runs_have_flags_that_exist():
    named = list(commands())
    assert len(named) > 30
    for where, arguments in named:
        try:
            make_parser().parse_args(shlex.split(arguments.rstrip('"'), comments=True))
        except SystemExit:
            pytest.fail(where)


def test_the_index_names_every_page():
    index = (ROOT / "docs/README.md").read_text()
    assert all(f"]({page.name})" in index for page in (ROOT / "docs").glob("*.md") if page.name != "README.md")


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
