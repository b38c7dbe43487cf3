"""The claims of Wenshøj, Pepin and Selvan (TMLR 2025) as tests on records: effect, interval and verdict of each."""

import math
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pandas as pd

from analysis import chosen, deployment, paired, t_tests
from analysis.claim import NOT_TESTED, Claim, ClaimTest, claims_about
from analysis.escape import in_latex, in_markdown
from analysis.paired import Lacking
from analysis.series import Group
from analysis.t_tests import ALPHA, compare, decide
from analysis.table_text import latex, latex_row, latex_table, latex_title, markdown

NAME = "claims"
LEGEND = (
    "Each effect is a mean over seeds with its 95 % t interval (unadjusted), on the test split. p: two-sided t test "
    f"against the margin, by Holm over all {{count}} tests; below {ALPHA:g} it decides."
)
_WIDTH = 108
_ALIGNMENT = "lrrrrll"
COLUMNS = ("trained", "effect", "95 % interval", "p (Holm)", "n", "test", "verdict")


def make_claims(group: Group) -> list[Claim]:
    """Claims (a) to (e) tested on a group: one test per claim and target, of (a) also per method.

    Two-sided t test over seeds against the claim's margin, p corrected by Holm over all tests of the group. Adjusted
    p < 0.05 supports the claim where the effect is above the margin and contradicts it where it is below. Of a group
    without a cell of the regularizer only (a) is tested, for QAT; the others are about the regularizer.
    """
    stated = claims_about(group.metric)
    drafts = [(claim, test) for claim in stated for test in _tests(group, claim)]
    results = [test.result for _, test in drafts]
    tests = t_tests.count(results)
    judged: dict[str, list[ClaimTest]] = {}
    for (claim, test), p_holm in zip(drafts, t_tests.adjusted(results), strict=True):
        judged.setdefault(claim.key, []).append(_judged(test, claim.margin, p_holm, tests))
    title = f"{group.sweep}: {group.title}"
    left_out = _left_out(group)
    return [replace(claim, title=title, tests=tuple(judged[claim.key]), left_out=left_out) for claim in stated]


def _left_out(group: Group) -> str:
    """The paper rounds weights alone: what a group has beyond that is no test of its claims."""
    beyond = [point for point in (*group.points(), *group.targets()) if not deployment.weights_only(point)]
    by_layer = [point for point in beyond if deployment.is_by_layer(point)]
    told = ["Points with activations, and networks trained for one, take no part."] if beyond != by_layer else []
    told += ["Points by layer take no part."] if by_layer else []
    return "".join(f" {sentence}" for sentence in told)


def _has_regularizer(group: Group) -> bool:
    """Whether the group has a cell of the regularizer, or the sweep one whose finals are missing."""
    missing = (re.search(rf"(^|:){paired.REGULARIZER}(?![\w+])", missing.cell) for missing in group.missing)
    return any(one.method == paired.REGULARIZER for one in group.series) or any(missing)


def in_full(claims: Sequence[Claim]) -> list[Claim]:
    """Those to be shown with their tests. Where several lack theirs for one reason, or all do, `not_tested` says so."""
    if all(claim.verdict == NOT_TESTED for claim in claims):
        return []
    counts = Counter(claim.why_untested for claim in claims)
    return [claim for claim in claims if not claim.why_untested or counts[claim.why_untested] == 1]


def not_tested(claims: Sequence[Claim]) -> list[str]:
    """What is to be said of those that `in_full` leaves out: `claims (b), (c) are not tested: no ... in this sweep`."""
    shown = in_full(claims)
    if not shown:
        why = claims[1].tests[0].reason  # of (b): (a) is about oscillation alone
        return [f"the paper's claims are not tested: {why}"]
    by_reason: dict[str, list[str]] = {}
    for claim in claims:
        if claim not in shown:
            by_reason.setdefault(claim.why_untested, []).append(f"({claim.key})")
    return [f"claims {', '.join(keys)} are not tested: {why}" for why, keys in by_reason.items()]


def _tests(group: Group, claim: Claim) -> Iterable[ClaimTest]:
    """The tests of a claim before their verdict; one that cannot be made has no effect but a reason."""
    found = sorted({one.target for one in group.series if one.method in paired.WORDS and isinstance(one.target, int)})
    targets = claim.targets(found)
    if not _has_regularizer(group):
        made = [test for test in _made(group, claim, targets) if not math.isnan(test.result.effect)]
        why = f"no `{paired.REGULARIZER}` cell in this sweep"
        yield from made or [ClaimTest("", None, claim.text, reason=why)]
        return
    yield from _made(group, claim, targets)
    if not targets:
        only = f"ste and oscillation at {', '.join(map(str, found))} bits only"
        none = f"no {'finished ' if group.missing else ''}ste and no oscillation"
        which = only if found else f"{none} for weights alone" if _left_out(group) else none
        yield ClaimTest("", None, claim.text, reason=f"{which} in this sweep")


def _made(group: Group, claim: Claim, targets: Sequence[int]) -> Iterable[ClaimTest]:
    """A test for each target and method."""
    for bits in targets:
        for method in claim.methods:
            test = ClaimTest(method, bits, claim.statement.format(method=method, bits=bits))
            try:
                sides = claim.sides(group, method, bits)
            except Lacking as lacking:
                yield replace(test, reason=str(lacking))
                continue
            result = compare(sides.first, sides.second, claim.margin)
            yield replace(test, result=result, reason=sides.remark, doubts=chosen.doubted(sides.trained))


