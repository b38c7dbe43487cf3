"""Text that users write is drawn and written as it is: `$`, `_`, `*`, `<` and the like begin nothing."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib import mathtext
from synthetic_sweep import SweepWriter, only_group

from analysis import claims, ranking, render, report, tables
from analysis.escape import in_figure, in_latex, in_latex_comment, in_markdown
from analysis.figures import find_figures, parameter_importance, strength_sensitivity
from analysis.output import Output
from analysis.series import Group
from harness.records.schema import LAYER_PREFIX

#: Two dollars about what is no mathematics, about what is, and what other languages take for something else.
MARKUP = ("$x_1$ <script>a</script> 5 % & #1 ~{b} `c` | \\end _d_", "5 {} % &\nnext line")
HOSTILE = ("$\\nosuch{$", "$x_1$", "50 % & #1_a^b ~{c} **d** <b>e [f](g) `h` | \\end")


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What matplotlib takes for mathematics from now on."""
    found: list[str] = []
    parse = mathtext.MathTextParser.parse

    def watched(self: Any, text: str, *others: Any, **more: Any) -> Any:
        found.append(text)
        return parse(self, text, *others, **more)

    monkeypatch.setattr(mathtext.MathTextParser, "parse", watched)
    yield found
    plt.close("all")


@pytest.fixture
def group(tmp_path: Path) -> Group:
    """Methods, layers, model, label of these names."""
    sweep = SweepWriter(tmp_path, seeds=(0, 1))
    for method in (*HOSTILE, "ste"):
        sweep.add(method, 2)
    for lines in sweep.metrics.values():
        del lines[3:]
        for line in lines:
            line |= {f"{LAYER_PREFIX}{name}": 0.01 for name in HOSTILE}
    sweep.write()
    return replace(only_group(tmp_path), settings={"label": HOSTILE[0]}, model=HOSTILE[1], data=HOSTILE[2])


def drawn(figure: Any) -> list[str]:
    """All texts of a figure, after drawing it."""
    figure.set_dpi(20)
    figure.canvas.draw()
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


@pytest.mark.parametrize("name", ["accuracy_over_bits", "layer_oscillation", "performance_profile"])
def test_figures(name: str, group: Group, parsed: list[str]) -> None:
    (module,) = [module for module in find_figures() if module.name == name]
    texts = drawn(module.draw((group, replace(group, model="b")) if name == "performance_profile" else group).figure)
    assert any("nosuch" in text for text in texts)
    assert not [text for text in parsed if "nosuch" in text or "x_1" in text]


