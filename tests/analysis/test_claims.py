"""Verdicts on the paper's claims, against numbers worked out by hand."""

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import synthetic_sweep as made
from synthetic_sweep import SweepWriter, paper

from analysis import claims, t_tests
from analysis.claims import Claim, ClaimTest, make_claims
from analysis.disk_source import load_results
from analysis.grouping import make_groups
from analysis.t_tests import compare, decide, holm

#: Student's t, 0.975, 2 degrees of freedom, from a printed table.
T2 = 4.302653
STE2, STE3, OSC2, OSC3 = (f"{method}-target_bit={bits}" for method in ("ste", "oscillation") for bits in (2, 3))
TWO = "oscillation@3 (strength=1), oscillation@3 (strength=3)"


def p2(t: float) -> float:
    """Two-sided p of Student's t with 2 degrees of freedom, which has a closed form."""
    return 1 - abs(t) / math.sqrt(t**2 + 2)


def claims_of(sweep: SweepWriter) -> list[Claim]:
    sweep.write()
    (group,) = make_groups(load_results(sweep.folder.parent, sweep.folder.name))
    return make_claims(group)


def the_test(found: Sequence[Claim], key: str, target: int | None, method: str | None = None) -> ClaimTest:
    tests = [test for claim in found if claim.key == key for test in claim.tests if test.target == target]
    return next(test for test in tests if method in (None, test.method))


def verdicts(found: Iterable[Claim]) -> list[str]:
    return [claim.verdict for claim in found]


def test_paired_by_hand() -> None:
    # differences 1, 2, 3 over the common seeds: mean 2, sd 1, half-width T2 / sqrt(3) = 2.484138, t = 2 sqrt(3)
    found = compare({0: 91.0, 1: 93.0, 2: 95.0, 3: 0.0}, {2: 92.0, 1: 91.0, 0: 90.0, 7: 50.0}, 0.0)
    assert (found.test, found.n, found.effect) == ("paired t", "3", 2.0)
    assert (found.low, found.high) == pytest.approx((2 - 2.484138, 2 + 2.484138), rel=1e-6)
    assert found.p == pytest.approx(0.074180, rel=1e-5)
    # against a margin of -1 the distance is 3: t = 3 sqrt(3) = 5.196152, p = 1 - 5.196152 / sqrt(29)
    assert compare({0: 1.0, 1: 2.0, 2: 3.0}, dict.fromkeys(range(3), 0.0), -1.0).p == pytest.approx(0.035098, rel=1e-4)


def test_welch_by_hand() -> None:
    # variances 9 and 12: 9/3 + 12/2 = 3 + 6, error 3, degrees 9^2 / (3^2/2 + 6^2/1) = 2; means 91 and 97, t = -2
    first, second = {0: 88.0, 1: 91.0, 2: 94.0}, {3: 97 - math.sqrt(6), 2: 97 + math.sqrt(6)}
    found = compare(first, second, 0.0)
    assert (found.test, found.n) == ("Welch t", "3 + 2")
    assert found.effect == pytest.approx(-6)
    assert (found.low, found.high) == pytest.approx((-6 - 3 * T2, -6 + 3 * T2), rel=1e-6)
    assert found.p == pytest.approx(1 - 2 / math.sqrt(6), rel=1e-6)


def test_too_few_seeds_have_an_effect_and_no_test() -> None:
    for second, n in (({0: 3.0}, "1"), ({0: 3.0, 1: 9.0}, "1"), ({1: 2.0, 2: 4.0}, "1 + 2")):
        found = compare({0: 5.0}, second, 0.0)
        assert (found.test, found.n, found.effect) == ("", n, 2.0)
        assert all(map(math.isnan, (found.low, found.high, found.p)))
        assert decide(found, 0.0, math.nan, 3) == ("undecided", "too few seeds")


