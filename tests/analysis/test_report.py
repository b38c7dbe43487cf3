"""report.html in a real browser, and what make_figures.py leaves behind when something goes wrong."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from analysis_cost import Shape, write_sweep
from blank_pictures import blank_pictures
from PIL import Image
from synthetic_sweep import MEASURED, SweepWriter, quickstart

from analysis import make_figures, measure, render, style
from analysis.figures import find_figures
from harness.core.errors import UserError
from harness.tasks.classification import ACCURACY

#: What a sweep of one model on one data set shows: the others compare several, or several deploy methods.
#: Those that need several deploy methods, or more trainings than the sweep here has.
NOT_HERE = ("deploy_matrix", "oscillation_and_score")
OF_ONE_GROUP = [
    module for module in find_figures() if module.scope not in render.OVERALL and module.name not in NOT_HERE
]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "<script>document.title = 'taken over'</script> & more"


def draw_one_figure_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what is about files, not about figures."""
    blank_pictures(monkeypatch)
    (one,) = [module for module in find_figures() if module.name == "univariate_model"]
    monkeypatch.setattr(render, "find_figures", lambda: [one])


def drawn(root: Path) -> Path:
    """A drawn sweep in which one run failed, one final is missing and one record is corrupt."""
    write_sweep(root, Shape(trials=10, seeds=3, epochs=4, layers=5))
    folder = root / "large"
    cells = json.loads((folder / "cells.json").read_text())
    runs = folder / "runs"
    (runs / cells["cells"][1]["finals"]["2"] / "record.json").unlink()
    (runs / cells["cells"][2]["finals"]["0"] / "record.json").write_text('{"run_id": ')
    failed = next(iter(sorted(runs.iterdir())))
    (failed / "status.json").write_text(json.dumps({"state": "failed", "reason": HOSTILE}))
    make_figures.main(["--root", str(root)])
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That sweep; its pictures have no content."""
    with pytest.MonkeyPatch.context() as patch:
        blank_pictures(patch)
        return drawn(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return page_of(root)


def page_of(root: Path) -> str:
    return (root / "large/figures/report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with its pictures, which take most of the time: for slow tests."""
    return drawn(tmp_path_factory.mktemp("whole"))


def test_the_report_says_everything(page: str) -> None:
    for title in (measure.worded(module.title, [ACCURACY]) for module in OF_ONE_GROUP):
        assert f"<h3>{title}</h3>" in page
    assert page.count("data:image/png;base64,") == len(OF_ONE_GROUP)
    assert page.count('<span class="verdict') == 5
    assert page.index("<h3>Comparisons</h3>") < page.index("<h3>The paper's claims</h3>")
    assert "28 of 30 final runs" in page
    assert "ste,target_bit=2: seed 2: final not finished" in page
    assert "skipped corrupt records: 1" in page
    assert "name: large" in page  # the sweep as it was launched
    assert "Of trials with equal target, the one with the lowest validation loss was chosen" in page
    assert "python analysis/make_figures.py --root" in page


def test_the_report_needs_nothing_else(page: str, root: Path) -> None:
    assert not re.search(r"<(script|link|iframe)\b", page)
    sources = re.findall(r'src="([^"]*)"', page)
    assert sources
    assert all(source.startswith("data:") for source in sources)
    links = [link for link in re.findall(r'href="([^"]*)"', page) if not link.startswith("#")]
    assert {"accuracy_over_bits.pdf", "claims.csv", "cross_bit_table.tex", "ranking.md"} <= set(links)
    assert all((root / "large/figures" / link).is_file() for link in links)


def test_every_table_scrolls_by_itself(page: str) -> None:
    assert page.count("<table") == page.count('<div class="wide"><table') > 4


