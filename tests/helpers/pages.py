"""The project's pages (Markdown files), and what tests look for in them."""

import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
_FOLDERS = ("harness", "sweeps", "slurm", "analysis", "tests")
#: All of them, with the tables that analysis/make_figures.py writes.
PAGES = sorted([*REPOSITORY.glob("*.md"), *(page for name in _FOLDERS for page in (REPOSITORY / name).rglob("*.md"))])
#: Those that somebody wrote.
WRITTEN = [page for page in PAGES if "figures" not in page.parts]
CHANGELOG = REPOSITORY / "CHANGELOG.md"
#: Components of one's own; its blocks are files, whose names are in their first lines.
COMPONENTS = REPOSITORY / "sweeps/components.md"


def name_of(page: Path) -> str:
    """A page's path in the repository, for a test's id."""
    return page.relative_to(REPOSITORY).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


#: The method that the page on methods shows, a file.
(METHOD,) = blocks(REPOSITORY / "harness/methods/README.md", "python")


def write_files(page: Path, folder: Path) -> None:
    """Write the blocks of a page whose first line is `# path/to/file.py` to a folder."""
    for block in (*blocks(page, "python"), *blocks(page, "yaml")):
        if found := re.match(r"# (\S+\.(?:py|yaml))\n", block):
            path = folder / found[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block[found.end() :], encoding="utf-8")


def without_blocks(page: Path) -> str:
    """A page's text without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def codes(page: Path) -> list[str]:
    """What a page's sentences and tables set as code, on one line each."""
    return [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", without_blocks(page))]


def commands(page: Path) -> list[str]:
    """The lines of its bash blocks."""
    return [line for block in blocks(page, "bash") for line in block.splitlines() if line.strip()]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