def test_two_seeds_decide_nothing() -> None:
    first, second = {0: 5.0, 1: 5.001, 2: 5.002}, {0: 1.0, 1: 1.002, 2: 1.004}
    assert decide(compare(first, second, 0.0), 0.0, 0.001, 1) == ("supported", "")
    for own, other, n in (([0, 1], [0, 1], "2"), ([0, 1], [2], "2 + 1"), ([0, 1, 2], [3, 4], "3 + 2")):
        sides = {seed: 5 + seed / 1000 for seed in own}, {seed: 1 + seed / 500 for seed in other}
        found = compare(*sides, 0.0)
        assert found.n == n
        assert found.effect > 3
        assert decide(found, 0.0, 0.001, 1) == ("undecided", "too few seeds")
    alike = compare({0: 5.0, 1: 6.0}, {0: 1.0, 1: 2.0}, 0.0)
    assert decide(alike, 0.0, math.nan, 1) == ("undecided", "too few seeds")


def test_a_claim_of_two_seeds_shows_its_figures_and_no_verdict(tmp_path: Path) -> None:
    sweep = paper(tmp_path, seeds=(0, 1))
    for seed in (0, 1):  # seeds that agree, by which one would be sure
        sweep.run_of(STE2, seed)["rows"][5]["accuracy"], sweep.run_of(OSC2, seed)["rows"][5]["accuracy"] = 0.97, 0.94
    found = claims_of(sweep)
    assert set(verdicts(found)) == {"undecided"}
    test = the_test(found, "c", 2)
    assert (test.result.n, test.result.test, test.result.effect) == ("2", "paired t", pytest.approx(3))
    assert (test.verdict, test.reason) == ("undecided", "too few seeds")


def test_without_spread_there_is_neither_p_nor_verdict() -> None:
    first, second = ({seed: 100 * (k + more) / 1000 for seed, k in enumerate((287, 553, 971))} for more in (0, 10))
    second = {seed: value + 1e-13 * seed for seed, value in second.items()}  # as rounding in binary leaves it
    agreed = "all seeds agree exactly: no spread, and so no p"
    for margin in (-1.5, -1.0, 0.0):
        found = compare(first, second, margin)
        assert (found.test, found.n, found.effect) == ("paired t", "3", -1.0)
        assert math.isnan(found.p)
        assert math.isnan(found.low)
        assert decide(found, margin, math.nan, 3) == ("undecided", agreed)
    found = compare({0: 0.3, 1: 0.3, 2: 0.3}, {3: 0.1, 4: 0.1, 5: 0.1}, 0.2)  # 0.3 - 0.1 is not 0.2 in binary
    assert (found.test, found.n, found.effect) == ("Welch t", "3 + 3", 0.2)
    assert decide(found, 0.2, math.nan, 3) == ("undecided", agreed)


def test_holm_by_hand() -> None:
    # ascending: 0.01 * 4, 0.02 * 3, 0.03 * 2 = 0.06 as before, 0.04 * 1 raised to 0.06
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.01, 0.01, 0.5]) == pytest.approx([0.03, 0.03, 0.5])
    assert holm([0.6, 0.7, 0.0]) == [1.0, 1.0, 0.0]
    assert str(holm([0.02, math.nan, 0.01])) == "[0.02, nan, 0.02]"  # what was not tested is not corrected for
    assert str(holm([0.02, math.nan, 0.01], tests=3)) == "[0.04, nan, 0.03]"


def test_holm_counts_what_was_tested_without_spread() -> None:
    zeros = dict.fromkeys(range(3), 0.0)
    spread, none = compare({0: 1.0, 1: 2.0, 2: 4.0}, zeros, 0.0), compare(dict.fromkeys(range(3), 1.0), zeros, 0.0)
    single = compare({0: 1.0}, {0: 0.0}, 0.0)
    assert (t_tests.count([spread, none, single]), none.test) == (2, "paired t")
    assert t_tests.adjusted([spread, none, single])[0] == pytest.approx(2 * spread.p)


def test_all_is_supported_where_all_holds(tmp_path: Path) -> None:
    found = claims_of(paper(tmp_path))
    assert verdicts(found) == ["supported"] * 5
    tests = [f"{claim.key} {test.method}@{test.target}" for claim in found for test in claim.tests]
    assert tests[:4] == ["a ste@2", "a oscillation@2", "a ste@3", "a oscillation@3"]
    assert tests[4:7] == ["b oscillation@3", "c ste@2", "d oscillation@2"]
    assert tests[7:] == ["d oscillation@3", "e oscillation@2", "e oscillation@3"]
    assert {test.result.n for claim in found for test in claim.tests} == {"6"}


