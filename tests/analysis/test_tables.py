"""The cross-bit table as text, Markdown and LaTeX."""

import re
from pathlib import Path

from synthetic_sweep import only_group, quickstart, steady

from analysis import tables


def test_table_marks_the_target_and_bolds_a_separate_best(tmp_path: Path) -> None:
    steady(tmp_path).write()
    table = tables.make_table(only_group(tmp_path))
    latex = tables.to_latex(table)
    assert r"ste@2 & 3 & \textbf{\underline{97.0 $\pm$ 0.0}} & 95.0 $\pm$ 0.0 & 95.0" in latex
    assert r"soft\_round@2 & 3 & \underline{90.0 $\pm$ 0.0} & 95.0 $\pm$ 0.0 & \textbf{98.0 $\pm$ 0.0}" in latex
    markdown = tables.to_markdown(table)
    assert "| ste@2 | 3 | **<u>97.0 ± 0.0</u>** | 95.0 ± 0.0 | 95.0 ± 0.0 |" in markdown
    text = tables.to_text(table).splitlines()
    assert text[4].split("  ")[0] == "ste@2"
    assert "[97.0 ± 0.0*]" in text[4]
    assert "98.0 ± 0.0*" in text[5]
    assert len({len(line.rstrip()) for line in text[3:4] + text[6:7]}) == 1


def test_one_seed_prints_no_interval(tmp_path: Path) -> None:
    steady(tmp_path, seeds=(0,)).write()
    table = tables.make_table(only_group(tmp_path))
    assert "97.0 ±—" in tables.to_text(table)
    assert r"97.0 $\pm$---" in tables.to_latex(table)
    assert "textbf" not in tables.to_latex(table)


def test_two_seeds_print_both_values(tmp_path: Path) -> None:
    sweep = steady(tmp_path, seeds=(0, 1))
    next(row for row in sweep.run_of("ste-target_bit=2", 0)["rows"] if (row["split"], row["bits"]) == ("test", 2))[
        "accuracy"
    ] = 0.93
    sweep.write()
    table = tables.make_table(only_group(tmp_path))
    assert "[95.0 (93.0, 97.0)" in tables.to_text(table)
    assert tables.to_text(table).endswith(". Of two seeds: the mean and both values")
    assert tables.to_markdown(table).endswith(". Of two seeds: the mean and both values.\n")
    assert r"\underline{95.0 (93.0, 97.0)}" in tables.to_latex(table)
    steady(tmp_path / "three").write()
    assert "two seeds" not in tables.to_text(tables.make_table(only_group(tmp_path / "three")))


def test_incomplete_seeds_are_stated_in_the_table(tmp_path: Path) -> None:
    sweep = steady(tmp_path)
    del sweep.cells["ste-target_bit=2"]["finals"]["2"]
    rows = sweep.run_of("soft_round-target_bit=2", 0)["rows"]
    rows[:] = [row for row in rows if row["bits"] != 8]
    sweep.write()
    table = tables.make_table(only_group(tmp_path))
    assert [row[1] for row in table.rows] == ["2/3", "2-3/3"]


def test_latex_is_balanced_booktabs(tmp_path: Path) -> None:
    sweep = quickstart(tmp_path)
    sweep.add("odd_&%$#{}~^\\name", 2)
    for record in sweep.records.values():
        record["run_id"] = record["run_id"].replace("\\", "")
    sweep.records = {record["run_id"]: record for record in sweep.records.values()}
    sweep.metrics = {run_id.replace("\\", ""): lines for run_id, lines in sweep.metrics.items()}
    for cell in sweep.cells.values():
        cell["finals"] = {seed: run_id.replace("\\", "") for seed, run_id in cell["finals"].items()}
    sweep.write()
    latex = tables.to_latex(tables.make_table(only_group(tmp_path)))
    body = "\n".join(line for line in latex.splitlines() if not line.startswith("%"))
    assert re.findall(r"\\(begin|end)\{tabular\}", body) == ["begin", "end"]
    assert body.startswith(r"\begin{tabular}{lrrrrrr}")
    assert re.findall(r"\\(\w+rule)", body) == ["toprule", "midrule", "bottomrule"]
    plain = re.sub(r"\\[\\&%$#_{}]", "", body)
    assert plain.count("{") == plain.count("}")
    assert plain.count("$") % 2 == 0
    assert not re.search(r"[#_%]", plain)
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 7
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {6}


def test_float_training_that_is_chosen_at_a_bit_width_is_explained(tmp_path: Path) -> None:
    steady(tmp_path).write()
    assert "none@" not in tables.to_markdown(tables.make_table(only_group(tmp_path)))
    sweep = steady(tmp_path)
    sweep.add("none", 2, [(35, 0), (44, 0), (44, 0), (44, 0), (44, 0)])
    sweep.write()
    table = tables.make_table(only_group(tmp_path))
    for text in (tables.to_text(table), tables.to_markdown(table), tables.to_latex(table)):
        assert "; none@b is float training whose best epoch (and setting) is chosen at b bits" in text