def test_what_runs_say_is_text(page: str) -> None:
    assert "&lt;script&gt;" in page


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None and "HARNESS_CI" not in os.environ, reason="needs Chromium")
def test_the_report_in_a_browser(whole: Path, tmp_path: Path) -> None:
    """Offline: every picture is drawn, nothing sticks out sideways, and no text is left to a template."""
    probe = """<script>addEventListener("load", () => {
        const pictures = [...document.images];
        document.title = JSON.stringify({
            broken: pictures.filter(image => !image.complete || image.naturalWidth < 400).length,
            count: pictures.length,
            sideways: document.documentElement.scrollWidth - document.documentElement.clientWidth,
            text: document.body.innerText.includes("{{"), title: document.title });
    })</script></body>"""
    (tmp_path / "report.html").write_text(page_of(whole).replace("</body>", probe), encoding="utf-8")
    shot = tmp_path / "shot.png"
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1100,4000",
        "--virtual-time-budget=10000",
    ]  # fmt: skip
    address = (tmp_path / "report.html").as_uri()
    dumped = subprocess.run(
        [*command, "--dump-dom", address], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    found = re.search(r"<title>(.*?)</title>", dumped)
    assert found is not None
    seen: dict[str, Any] = json.loads(found[1])
    pictures = len(OF_ONE_GROUP)
    title = "large: which way of training survives quantization?"
    assert seen == {"broken": 0, "count": pictures, "sideways": 0, "text": False, "title": title}
    subprocess.run([*command, f"--screenshot={shot}", address], capture_output=True, timeout=120, check=True)
    with Image.open(shot) as image:
        assert image.size == (1100, 4000)
        grey = image.convert("L").resize((110, 400))
        inked = [min(grey.getpixel((x, y)) for x in range(110)) < 200 for y in range(400)]  # type: ignore[operator, type-var]
    assert sum(inked) > 120  # not a blank page: text or pictures on most lines


@pytest.mark.slow
def test_the_same_records_give_the_same_page(whole: Path, tmp_path: Path) -> None:
    out = whole / "large/figures"
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    make_figures.main(["--root", str(whole)])
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first


@pytest.mark.slow
def test_a_figure_that_fails_leaves_the_last_set_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quickstart(tmp_path).write()
    draw_one_figure_only(monkeypatch)
    make_figures.main(["--root", str(tmp_path)])
    out = tmp_path / "quickstart/figures"
    first = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(render, "write_frames", fail)  # after the figures, before the report
    with pytest.raises(OSError, match="No space left"):
        make_figures.main(["--root", str(tmp_path)])
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == first
    assert [path.name for path in out.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.slow
def test_what_is_no_longer_made_is_removed_and_other_files_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quickstart(tmp_path).write()
    draw_one_figure_only(monkeypatch)
    make_figures.main(["--root", str(tmp_path)])
    out = tmp_path / "quickstart/figures"
    (out / "my_own_notes.txt").write_text("keep")
    made = json.loads((out / "made.json").read_text())
    (out / "made.json").write_text(json.dumps([*made, "retired.pdf", "../../elsewhere"]))
    (out / "retired.pdf").write_text("old")
    (out.with_name(".figures.999999999")).mkdir()  # of a process that was killed
    (tmp_path / "elsewhere").write_text("keep")
    make_figures.main(["--root", str(tmp_path)])
    assert not (out / "retired.pdf").exists()
    assert not out.with_name(".figures.999999999").exists()
    assert (out / "my_own_notes.txt").exists()
    assert (tmp_path / "elsewhere").exists()


def test_one_figure_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quickstart(tmp_path).write()
    make_figures.main(["--root", str(tmp_path), "--figure", "accuracy_over_bits"])
    names = sorted(path.name for path in (tmp_path / "quickstart/figures").iterdir())
    assert names == [f"accuracy_over_bits.{suffix}" for suffix in ("csv", "json", "pdf", "png")]
    assert "claims" not in capsys.readouterr().out


@pytest.mark.slow
def test_two_sweeps_by_name_are_both_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [module for module in find_figures() if module.scope in render.OVERALL or module.name == "univariate_model"]
    blank_pictures(monkeypatch)
    monkeypatch.setattr(render, "find_figures", lambda: kept)
    monkeypatch.setattr(style, "_titles", True)  # set back afterwards
    for name in ("one", "two", "three"):
        quickstart(tmp_path, name).write()
    make_figures.main(["--root", str(tmp_path), "--sweep", "two", "--sweep", "one", "--sweep", "two", "--no-titles"])
    assert (tmp_path / "one/figures/report.html").exists()
    page = (tmp_path / "two/figures/report.html").read_text(encoding="utf-8")
    assert "--sweep two --no-titles" in page
    assert not (tmp_path / "three/figures").exists()
    links = re.findall(r'href="([^"#]+)"', (tmp_path / "figures/report.html").read_text(encoding="utf-8"))
    assert links == ["../two/figures/report.html", "../one/figures/report.html"]


@pytest.mark.slow
def test_several_sweeps_have_a_page_that_leads_to_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [module for module in find_figures() if module.scope in render.OVERALL or module.name == "univariate_model"]
    blank_pictures(monkeypatch)
    monkeypatch.setattr(render, "find_figures", lambda: kept)  # test_the_report_in_a_browser draws the others
    quickstart(tmp_path, "one").write()
    model = {"name": "resnet18"}
    two = SweepWriter(tmp_path, "two")
    for method, target in MEASURED:
        two.add(method, target, model=model)
    two.write()
    make_figures.main(["--root", str(tmp_path)])
    folder = tmp_path / "figures"
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 1
    assert page.count('<span class="verdict') == 10
    links = re.findall(r'href="([^"#]+)"', page)
    assert [link for link in links if "/" in link] == ["../one/figures/report.html", "../two/figures/report.html"]
    assert "performance_profile.csv" in links
    assert all((folder / link).exists() for link in links)
    assert (folder / "performance_profile.pdf").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--figure", "paretto"], "unknown figure 'paretto'; did you mean 'pareto'?"),
        (["--figure", "pareto"], "--figure pareto: no tuning trials"),
        (["--venue", "neurips2042"], "unknown venue 'neurips2042'; did you mean 'neurips2024'?"),
        (["--sweep", "quickstat"], "unknown sweep 'quickstat'; did you mean 'quickstart'?"),
        (["--figure", "performance_profile"], "--figure performance_profile: "),
    ],
)
def test_bad_requests_write_nothing(arguments: list[str], said: str, tmp_path: Path) -> None:
    quickstart(tmp_path).write()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as error:
        make_figures.main(["--root", str(tmp_path), *arguments])
    assert said in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_place_that_is_not_a_folder(tmp_path: Path) -> None:
    quickstart(tmp_path).write()
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(UserError, match="cannot be made or written to"):
            make_figures.main(["--root", str(tmp_path), "--out", str(out)])


def test_another_venue_has_its_own_width(tmp_path: Path) -> None:
    quickstart(tmp_path).write()
    arguments = ["--root", str(tmp_path), "--figure", "accuracy_over_bits"]
    try:
        make_figures.main([*arguments, "--venue", "neurips2024"])
        with Image.open(tmp_path / "quickstart/figures/accuracy_over_bits.png") as image:
            assert image.width == 5.5 * 200
    finally:
        make_figures.main([*arguments, "--venue", "tmlr2023"])