def test_effects_by_hand(tmp_path: Path) -> None:
    found = claims_of(paper(tmp_path, seeds=(0, 1, 2)))
    # (a) frequencies of seeds 0, 1, 2 are 1, 1.02, 1.04 times 8e-3 - 2 * 1e-5 = 7.98e-3: mean 1.02 times, sd 0.02
    often = the_test(found, "a", 3, "ste")
    assert (often.result.effect, often.reason) == (pytest.approx(1.02 * 7.98e-3), "800 times float training's")
    assert often.result.high - often.result.effect == pytest.approx(T2 * 0.02 * 7.98e-3 / math.sqrt(3), rel=1e-6)
    # wobble 0.1, -0.1, 0 has sd 0.1; (b) 97 - 97 against -1, (c) 97 - 94 against 0: t = d / (0.1 / sqrt(3))
    for key, target, effect, distance in (("b", 3, 0.0, 1.0), ("c", 2, 3.0, 3.0)):
        result = the_test(found, key, target).result
        assert result.effect == pytest.approx(effect)
        assert result.high - effect == pytest.approx(T2 * 0.1 / math.sqrt(3), rel=1e-6)
        assert result.p == pytest.approx(p2(distance / (0.1 / math.sqrt(3))), rel=1e-6)
    # (d) the lowest above 2 bits is 97, above 3 bits 97.5, and float 97.5 with the wobble
    assert the_test(found, "d", 2).result.effect == pytest.approx(-0.5)
    assert the_test(found, "d", 3).result.effect == pytest.approx(0)
    assert the_test(found, "d", 3).reason.endswith("at 4, 8 bits")
    # (e) at 3, 4, 8 bits (97 + 97.5 + 97.5) / 3 - 93; at 2, 4, 8 bits (90 + 97.5 + 97.5) / 3 - (60 + 95 + 95) / 3
    assert the_test(found, "e", 2).result.effect == pytest.approx(292 / 3 - 93)
    assert the_test(found, "e", 3).result.effect == pytest.approx(35 / 3)
    assert the_test(found, "e", 3).reason.endswith("at 2, 4, 8 bits")


def test_one_failed_test_contradicts_a_claim(tmp_path: Path) -> None:
    found = claims_of(made.refuted(tmp_path))
    assert verdicts(found) == ["contradicted"] * 5
    assert [test.verdict for test in found[3].tests] == ["contradicted", "supported"]
    assert [test.verdict for test in found[4].tests] == ["contradicted", "undecided"]
    assert found[4].split == " (1 of 2 contradicted, 1 of 2 undecided)"
    assert the_test(found, "e", 3).reason == "the interval contains 0; at 2, 4, 8 bits"


def test_what_only_the_correction_keeps_open_is_said(tmp_path: Path) -> None:
    sweep = paper(tmp_path, seeds=(0, 1, 2))
    del sweep.cells["none-watch_bit=3"]  # two tests that cannot be made
    for seed, clear, wild in ((0, 0.96, 0.2), (1, 0.97, 0.6), (2, 0.98, 1.0)):
        # (c) 2, 3, 4 points: t = 3 sqrt(3), p = 0.035, the second largest of 8 after that of (e): 0.07 by Holm
        sweep.run_of(STE2, seed)["rows"][5]["accuracy"] = clear
        sweep.run_of(STE3, seed)["rows"][5]["accuracy"] = wild
    found = claims_of(sweep)
    test = the_test(found, "c", 2)
    assert test.p_holm == pytest.approx(2 * p2(3 * math.sqrt(3)), rel=1e-6)
    assert verdicts(found) == ["supported", "supported", "undecided", "supported", "undecided"]
    assert test.reason == "clear before Holm's correction over 8 tests, not after; more seeds would tell"


