"""analysis/results: every record comes from its sweep file, and every committed figure and table from the records."""

import filecmp
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest

from analysis.provenance import PACKAGES
from harness.launch import main as launch

REPOSITORY = Path(__file__).parents[2]
RESULTS = REPOSITORY / "analysis/results"
SWEEPS = sorted(path.parent.name for path in RESULTS.glob("*/runs.zip"))
#: What a committed page may not tell of the machine that it was made on.
_OF_A_MACHINE = re.compile(rb"/(home|root|tmp|work|mnt|scratch)/|localhost")


def test_there_are_results() -> None:
    assert {"quickstart", "mlp5"} <= set(SWEEPS)


@pytest.mark.parametrize("name", SWEEPS)
def test_the_committed_sweep_file_names_every_record(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = REPOSITORY / f"sweeps/{name}.yaml"
    assert launch([str(sweep), "--root", str(RESULTS), "--dry-run", "--runs"]) == 0
    words = [line.split() for line in capsys.readouterr().out.splitlines()]
    named = {line[0] for line in words if len(line) > 1 and line[1] in ("tune", "final")}
    with zipfile.ZipFile(RESULTS / name / "runs.zip") as packed:
        recorded = {entry.partition("/")[0] for entry in packed.namelist()}
    assert len(recorded) >= 9
    assert recorded == named


@pytest.mark.parametrize("name", SWEEPS)
def test_no_file_tells_of_a_machine(name: str) -> None:
    for path in sorted((RESULTS / name).rglob("*")):
        if path.suffix in (".json", ".csv", ".md", ".tex", ".html"):
            assert not _OF_A_MACHINE.search(path.read_bytes()), path
    with zipfile.ZipFile(RESULTS / name / "runs.zip") as packed:
        for entry in packed.namelist():
            assert not _OF_A_MACHINE.search(packed.read(entry)), entry


#: Beside what figures name as theirs: what makes their files. Training libraries have no part in it.
_MAKE_FILES = ("Jinja2", "MarkupSafe", "contourpy", "cycler", "fonttools", "kiwisolver", "pillow")


def differing_versions() -> list[str]:
    """The packages that decide a figure's bytes and are installed in another version than constraints.txt has."""
    pinned = dict(line.split("==") for line in (RESULTS / "constraints.txt").read_text().splitlines() if "==" in line)
    found = {name: version(name) for name in (*PACKAGES, *_MAKE_FILES)}
    return [f"{name} {it} rather than {pinned[name]}" for name, it in found.items() if it != pinned[name]]


def test_the_pages_hold_the_ranking_as_it_was_computed() -> None:
    for sweep, count, pages in (("notebook_mlp", 5, (RESULTS, REPOSITORY)), ("mlp5", 7, ())):
        lines = (RESULTS / sweep / "figures/ranking.md").read_text().splitlines()
        rows = [line for line in lines if line.startswith("|")]
        assert len(rows) == 2 + count
        for page in (*(folder / "README.md" for folder in pages), *([] if pages else [RESULTS / "mlp.md"])):
            assert "\n".join(rows) + "\n\n" in page.read_text()


def test_the_tables_of_other_studies_hold_what_was_computed() -> None:
    """In each section, the rows that name a series of the sweep that the section links to first."""
    checked: Counter[str] = Counter()
    # Pages on rivals and on oscillation have tables of other columns, and tests of their own.
    names = [path for path in sorted(RESULTS.glob("*.md")) if not path.name.startswith(("rivals", "oscillation"))]
    pages = "".join(path.read_text() for path in names)
    for section in re.split(r"^## ", pages, flags=re.MULTILINE)[1:]:
        linked = re.search(r"\]\(\.\./\.\./sweeps/(\w+)\.yaml\)", section)
        if linked is None:
            continue
        # Of several networks the first, an MLP, unless there are more tables.
        tables = [pd.read_csv(path, dtype={"bits": str}) for path in sorted(figures_of(linked[1]))]
        computed: dict[tuple[str, str], float] = {}
        header: list[str] = []
        for line in section.splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
            if cells and not cells[0]:
                header, frame = cells, tables[0]
                tables = tables[1:] or tables
                computed = {(row.series, row.bits): row.mean for row in frame.itertuples()}
            label = cells[0].removesuffix(" (the control)").strip("`") if cells else ""
            bits = [name.removesuffix(" bits") for name in header]
            numbers = {b: cell for b, cell in zip(bits, cells) if (label, b) in computed}
            assert numbers == {b: as_printed(computed[label, b], cell) for b, cell in numbers.items()}, line
            checked[linked[1]] += bool(numbers)
    assert dict(checked) == {
        "notebook_mlp": 13,
        "finetune_mlp5": 7,
        "resnet18_short": 14,
        "batch_norm": 18 + 5,
        "vit_norms": 18,
        "cause": 6,
        "resnet18_reduced": 10,
        "vit_reduced": 7,
        "per_bit": 3,
        "one_checkpoint": 3,
        "super_resolution": 10 + 5,
        "language": 10,
    }


def figures_of(sweep: str) -> list[Path]:
    return list((RESULTS / sweep / "figures").glob("cross_bit_table*.csv"))


def as_printed(value: float, cell: str) -> str:
    """With as many decimals as a cell has, but one at least."""
    return f"{value:.{max(1, len(cell.partition('.')[2]))}f}"


def test_the_table_of_weights_and_activations_holds_what_was_computed() -> None:
    """Accuracy at the target and at none other, and its difference from float training at the same point."""
    frame = pd.read_csv(RESULTS / "w4a4_digits/figures/rows.csv").query("split == 'test' and model == 'vit_tiny'")
    frame = frame[frame["trial"].isna()]
    points = [f"w{row.bits}a{row.activations:.0f}" for row in frame.itertuples()]
    means = (100 * frame["accuracy"]).groupby([frame["method"], frame["target_bit"].fillna(""), points]).mean()
    lines = (RESULTS / "weights_and_activations.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    assert len(rows) == 7
    for label, *cells in rows:
        method = "+".join(re.findall(r"\w+", label))
        for at, (value, difference) in {"w3a3": cells[:2], "w4a4": cells[2:]}.items():
            mean, rounded = means[method, at, at], means["float", "", at]
            assert value == f"{mean:.1f}", (label, at)
            assert difference.startswith(f"{mean - rounded:+.1f} ["), (label, at)
    assert (
        f"| float training, rounded | {means['float', '', 'w3a3']:.1f} | | {means['float', '', 'w4a4']:.1f} | |"
        in lines
    )


def means_at_three_bits(sweep: str, further: str = "") -> "pd.Series[float]":
    """Of final runs: test accuracy in %, by method and deploy method, weights alone rounded to 3 bits."""
    frame = pd.read_csv(RESULTS / sweep / "figures/rows.csv").query(f"split == 'test' {further}")
    frame = frame[frame["trial"].isna() & (frame["bits"].astype(str) == "3") & frame["activations"].isna()]
    return (100 * frame["accuracy"]).groupby([frame["method"], frame["deploy"]]).mean()


def test_the_tables_of_rivals_hold_what_was_computed() -> None:
    """Accuracy of a small ViT and a ResNet at 3 bits by deploy method; at w8a8 by bits and quantizer of gradients."""
    lines = (RESULTS / "rivals.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    means = means_at_three_bits("rivals_ptq", "and model == 'vit_tiny'")
    for label, rtn, gptq, gained, adaround, more in rows[2:7]:
        method = label.strip("`").removesuffix(" training")
        assert [rtn, gptq, adaround] == [f"{means[method, way]:.1f}" for way in ("rtn", "gptq", "adaround")]
        for way, difference in {"gptq": gained, "adaround": more}.items():
            assert difference.startswith(f"{means[method, way] - means[method, 'rtn']:+.1f} [")
    means = means_at_three_bits("rivals_ptq_cifar")
    for label, *cells in rows[9:11]:
        ways = ("rtn", "bn_reestimation", "gptq", "adaround")
        assert cells == [f"{means[label.strip('`').removesuffix(' training'), way]:.1f}" for way in ways]
    frame = pd.read_csv(RESULTS / "rivals_gradients/figures/rows.csv").query("split == 'test' and model == 'vit_tiny'")
    frame = frame[frame["trial"].isna() & (frame["bits"] == "8") & (frame["activations"] == 8)]
    means = (100 * frame["accuracy"]).groupby(frame["cell"]).mean()
    (control,) = (value for cell, value in means.items() if str(cell).startswith("ste"))
    assert len(rows) == 18
    for bits, *cells in rows[13:]:
        for place, quantizer in enumerate(("tensor", "sample", "householder")):
            (mean,) = (v for c, v in means.items() if str(c).endswith(f"bits={bits},statquant.quantizer={quantizer}"))
            assert cells[2 * place] == f"{mean:.1f}"
            assert cells[2 * place + 1].startswith(f"{mean - control:+.1f} [")


def test_the_table_of_bits_by_layer_holds_what_was_computed() -> None:
    text = (RESULTS / "rivals_mixed_dynamic_cache.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]
    models = {"MLP": "mlp5", "ViT": "vit_tiny"}
    own = [row for row in rows if row[0].split(",")[0] in models]
    assert len(own) == 4
    for label, rtn, *cells in own:
        model, training = label.split(", ")
        means = means_at_three_bits("rivals_mixed", f"and model == '{models[model]}'")
        method = training.strip("`").removesuffix(" training")
        assert rtn == f"{means[method, 'rtn']:.1f}"
        for place, way in enumerate(("ohq", "hessian_trace", "mpiq", "random_bits")):
            assert cells[2 * place] == f"{means[method, way]:.1f}"
            assert cells[2 * place + 1].startswith(f"{means[method, way] - means[method, 'rtn']:+.1f} [")


def test_the_table_of_correlations_holds_what_was_computed() -> None:
    rows = re.findall(r"^\| (MLP|ViT), (\d) bits \| (.*) \|$", (RESULTS / "oscillation.md").read_text(), re.MULTILINE)
    assert len(rows) == 6
    for model, target, text in rows:
        name = {"MLP": "mlp5", "ViT": "vit_tiny"}[model]
        frame = pd.read_csv(RESULTS / f"methods_digits/figures/oscillation_and_score-{name}-digits.csv")
        *cells, trainings = (cell.strip() for cell in text.split(" | "))
        own = frame[frame["target_bit"] == int(target)]
        assert trainings == str(own["cells"].max())
        for side, cell in zip(("below", "at", "above"), cells, strict=True):
            found = own.loc[own["side"] == side, ["rho", "rho_low", "rho_high"]]
            numbers = [] if found.empty else [f"{value:z.2f}" for value in found.iloc[0]]
            assert re.findall(r"-?\d+\.\d+", cell) == numbers


def test_the_table_of_caches_holds_what_was_computed() -> None:
    frame = pd.read_csv(RESULTS / "rivals_language/figures/rows.csv").query("split == 'test'")
    means = frame.groupby(["method", "kv", "deploy"])["score"].mean()
    text = (RESULTS / "rivals_mixed_dynamic_cache.md").read_text().partition("cache at |")[2]
    rows = re.findall(r"^\| `?(\w+)`?(?: training)?, (\d) bits \| (.*) \|$", text, flags=re.MULTILINE)
    assert len(rows) == 6
    for method, bits, cells in rows:
        rtn, kivi, less, wkvquant, lesser = cells.split(" | ")
        own = means[method, int(bits)]
        assert [rtn, kivi, wkvquant] == [f"{own[way]:.3f}" for way in ("rtn", "kivi", "wkvquant")]
        for way, cell in (("kivi", less), ("wkvquant", lesser)):
            assert cell.startswith(f"{own[way] - own['rtn']:+.3f} [")


def test_the_table_of_dynamic_activations_holds_what_was_computed() -> None:
    frame = pd.read_csv(RESULTS / "rivals_super_resolution/figures/rows.csv").query("split == 'test'")
    own = frame[frame["trial"].isna() & (frame["bits"] == frame["activations"].astype("Int64").astype(str))]
    targets = own["target_bit"].fillna("")
    own = own[(targets == "") | (targets == "w" + own["bits"] + "a" + own["bits"])]
    means = own.groupby(["method", "deploy", "bits"])["score"].mean()
    text = (RESULTS / "rivals_mixed_dynamic_cache.md").read_text().partition("trained, then deployed")[2]
    rows = re.findall(r"^\| `?(\w+)`?, `(\w+)` \| (.*) \|$", text, flags=re.MULTILINE)
    assert len(rows) == 5
    for method, way, cells in rows:
        for bits, value, less in zip("432", *[[cell.strip() for cell in cells.split("|")][i::2] for i in (0, 1)]):
            mean = means[method, way, bits]
            assert value == f"{mean:.2f}"
            assert less.startswith(f"{mean - means['float', 'rtn', bits]:+.2f} [") or (method, way) == ("float", "rtn")


@pytest.mark.slow
@pytest.mark.timeout(900)  # all figures of all committed sweeps, a minute and a half on 2 idle cores
def test_the_committed_records_give_the_committed_figures_to_the_last_byte(tmp_path: Path) -> None:
    if differing := differing_versions():
        assert "HARNESS_CI" not in os.environ, differing  # .ci/run installs these versions
        pytest.skip(f"another environment than analysis/results/constraints.txt: {', '.join(differing[:5])}")
    again = shutil.copytree(RESULTS, tmp_path / "analysis/results", ignore=shutil.ignore_patterns("figures"))
    command = [sys.executable, str(REPOSITORY / "analysis/make_figures.py"), "--root", "analysis/results"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    committed, made = files_of(RESULTS), files_of(again)
    assert committed <= made
    assert not [name for name in sorted(committed) if not filecmp.cmp(RESULTS / name, again / name, shallow=False)]


def files_of(results: Path) -> set[Path]:
    """The files in its folders `figures`, by path; of what a drawing leaves for the next one, none."""
    found = (path for path in results.rglob("*") if path.is_file() and "figures" in path.parts)
    return {path.relative_to(results) for path in found if path.name != "made.json"}