def _judged(test: ClaimTest, margin: float, p_holm: float, count: int) -> ClaimTest:
    if math.isnan(test.result.effect):
        return test
    verdict, why = decide(test.result, margin, p_holm, count)
    return replace(test, p_holm=p_holm, verdict=verdict, reason="; ".join(filter(None, (why, test.reason))))


def to_frame(claims: Sequence[Claim]) -> pd.DataFrame:
    """One row per test; of one that could not be made, the reason and no numbers."""
    rows = [
        {
            "claim": claim.key, "statement": test.statement, "target_bit": test.target, "method": test.method,
            "n": test.result.n, "test": test.result.test, "effect": test.result.effect, "unit": claim.unit,
            "low": test.result.low, "high": test.result.high, "margin": claim.margin, "p": test.result.p,
            "p_holm": test.p_holm, "verdict": test.verdict, "reason": test.reason,
        }
        for claim in claims
        for test in claim.tests
    ]  # fmt: skip
    frame = pd.DataFrame(rows)
    if any(told := [test.doubts for claim in claims for test in claim.tests]):
        frame["tuning"] = told
    frame["target_bit"] = frame["target_bit"].astype("Int64")
    return frame


def _legend(claims: Sequence[Claim]) -> str:
    told = LEGEND.format(count=t_tests.count(test.result for claim in claims for test in claim.tests))
    return told + claims[0].left_out + (chosen.IN_BRACKETS if any(claim.doubts for claim in claims) else "")


def cells_of(claim: Claim, test: ClaimTest, last: str) -> list[str]:
    """The texts of a row, under `COLUMNS`; — for a number that there is not."""
    result = test.result
    found = (result.effect, result.low, result.high)
    effect, low, high = ("—" if math.isnan(value) else f"{value:{claim.style}}" for value in found)
    p = "—" if math.isnan(test.p_holm) else "<0.0001" if test.p_holm < 1e-4 else f"{test.p_holm:.4f}"
    label = "—" if test.target is None else f"{test.method}@{test.target}"
    interval = "—" if low == "—" else f"[{low}, {high}]"
    return [label, effect, interval, p, result.n, result.test or "—", last]


def _rows(claim: Claim) -> list[list[str]]:
    return [cells_of(claim, test, f"{_judgement(test)}{chosen.bracketed(test.doubts)}") for test in claim.tests]


def _judgement(test: ClaimTest) -> str:
    return ": ".join(filter(None, (test.verdict, test.reason)))


def said(test: ClaimTest) -> str:
    """Why there is no verdict or no test, what a reader should know, and in brackets what leaves it in doubt."""
    return (test.reason + chosen.bracketed(test.doubts)).strip()


def to_text(claims: list[Claim]) -> str:
    """Plain text for a terminal: the verdict on each claim. Their tests are in the table."""
    if not in_full(claims):
        return "\n".join(not_tested(claims))
    lines = [f"{claims[0].title} - the paper's claims", ""]
    for text in (*(f"{claim.head}: {claim.text}" for claim in in_full(claims)), *not_tested(claims)):
        lines += textwrap.wrap(text, _WIDTH, subsequent_indent="    ")
    told = f"Effects, intervals and p of their tests are in {NAME}.md and in the report.{claims[0].left_out}"
    return "\n".join([*lines, "", *textwrap.wrap(told, _WIDTH)])


def to_markdown(claims: list[Claim]) -> str:
    """A heading line and a GitHub table for each claim."""
    title, shown, told = f"**{in_markdown(claims[0].title)}**", in_full(claims), not_tested(claims)
    if not shown:
        return f"{title}: {'; '.join(told)}\n"
    lines = [f"{title}: the paper's claims{''.join(f'; {text}' for text in told)}", ""]
    for claim in shown:
        lines += [f"**{claim.head}**: {claim.text}. {claim.definition}", ""]
        rows = [[in_markdown(label), *numbers, in_markdown(why)] for label, *numbers, why in _rows(claim)]
        lines += [*markdown([COLUMNS, *rows], _ALIGNMENT), ""]
    return "\n".join([*lines, _legend(claims), ""])


def to_latex(claims: list[Claim]) -> str:
    """A booktabs `tabular`; what is said on a row is a comment beside it."""
    lines = [latex_row(map(latex, COLUMNS))]
    shown, told = in_full(claims), not_tested(claims)
    if not shown:
        return latex_table("l", [f"{claims[0].title}: the paper's claims"], [latex_title(latex("; ".join(told)), 1)])
    for claim in shown:
        lines += [r"\midrule", latex_title(in_latex(f"{claim.head}: {claim.text}"), len(COLUMNS))]
        lines.append(latex_title(rf"\footnotesize {latex(claim.definition)}", len(COLUMNS)))
        lines += [latex_row(map(latex, cells_of(claim, test, test.verdict)), said(test)) for test in claim.tests]
    return latex_table(_ALIGNMENT, [f"{claims[0].title}: the paper's claims", *told, _legend(claims)], lines)