def test_seeds_that_have_not_finished(tmp_path: Path) -> None:
    sweep = paper(tmp_path)
    for cell, seeds in ((STE2, "45"), (OSC2, "012"), (OSC3, "0")):
        finals = sweep.cells[cell]["finals"]
        sweep.cells[cell]["finals"] = {seed: finals[seed] for seed in seeds}
    found = claims_of(sweep)
    assert the_test(found, "c", 2).result[:2] == ("Welch t", "2 + 3")
    assert the_test(found, "d", 2).result[:2] == ("paired t", "3")
    assert the_test(found, "a", 3, "ste").result[:2] == ("paired t", "6")
    alone = the_test(found, "b", 3)
    assert (alone.result.test, alone.result.n, alone.verdict, alone.reason) == ("", "1", "undecided", "too few seeds")
    assert alone.result.effect == pytest.approx(97 - 97.1)
    assert "over all 6 tests" in claims.to_markdown(found)  # 10 less a, b, d and e of the one run for 3 bits


@pytest.mark.parametrize(
    ("spoil", "key", "target", "reason"),
    [
        (made.drop_cells(STE2), "c", 2, "no QAT for 2 bits in this sweep"),
        (lambda s: s.cells[STE3].update(finals={}), "b", 3, "no finished QAT for 3 bits in this sweep"),
        (made.drop_cells(OSC3), "d", 3, "no regularizer for 3 bits in this sweep"),
        (made.drop_cells(STE3, OSC3), "b", None, "ste and oscillation at 2 bits only in this sweep"),
        (made.drop_cells(STE2, STE3, OSC2, OSC3), "d", None, "no `oscillation` cell in this sweep"),
        (made.drop_cells("none-watch_bit=3"), "a", 3, "float training is watched at 2 bits"),
        (made.drop_cells("none-watch_bit=2", "none-watch_bit=3"), "a", 3, "no float training in this sweep"),
        (made.drop_frequencies, "a", 2, "6 of 6 runs of ste@2 report no osc/frequency"),
        (made.measure_elsewhere, "a", 2, "ste@2 is watched at 4 bits"),
        (made.measure_elsewhere, "e", 3, "oscillation@3 is deployed by rtn, ste@3 by erq"),
        (made.keep_bits(STE3, 2, 8), "b", 3, "ste@3 was not tested at 3 bits"),
        (made.keep_bits(OSC2, 2, "float"), "d", 2, "oscillation@2 was not tested above 2 bits"),
        (made.keep_bits(OSC2, 2, 3), "d", 2, "oscillation@2 was not tested at float"),
        (made.keep_bits(STE2, 2), "e", 2, "oscillation@2 and ste@2 were not both tested at a bit-width but 2"),
        (made.two_strengths, "d", 3, f"several series are regularizer for 3 bits: {TWO}"),
    ],
)  # fmt: skip
def test_what_is_lacking_is_said(tmp_path: Path, spoil: Any, key: str, target: int | None, reason: str) -> None:
    sweep = paper(tmp_path)
    spoil(sweep)
    found = claims_of(sweep)
    test = the_test(found, key, target)
    assert (test.verdict, test.reason, test.result.n, test.result.test) == ("not tested", reason, "0", "")
    text = claims.to_text(found)
    assert target is not None or f"({key}) not tested: " in text or text.endswith(reason)


def test_without_the_regularizer_one_line_says_so(tmp_path: Path) -> None:
    sweep = paper(tmp_path / "whole")
    for cell in (OSC2, OSC3):
        sweep.cells[cell].update(finals={})
    assert len(claims.to_markdown(claims_of(sweep)).splitlines()) > 20, "they are merely not finished"
    made.drop_cells(STE2, STE3, OSC2, OSC3)(sweep := paper(tmp_path / "without"))
    found = claims_of(sweep)
    why = "the paper's claims are not tested: no `oscillation` cell in this sweep"
    assert claims.to_markdown(found) == f"**{found[0].title}**: {why}\n"
    assert claims.to_text(found) == why
    assert claims.to_latex(found).count("not tested") == 1
    assert verdicts(found) == ["not tested"] * 5
    assert len(claims.to_frame(found)) == 5


def test_without_the_regularizer_qat_is_still_held_against_float_training(tmp_path: Path) -> None:
    whole = paper(tmp_path / "whole")
    made.drop_cells(OSC2, OSC3)(sweep := paper(tmp_path / "without"))
    found = claims_of(sweep)
    assert verdicts(found) == ["supported", *["not tested"] * 4]
    tested = [(test.method, test.target, test.result) for test in found[0].tests]
    assert tested == [
        (test.method, test.target, test.result) for test in claims_of(whole)[0].tests if test.method == "ste"
    ]
    others = "claims (b), (c), (d), (e) are not tested: no `oscillation` cell in this sweep"
    assert [line for line in claims.to_text(found).splitlines() if "not tested" in line] == [others]
    assert claims.to_markdown(found).splitlines()[0] == f"**{found[0].title}**: the paper's claims; {others}"
    assert claims.to_markdown(found).count("**(") == 1
    assert "over all 2 tests" in claims.to_latex(found)