def test_figures_of_trials(group: Group, parsed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pd.DataFrame({"cell": HOSTILE, "trials": 9, "parameter": HOSTILE, "importance": 0.5})
    monkeypatch.setattr(parameter_importance, "_importances", lambda group: (frame, []))
    assert any("nosuch" in text for text in drawn(parameter_importance.draw(group).figure))
    columns = {
        "target_bit": [2.0, float("nan"), 3.0],
        "value": [1.0, 2.0, 3.0],
        "chosen": [True, False, False],
        "low": 0.5,
        "high": 9.0,
        "state": "complete",
    }
    curves = dict.fromkeys(strength_sensitivity._CURVES, 50.0)
    points = pd.DataFrame({"parameter": HOSTILE, "method": HOSTILE, **columns, **curves})
    monkeypatch.setattr(strength_sensitivity, "_points", lambda group: points)
    assert any("nosuch" in text for text in drawn(strength_sensitivity.draw(group).figure))
    assert not [text for text in parsed if "nosuch" in text or "x_1" in text]


def test_tables(group: Group) -> None:
    table, standings = tables.make_table(group), ranking.make_ranking(group)
    assert standings is not None
    for latex in (tables.to_latex(table), ranking.to_latex([standings])):
        body = re.sub(r"(?m)(?<!\\)%.*$", "", latex)  # without comments
        assert r"\$x\_1\$" in body
        assert r"50 \% \& \#1\_a\textasciicircum{}b \textasciitilde{}\{c\}" in body
        unescaped = body.replace(r"\{", "").replace(r"\}", "")
        assert unescaped.count("{") == unescaped.count("}")
    for markdown in (tables.to_markdown(table), ranking.to_markdown([standings])):
        assert r"\$x_1\$" in markdown
        assert r"\*\*d\*\* &lt;b&gt;e \[f\](g) \`h\`" in markdown
        lines = [line for line in markdown.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1, "as many cells in each row"


@pytest.fixture
def claimed(tmp_path: Path) -> Group:
    """A group whose claims have texts of these characters: in its title, in labels, and in a way to deploy."""
    sweep = SweepWriter(tmp_path, seeds=(0, 1))
    sweep.add("none", None)
    for target in (2, 3):
        sweep.add("ste", target)
    sweep.add("oscillation", 2)
    for number, text in enumerate(MARKUP):
        sweep.add("oscillation", 3, grid={"target_bit": 3, "note": text}, tag=str(number))
    for seed in sweep.seeds:
        for row in sweep.run_of("oscillation-target_bit=2", seed)["rows"]:
            row["deploy"] = MARKUP[0]
    sweep.write()
    return replace(only_group(tmp_path), settings={"label": MARKUP[1]}, model=MARKUP[0], sweep=HOSTILE[0])


def test_claims_in_markdown(claimed: Group) -> None:
    text = claims.to_markdown(claims.make_claims(claimed))
    assert r"\$x_1\$ &lt;script&gt;a&lt;/script&gt; 5 % &amp; #1 \~{b}" in text.splitlines()[0], "in the title"
    assert r"(note=\$x_1\$ &lt;script&gt;a&lt;/script&gt; 5 % &amp; #1 \~{b} \`c\` \| \\end \_d\_)" in text, (
        "in a label"
    )
    assert r"deployed by rtn, oscillation@2 by \$x_1\$ &lt;script" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {8}, "as many cells in each row"
    assert not re.search(r"(?<!\\)[$`]|<script", text)


def test_claims_in_latex(claimed: Group) -> None:
    """User text is in comments alone; each ends with its line, and nothing of it is left outside."""
    text = claims.to_latex(claims.make_claims(claimed))
    assert text.startswith(f"% {HOSTILE[0]}: {MARKUP[0]} on digits (5 {{}} % & next line): the paper's claims\n")
    assert r"\\ % several series are regularizer for 3 bits: oscillation@3 (note=$x_1$ <script>" in text
    assert "by rtn, oscillation@2 by $x_1$" in text
    body = re.sub(r"(?m)(?<!\\)%.*$", "", text)
    assert not re.search(r"script|x_1|next line", body)
    assert body.count("{") == body.count("}")
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body.splitlines() if "@" in line} == {6}


def test_claims_in_html(claimed: Group, tmp_path: Path) -> None:
    found = claims.make_claims(claimed)
    section = render.Section(claimed.title, tables.make_table(claimed), found)
    page = report.overview([section], "", Output(tmp_path))
    assert "(note=$x_1$ &lt;script&gt;a&lt;/script&gt; 5 % &amp; #1" in page
    assert "<script" not in page


def test_each_language() -> None:
    assert in_figure("a $ b $") == r"a \$ b \$"
    assert in_latex("a\\b <c> |\nd") == r"a\textbackslash{}b \textless{}c\textgreater{} \textbar{} d"
    assert in_latex_comment("50 %\nof it") == "50 % of it"
    assert in_markdown("any_precision _a_ ~~b~~ &amp; a\n# c") == r"any_precision \_a\_ \~\~b\~\~ &amp;amp; a # c"
    for plain in ("soft_round@2", "lsq+oscillation", "mlp5 on digits (reduced: 5 epochs)", "ste, rtn"):
        assert in_figure(plain) == in_markdown(plain) == plain
