"""Pages are short, and what they link to, name and quote is there. Their commands: test_page_commands.py."""

import json
import re
from pathlib import Path

import bench_report
import pytest
from pages import CHANGELOG, PAGES, REPOSITORY, WRITTEN, anchors, codes, name_of

from harness import config

README = REPOSITORY / "README.md"
#: Files of one's own that sweeps/components.md shows.
WRITTEN_BY_A_PAGE = ("nets/small_cnn.py", "data/rings.py", "methods/pull.py", "tasks/regression.py")
#: English that has to be read twice, and words that are no terms of the field.
UNCLEAR = re.compile(
    r"\b(whoever|heed(s|ed)?|mend(s|ed)?|at it|bears?|told of|for good|knobs?|stands|stand(?!-in)|hosted"
    r"|a step a|(one|step|worker|folder|line) an? (tensor|channel|gpu|slot|sweep|epoch|cell))\b",
    re.IGNORECASE,
)


def test_there_is_a_page_in_each_folder() -> None:
    folders = ("", "harness", "harness/methods", "sweeps", "slurm", "analysis", "analysis/results", "tests")
    assert {(REPOSITORY / folder / "README.md") for folder in folders} <= set(WRITTEN)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_pages_are_short(page: Path) -> None:
    assert len(page.read_text(encoding="utf-8").splitlines()) <= (150 if page == README else 250)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_the_readme_links_to_every_page_of_a_folder() -> None:
    linked = {(REPOSITORY / target).resolve() for target in re.findall(r"\]\(([^)#\s]+)", README.read_text())}
    assert {page for page in WRITTEN if page.name == "README.md"} - {README} <= linked


@pytest.mark.parametrize("page", [page for page in WRITTEN if page != CHANGELOG], ids=name_of)
def test_words_are_plain(page: Path) -> None:
    lines = re.sub(r"`[^`]*`", "", page.read_text(encoding="utf-8")).splitlines()
    assert not [line for line in lines if UNCLEAR.search(line)]


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    """Paths in code: from the page's folder, from the repository or from `harness/`. `runs/` is what commands make."""
    shown_as_new = {"harness/methods/weight_noise.py", "runs/bench.json", *WRITTEN_BY_A_PAGE}
    named = {code for code in codes(page) if re.fullmatch(r"[\w.-]+(/[\w.-]+)+\.(py|yaml|json|md|txt|sh)", code)}
    places = (page.parent, REPOSITORY, REPOSITORY / "harness")
    assert not [n for n in named - shown_as_new if not any((place / n).exists() for place in places)]


def test_sweeps_are_listed() -> None:
    page = REPOSITORY / "sweeps/README.md"
    assert {path.name for path in page.parent.glob("*.yaml")} <= set(codes(page))


def test_the_list_of_keys_is_that_of_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert config.main(["--markdown"]) == 0
    between = f"<!-- python -m harness.config --markdown -->\n{capsys.readouterr().out}<!-- end -->"
    assert between in (REPOSITORY / "sweeps/keys.md").read_text(encoding="utf-8")


def test_the_benchmarks_table_is_the_measured_one() -> None:
    rows = json.loads((REPOSITORY / "tests/benchmarks/results/bench.json").read_text())["rows"]
    shown = [row for row in rows if not row["what"].startswith(("growth", "one full paper table"))]
    lines = [cells[:-1] for cells in bench_report.cells(shown)]
    assert len(lines) == 78
    table = bench_report.markdown_table(bench_report.HEADINGS[:-1], lines)
    assert f"\n{table}\n" in (REPOSITORY / "tests/README.md").read_text(encoding="utf-8")