def test_a_second_way_of_deployment_is_not_tested(tmp_path: Path) -> None:
    sweep = paper(tmp_path)
    first = claims.to_markdown(claims_of(sweep))
    for record in sweep.records.values():
        record["rows"] += [{**row, "deploy": "erq", "accuracy": 0.5} for row in record["rows"]]
    assert claims.to_markdown(claims_of(sweep)) == first


def test_runs_without_frequencies_are_left_out_and_counted(tmp_path: Path) -> None:
    sweep = paper(tmp_path)
    made.drop_frequencies(sweep, seeds=(4, 5))
    for run, lines in sweep.metrics.items():
        if run.startswith("none"):
            lines[:] = [{"epoch": 1, "osc/frequency": 0.0}]
    test = the_test(claims_of(sweep), "a", 2, "ste")
    assert test.result.n == "4"
    assert test.reason == "float training never oscillates; 2 of 6 runs of ste@2 report no osc/frequency"


def test_outputs(tmp_path: Path) -> None:
    sweep = paper(tmp_path, seeds=(0, 1, 2))
    del sweep.cells["none-watch_bit=3"]
    found = claims_of(sweep)
    text = claims.to_text(found).splitlines()
    assert text[0] == "quickstart: mlp5 on digits - the paper's claims"
    assert [line[:13] for line in text if line.startswith("(")] == [f"({key}) supported" for key in "abcde"]
    assert "(a) supported (2 of 4 not tested): QAT and the regularizer oscillate far more than float training" in text
    assert max(map(len, text)) <= 110
    assert len(text) <= 14

    markdown = claims.to_markdown(found)
    row = ["ste@2", "+3.00", "[+2.75, +3.25]", "0.0015", "3", "paired t", "supported"]
    assert f"| {' | '.join(row)} |" in markdown
    assert "| ste@3 | — | — | — | 0 | — | not tested: float training is watched at 2 bits |" in markdown
    assert {line.count("|") for line in markdown.splitlines() if line.startswith("|")} == {8}

    latex = claims.to_latex(found)
    body = re.sub(r"(?<!\\)%.*", "", latex).strip()
    assert body.startswith("\\begin{tabular}{lrrrrll}\n\\toprule\n")
    assert body.endswith("\n\\bottomrule\n\\end{tabular}")
    assert r"oscillation@2 & $-$0.50 & [$-$0.75, $-$0.25] & " in body
    assert r"ste@3 & --- & --- & --- & 0 & --- & not tested \\ % float training is watched at 2 bits" in latex
    assert {line.count("&") for line in body.splitlines() if "@" in line} == {6}
    assert not re.search(r"(?<!\$)<|—", body)

    frame = claims.to_frame(found)
    assert list(frame.columns[:8]) == ["claim", "statement", "target_bit", "method", "n", "test", "effect", "unit"]
    assert list(frame.columns[8:]) == ["low", "high", "margin", "p", "p_holm", "verdict", "reason"]
    assert frame["target_bit"].tolist() == [2, 2, 3, 3, 3, 2, 2, 3, 2, 3]
    assert frame.loc[4, "statement"] == "oscillation@3 is less than 1 point below ste@3 at 3 bits"
    assert frame.groupby("claim")["margin"].first().to_dict() == {"a": 0, "b": -1, "c": 0, "d": -1, "e": 0}


def test_the_order_of_the_sweep_changes_no_byte(tmp_path: Path) -> None:
    sweep = paper(tmp_path)
    first = claims_of(sweep)
    sweep.cells = dict(reversed(sweep.cells.items()))
    second = claims_of(sweep)
    assert "& $<$0.0001 &" in claims.to_latex(first)
    for output in (claims.to_text, claims.to_markdown, claims.to_latex, lambda found: claims.to_frame(found).to_csv()):
        assert output(first) == output(second)
