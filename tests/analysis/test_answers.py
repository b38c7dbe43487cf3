"""The numbers in the sentences of analysis/results/README.md and oscillation.md, computed from the committed records.

Each line is a phrase of the page with its numbers computed anew. A sentence that changes has to be changed here, too.
"""

import json
import re
import zipfile
from functools import cache
from pathlib import Path

import pandas as pd
import pytest

from analysis import chosen, compare, load
from analysis.disk_source import load_results, sweep_names
from analysis.intervals import t_interval
from analysis.library import Results

RESULTS = Path(__file__).parents[2] / "analysis/results"
#: Seconds, most of them for reading the records of eight sweeps.
pytestmark = pytest.mark.slow
PLAIN, PULL, DETACHED = (
    "oscillation@2",
    "oscillation@2 (direction=scale_only)",
    "oscillation@2 (scale_gradient=detached)",
)
NOTEBOOK = "notebook_mlp"
LEARNED_DETACHED = "ste@2 (scale_gradient=detached)"
MLP, VIT = "mlp5 on digits: ", "vit_tiny on digits: "


@cache
def results(sweep: str) -> Results:
    return load(RESULTS, sweep)


def mean(sweep: str, series: str, bits: int | str) -> float:
    frame = results(sweep).scores
    group, _, label = series.rpartition(": ")
    own = frame[(frame["series"] == label) & (frame["bits"].astype(str) == str(bits))]
    if group:
        own = own[own["group"] == group]
    (value,) = own["mean"]
    return float(value)


def less(sweep: str, one: str, other: str, at: int | str, sign: int = 1, other_sweep: str = "") -> dict[str, str]:
    """Their difference and its interval, as pages write them. sign: -1 for what the first loses."""
    rival = results(other_sweep or sweep)[other]
    (row,) = compare(results(sweep)[one], rival, at=[at]).to_dict("records")
    ends = sorted((sign * row["low"], sign * row["high"]))
    plain = f"{sign * row['difference']:.1f}"
    interval = f"[{ends[0]:z.1f}, {ends[1]:.1f}]".replace("[0.0", "[-0.0" if ends[0] < 0 else "[0.0")
    return {"d": f"{sign * row['difference']:+.1f}", "plain": plain, "i": interval}


def often(model: str, one: str, other: str) -> float:
    """How many times as often the first oscillates, networks for 2 bits."""
    frame = pd.read_csv(RESULTS / f"cause/figures/oscillation_and_score-{model}-digits.csv")
    own = frame[(frame["side"] == "at") & (frame["target_bit"] == 2)].groupby("method")["frequency"].mean()
    return float(own[one] / own[other])


def said(page: str) -> str:
    """A page's text in one line."""
    return re.sub(r"\s+", " ", (RESULTS / page).read_text(encoding="utf-8"))


def test_what_the_regularizer_buys() -> None:
    page = said("README.md")
    for rival, begins in (("ste", "against QAT"), ("none", "Against the control for the same bits")):
        four, three, two = (less(NOTEBOOK, f"oscillation@{b}", f"{rival}@{b}", b) for b in (4, 3, 2))
        assert (
            f"{begins} {four['d']} points {four['i']} at 4 bits, {three['d']} {three['i']} at 3 "
            f"and {two['d']} {two['i']} at 2." in page
        )
    tuned = [less("finetune_mlp5", f"oscillation@{b}", f"ste@{b}", b) for b in (4, 3, 2)]
    assert "(mlp.md#fine-tuning): {}, {} and {}.".format(*(f"{each['d']} {each['i']}" for each in tuned)) in page
    had = [mean(NOTEBOOK, name, 2) for name in ("float", "none@2", PLAIN)]
    assert "Float training has {:.0f} % at 2 bits, the control {:.0f} %, the regularizer {:.0f} %".format(*had) in page
    others = [[mean(NOTEBOOK, name, b) for b in (3, 4, 8)] for name in ("ste@2", "none@2", PLAIN, "float")]
    spans = [f"{min(values):.0f} to {max(values):.0f} %" for values in others]
    told = "rounded to 3 to 8: QAT has {}, the control {}, the regularizer {}, float training {}."
    assert told.format(*spans) in page


def test_what_the_front_page_says() -> None:
    page = re.sub(r"\s+", " ", (RESULTS.parents[1] / "README.md").read_text(encoding="utf-8"))
    three, two = (less(NOTEBOOK, f"oscillation@{b}", f"ste@{b}", b, sign=-1)["plain"] for b in (3, 2))
    assert f"is level with QAT at 4 bits, {three} points behind at 3 and {two} behind at 2.**" in page
    low, high = re.findall(r"-?[\d.]+", less(NOTEBOOK, "oscillation@4", "ste@4", 4)["i"])
    assert float(low) < 0 < float(high)
    gain, by_choice = (float(less(NOTEBOOK, name, "float", 2)["plain"]) for name in (PLAIN, "none@2"))
    assert f"Of the {gain:.0f} points that it gains over float training at 2 bits, {by_choice:.0f} come with" in page


def test_what_the_study_of_the_authors_network_says() -> None:
    study = said("mlp.md")
    qat, gain = (less(NOTEBOOK, f"{name}@3", "none@3", 3) for name in ("ste", "oscillation"))
    assert f"worth {qat['plain'].rpartition('.')[0]} points** over the control ({qat['i']})" in study
    behind = [less(NOTEBOOK, f"{name}@3", "oscillation@3", 3) for name in ("ste", "lsq")]
    told = "the regularizer {} ({}): half of that, and {} behind `ste` ({}), {} behind `lsq` ({})."
    each = [part for one in (gain, *behind) for part in (one["plain"], one["i"])]
    assert told.format(*each) in study
    chosen_at, adds, qat_adds = (
        less(NOTEBOOK, *pair, 2) for pair in (("none@2", "float"), (PLAIN, "none@2"), ("ste@2", "none@2"))
    )
    assert f"is {chosen_at['plain']} points ahead of float training ({chosen_at['i']})" in study
    assert f"The regularizer adds {adds['plain']} ({adds['i']})" in study
    assert f"QAT adds {qat_adds['plain']} ({qat_adds['i']})" in study
    ahead = {
        name: [float(less(NOTEBOOK, PLAIN, name, b)["plain"]) for b in (3, 4, 8)]
        for name in ("ste@2", "lsq@2", "float")
    }
    spans = [f"{min(values)} to {max(values)}" for values in ahead.values()]
    assert (
        "is {} points ahead of `ste` and {} ahead of `lsq`, and level with float training ({},".format(*spans) in study
    )
    at_four = [abs(float(less(NOTEBOOK, f"{name}@4", "none@4", 4)["plain"])) for name in ("ste", "lsq", "oscillation")]
    assert f"differ by {max(at_four)} points at most" in study


def test_what_batch_norm_explains() -> None:
    page = said("README.md")
    plain, anew = (mean("resnet18_short", f"ste@2, {way}", 3) for way in ("rtn", "bn_reestimation"))
    gained = less("resnet18_short", "ste@2, bn_reestimation", "ste@2, rtn", 3)
    had = f"{plain:.0f} % at 3 bits as training left it, {anew:.0f} % with re-estimated statistics"
    assert f"has {had}, {gained['d']} points {gained['i']}." in page
    lead = mean("resnet18_short", "oscillation@2, rtn", 3) - plain
    left = less("resnet18_short", "oscillation@2, bn_reestimation", "ste@2, bn_reestimation", 3)
    assert f"lead at 3 bits, {lead:.0f} points, becomes {left['d']} {left['i']};" in page


def anew(one: str, other: str, at: int, sign: int = 1) -> dict[str, str]:
    """As `less`, of networks with re-estimated statistics, chosen by them."""
    return less("batch_norm", f"{one}, bn_reestimation", f"{other}, bn_reestimation", at, sign)


def spelt(found: dict[str, str], word: str = "") -> str:
    return f"{found['plain']}{word} {found['i']}"


def test_a_network_with_batch_norm_chosen_fairly() -> None:
    page, study = said("README.md"), said("resnet18_and_vit.md")
    lead = [[anew(PLAIN, rival, at) for at in (3, 4)] for rival in ("ste@2", "lsq@2")]
    told = f"for 2 bits leads `ste` by {spelt(lead[0][0], ' points')} at 3 bits, and `lsq` by {spelt(lead[1][0])}."
    assert told in page
    behind, gain = anew(PLAIN, "ste@2", 2, sign=-1), anew(PLAIN, "none@2", 2)
    assert f"At 2 bits it is {spelt(behind)} behind `ste`, and {spelt(gain)} ahead of the control." in page
    assert f"loses in its weights, too, {spelt(anew('ste@2', 'float', 3, sign=-1), ' points')} of float" in page
    ahead = "It is ahead of `ste`, by {} and {}. Not of `lsq`: {} and {}."
    assert ahead.format(*(spelt(each) for both in lead for each in both)) in study
    learned, chosen_so = anew(PLAIN, "lsq@2", 2, sign=-1), anew("none@2", "float", 2)
    assert (
        f"At 2 bits {spelt(behind)} behind `ste` and {spelt(learned)} behind `lsq`, but {spelt(gain)} ahead of the "
        f"control: choosing rate and epoch at 2 bits gains {spelt(chosen_so)} over float training" in study
    )
    three = [anew("oscillation@3", rival, 3, sign=-1) for rival in ("ste@3", "none@3")]
    qat = anew("ste@3", "none@3", 3)
    assert f"At 3 bits it is {spelt(three[0])} behind `ste` and {spelt(three[1])} behind the control, which" in study
    assert f"`ste` does not beat clearly ({qat['d']} {qat['i']})." in study
    below = [mean("batch_norm", f"{name}@3, bn_reestimation", 2) for name in ("oscillation", "ste", "lsq", "none")]
    by = anew("oscillation@3", "ste@3", 2)
    told = "rounded to 2: the regularizer {:.1f}, `ste` {:.1f} ({by}), `lsq` {:.1f}, the control {:.1f}."
    assert told.format(*below, by=f"{by['d']} {by['i']}") in study
    pairs = (("ste@2", 3), ("lsq@2", 3), ("oscillation@3", 3))
    gained = [less("batch_norm", f"{name}, bn_reestimation", f"{name}, rtn", at) for name, at in pairs]
    told = "{} of what `ste@2` loses at 3 bits, {} of `lsq@2`, and {} at the very target of `oscillation@3`"
    assert told.format(spelt(gained[0], " points"), *map(spelt, gained[1:])) in study
    assert f"(float training has {mean('batch_norm', 'float, bn_reestimation', 'float'):.0f} %)" in study


def test_what_few_trials_tried() -> None:
    """Of the regularizer for 3 bits, at rates of 1e-3 and more: strengths, and what trials were chosen by."""
    found = []
    with zipfile.ZipFile(RESULTS / "batch_norm/runs.zip") as archive:
        for name in (each for each in archive.namelist() if each.endswith("record.json")):
            record = json.loads(archive.read(name))
            config = record["config"]
            own = [each["strength"] for each in config["methods"] if each["name"] == "oscillation"]
            if own and config["target_bit"] == 3 and config["seed"] == 1000:
                found.append((config["train"]["learning_rate"], own[0], 100 * record["monitor"]))
    assert len(found) == 4
    strengths, scores = zip(*(each[1:] for each in found if each[0] >= 1e-3), strict=True)
    assert len(strengths) == 3
    told = f"{min(strengths):.0f} to {max(strengths):.0f}, and {min(scores):.0f} to {max(scores):.0f} % in validation"
    assert told in said("resnet18_and_vit.md")


def of_norms(one: str, other: str, at: int, sign: int = 1) -> list[dict[str, str]]:
    """As `less`, of the small ViT with norm layers in float and with quantized ones; an empty name: the other kind."""
    titles = [group.title for group in results("vit_norms").groups]
    if not other:
        return [less("vit_norms", f"{titles[1]}: {one}", f"{titles[0]}: {one}", at, sign)]
    return [less("vit_norms", f"{title}: {one}", f"{title}: {other}", at, sign) for title in titles]


def both(found: list[dict[str, str]], joined: str = " and ") -> str:
    return joined.join(f"{each['d']} {each['i']}" for each in found)


def test_a_small_vit_with_either_kind_of_norm_layers() -> None:
    page, study = said("README.md"), said("resnet18_and_vit.md")
    control, qat, learned = (of_norms(PLAIN, rival, 2) for rival in ("none@2", "ste@2", "lsq@2"))
    at_three = [of_norms("oscillation@3", rival, 3) for rival in ("none@3", "ste@3")]
    first = [f"{each[0]['d']} {each[0]['i']}" for each in (control, qat, *at_three)]
    second = [f"{each[1]['d']} {each[1]['i']}" for each in (control, qat, *at_three)]
    told = "at 2 bits {} over the control and {} against QAT, at 3 bits {} and {}; with quantized norm layers"
    assert told.format(*first) in page
    assert "with quantized norm layers {} and {}, then {} and {}.".format(*second) in page
    assert f"{both(control)} against the control, {both(qat)} against `ste`, {both(learned)} against `lsq`." in study
    assert f"the control has {both(of_norms('none@2', 'float', 2))} against float training." in study
    assert (
        f"the regularizer has {both(at_three[0])} against the control, `ste` {both(of_norms('ste@3', 'none@3', 3))}"
        in (study)
    )
    assert f"is level with the control ({both(of_norms('none@3', 'float', 3))})." in study
    above = [of_norms(PLAIN, rival, 3) for rival in ("ste@2", "lsq@2")]
    assert f"rounded to 3, {both(above[0])} against `ste`, {both(above[1])} against `lsq`." in study
    below = [of_norms(f"{name}@3", "none@3", 2) for name in ("ste", "oscillation")]
    assert f"`ste@3` has {both(below[0])} against the control there, the regularizer {both(below[1])}." in study
    tables, groups = results("vit_norms").scores, results("vit_norms").groups
    frames = [tables[tables["group"] == group.title] for group in groups]
    float_of = [frame[frame["bits"] == "float"].set_index("series")["mean"] for frame in frames]
    spans = [[f"{each[name]:.0f}" for each in float_of] for name in (PLAIN, "float")]
    assert spans[0] == ["30", "30"]
    assert f"the regularizer's have 30 %, float training {' to '.join(spans[1])} %." in study


def test_what_quantizing_norm_layers_changes() -> None:
    page, study = said("README.md"), said("resnet18_and_vit.md")
    names = [f"{method}@{bits}" for bits in (2, 3) for method in ("none", "ste", "lsq", "oscillation")]
    changed = {name: of_norms(name, "", int(name[-1]))[0] for name in names}
    numbers = [float(each["d"]) for each in changed.values()]
    assert f"At the target by {min(numbers):.1f} to {max(numbers):+.1f} points; two of eight intervals" in study
    clear = {
        name: each
        for name, each in changed.items()
        if len({end.strip()[0] == "-" for end in each["i"][1:-1].split(",")}) == 1
    }
    told = [f"`{name}` {each['d']} {each['i']}" for name, each in clear.items()]
    assert f"{', '.join(told)}." in study
    assert len(clear) == 2
    assert f"no accuracy at a target by more than {max(map(abs, numbers)):.1f} points." in page
    for kind, group in zip(("float", "quantized"), results("vit_norms").groups, strict=True):
        cells = [f"{mean('vit_norms', f'{group.title}: {name}', int(name[-1])):.1f}" for name in names]
        assert f"| {kind} | {' | '.join(cells)} |" in page
        at_two = sorted(names[:4], key=lambda name: -mean("vit_norms", f"{group.title}: {name}", 2))
        assert at_two == ["lsq@2", "ste@2", PLAIN, "none@2"]


def test_one_network_for_all_bits() -> None:
    frame = pd.read_csv(RESULTS / "figures/one_checkpoint.csv")
    worst = frame[frame["bits"] == "worst"].set_index("series")
    costs = [
        f"{worst.cost[name]:.1f} [{worst.cost_low[name]:.1f}, {worst.cost_high[name]:.1f}]"
        for name in ("satnl@2", "ste@2", PLAIN)
    ]
    page, table = said("README.md"), said("mlp.md")
    first = costs[0].replace(" [", " points [", 1)
    assert f"is {first} below the worst of networks trained for each." in page
    assert f"QAT loses {costs[1]}, the regularizer {costs[2]}." in page
    assert all(f"| {cost} |" in table for cost in costs)
    above = frame[frame["series"].isin(["ste@2", PLAIN]) & frame["bits"].isin(["3", "4", "8"])]["mean"]
    assert f"QAT and the regularizer have {above.min():.0f} to {above.max():.0f} % at 3 bits and more" in page


def test_the_papers_claims() -> None:
    for sweep, expected, told in (
        ("mlp5", ["supported"] * 2 + ["undecided"] * 3, "[two are supported, three undecided]"),
        (
            NOTEBOOK,
            ["contradicted"] * 2 + ["supported"] + ["undecided"] * 2,
            "[one is supported, two undecided, two contradicted in some of their tests]",
        ),
    ):
        verdicts = re.findall(r"^\*\*\(\w\) (\w+)", (RESULTS / sweep / "figures/claims.md").read_text(), re.MULTILINE)
        assert sorted(verdicts) == expected
        assert f"{told}({sweep}/figures/claims.md)" in said("README.md")


def test_whether_oscillation_is_the_cause() -> None:
    page, study = said("README.md"), said("oscillation.md")
    detached = {place: less("cause", place + DETACHED, place + "none@2", 2) for place in (MLP, VIT)}
    pull = {place: less("cause", place + PULL, place + PLAIN, 2) for place in (MLP, VIT)}
    times = often("mlp5", "oscillation (scale_gradient=detached)", "none")
    seldom = often("mlp5", "oscillation", "oscillation (direction=scale_only)")
    gained = [less("cause", place + PLAIN, place + "none@2", 2) for place in (MLP, VIT)]
    assert (
        f"gains {gained[0]['plain']} points {gained[0]['i']} over the control on an MLP and {gained[1]['plain']}"
        in page
    )
    assert f"{gained[1]['i']} on a small ViT: several times its gain on CIFAR-10" in page
    assert f"oscillates, {times:.0f} times as often as the control, and" in page
    assert f"oscillate {times:.0f} times as often as the control's" in study
    assert f"{detached[MLP]['d']} points {detached[MLP]['i']} from it." in page
    few = often("vit_tiny", "oscillation (scale_gradient=detached)", "none")
    assert f"oscillates {few:.1f} times as often, too little to test anything: {detached[VIT]['d']}" in page
    assert f"{detached[VIT]['d']} {detached[VIT]['i']}.)" in page
    assert f"oscillate a {seldom:.0f}th as often as with the whole" in page
    assert f"and a {seldom:.0f}th of the regularizer's oscillations" in study
    level = f"{pull[MLP]['d']} {pull[MLP]['i']} and {pull[VIT]['d']} {pull[VIT]['i']}."
    assert f"accuracy differs from the whole's by {level}" in page
    assert (
        f"{pull[MLP]['d']} points {pull[MLP]['i']} on the MLP and {pull[VIT]['d']} {pull[VIT]['i']} on the ViT" in study
    )


def test_what_the_pull_does_in_qat() -> None:
    two, three = (less("cause", MLP + LEARNED_DETACHED, MLP + "ste@2", bits, sign=-1) for bits in (2, 3))
    vit = less("cause", VIT + LEARNED_DETACHED, VIT + "ste@2", 3, sign=-1)
    lost = f"loses {two['plain']} points {two['i']} at 2 bits and {three['plain']} {three['i']} at 3 bits"
    assert lost in said("README.md")
    study = said("oscillation.md")
    assert (
        f"loses {two['plain']} points at 2 bits ({two['i']} on the MLP) and {three['plain']} {three['i']} at 3 bits"
        in study
    )
    assert f"(ViT: {vit['plain']} {vit['i']})" in study


def test_the_other_parts() -> None:
    study = said("oscillation.md")
    noise = [less("cause", place + "pqn@2 (size=step)", place + PLAIN, 2) for place in (MLP, VIT)]
    assert f"({noise[0]['d']} {noise[0]['i']} and {noise[1]['d']} {noise[1]['i']} against it)" in study
    kept, whole = (less("cause", MLP + name, MLP + "none@2", 2) for name in ("oscillation+dampening@2", PLAIN))
    assert f"keeps {kept['plain']} of {whole['plain']} points on the MLP" in study
    below, without = (
        less("cause", MLP + name, MLP + "none@3", 2)
        for name in ("oscillation@3", "oscillation@3 (scale_gradient=detached)")
    )
    assert f"{below['plain']} points {below['i']} above the control" in study
    assert f"{without['plain'].removeprefix('-')} below ({without['i']})" in study
    vit = less("cause", VIT + "oscillation@3 (direction=scale_only)", VIT + "oscillation@3", 2)
    assert f"{vit['plain']} {vit['i']} above the whole" in study
    frame = pd.read_csv(RESULTS / "cause/figures/oscillation_and_score-vit_tiny-digits.csv")
    rho = frame[(frame["target_bit"] == 2) & (frame["side"] == "at")].iloc[0]
    assert f"(r {rho.rho:.2f} [{rho.rho_low:.2f}, {rho.rho_high:.2f}]" in study
    trials = pd.read_csv(RESULTS / "cause/figures/trials.csv").query("target_bit == 2")
    best = trials[trials["cell"].str.contains("oscillation.scale_gradient=detached")]
    assert "({:.0f} and {:.0f} % at best, validation images)".format(*best.groupby("group")["w2"].max()) in study


#: The rows of the study's table.
PARTS = {
    "float training, chosen at 2 bits (control)": "none@2",
    "`oscillation`": PLAIN,
    "`oscillation` without the pull": DETACHED,
    "the pull alone": PULL,
    "`oscillation`, signs at random": "oscillation@2 (direction=random_sign)",
    "`oscillation`, `dampening` on top": "oscillation+dampening@2",
    "noise of the push's size (`pqn`)": "pqn@2 (size=push)",
    "noise of a step (`pqn`)": "pqn@2 (size=step)",
    "`kure`": "kure@2",
    "`ste`": "ste@2",
    "`ste` without the pull": LEARNED_DETACHED,
}


@pytest.mark.parametrize("label", PARTS)
def test_the_table_of_parts(label: str) -> None:
    series, cells = PARTS[label], []
    for model, place in (("mlp5", MLP), ("vit_tiny", VIT)):
        above = [mean("cause", place + series, bits) for bits in (3, 4, 8)]
        frame = pd.read_csv(RESULTS / f"cause/figures/oscillation_and_score-{model}-digits.csv")
        own = frame[
            (frame["side"] == "at") & (frame["target_bit"] == 2) & (frame["method"] == series.replace("@2", ""))
        ]
        gained = {} if series == "none@2" else less("cause", place + series, place + "none@2", 2)
        cells += [f"{1000 * own['frequency'].mean():.1f}", f"{mean('cause', place + series, 2):.1f}"]
        cells += [f"{gained['d']} {gained['i']}" if gained else "", f"{sum(above) / 3:.1f}"]
    row = f"| {label} | {' | '.join(cells)} |".replace("|  |", "| |")
    assert row in said("oscillation.md")


def test_what_else_helps() -> None:
    page = said("README.md")
    better = less("rivals_ptq", VIT + "float, adaround", VIT + "float, rtn", 3)
    assert f"`adaround` adds {better['plain']} points {better['i']}" in page
    layers = less("rivals_mixed", VIT + "float, ohq", VIT + "float, rtn", 3)
    assert f"(`ohq`) add {layers['plain']} {layers['i']} to it." in page
    regularizer, learned = (
        less("w4a4_digits", f"{VIT}{name}@w3a3", VIT + "float", "w3a3") for name in ("oscillation", "lsq")
    )
    assert f"({regularizer['d']} {regularizer['i']}), `lsq` {learned['plain']} {learned['i']}." in page


def test_other_tasks() -> None:
    page = said("README.md")
    photographs = [less("super_resolution", f"oscillation@{b}", f"ste@{b}", b) for b in (4, 3, 2)]
    first, *others = (f"{each['d']}{' dB' * (place == 0)} {each['i']}" for place, each in enumerate(photographs))
    assert f"against QAT: {first} at 4 bits, {others[0]} at 3, {others[1]} at 2." in page
    text = results("language")
    three = float(compare(text["oscillation@3"], text["ste@3"], at=[3])["difference"].iloc[0])
    two = less("language", "oscillation@2", "ste@2", 2)
    assert f"{three:.2f} bits per character worse at 3, {two['plain']} {two['i']} worse at 2." in page


def test_the_lead_at_other_bits() -> None:
    scores = {name: results(NOTEBOOK)[name].shown_by_seed() for name in (PLAIN, "lsq@2")}
    others = (3, 4, 8)
    means = {n: {seed: sum(own[b] for b in others) / 3 for seed, own in of.items()} for n, of in scores.items()}
    found = t_interval([means[PLAIN][seed] - means["lsq@2"][seed] for seed in means[PLAIN]])
    low, high = found.mean - found.half_width, found.mean + found.half_width
    assert f"Against `lsq` it is {found.mean:.1f} points ahead [{low:.1f}, {high:.1f}]." in said("README.md")


def test_rates_of_super_resolution_in_a_wider_range() -> None:
    study = said("rivals_mixed_dynamic_cache.md")

    def decibels(one: str, other: str, at: str) -> tuple[str, str]:
        own = results("rivals_super_resolution")
        (row,) = compare(own[one], own[other], at=[at]).to_dict("records")
        return f"{row['difference']:.2f}", f"[{row['low']:.2f}, {row['high']:.2f}]"

    dynamic = {at: decibels(f"daq@{at}, daq", f"ste@{at}, rtn", at) for at in ("w2a2", "w3a3", "w4a4")}
    told = "by {} dB at 2 bits ({}); at 3 bits by {} ({}), at 4 by {} ({})."
    assert told.format(*(part for each in dynamic.values() for part in each)) in study
    inputs = [decibels(f"ste@{at}, daq_inputs", f"ste@{at}, rtn", at) for at in ("w3a3", "w2a2")]
    assert "gains {} dB at 3 bits ({}) and {} at 2 ({}).".format(*inputs[0], *inputs[1]) in study
    rates = chosen.frame(load_results(RESULTS, "rivals_super_resolution"))
    assert f"all cells choose {rates['chosen'].min() * 1e3:.1f}e-3 to {rates['chosen'].max() * 1e3:.1f}e-3" in study
    assert rates.loc[rates["end"] != "", "cell"].to_list() == ["ste,target_bit=w4a4", "ste,target_bit=w2a2"]
    plain = {at: mean("rivals_super_resolution", "float, rtn", at) for at in ("w2a2", "float")}
    assert f"float training has {plain['w2a2']:.2f} dB there, {plain['float'] - plain['w2a2']:.2f} below" in study
    assert f"the float networks {plain['float']:.2f}." in study


def test_what_was_chosen_at_an_end_of_its_range() -> None:
    found = pd.concat(chosen.frame(load_results(RESULTS, name)) for name in sweep_names(RESULTS))
    ends = found[found["end"] != ""]
    page = said("README.md")
    rates = (ends["setting"] == "train.learning_rate") & (ends["end"] == "high")
    assert f"of {len(found)} chosen settings {len(ends)} lie in the outer tenth" in page
    assert (
        f"where chance has {2 * chosen.END * len(found):.0f}. {rates.sum()} of them are learning rates at the" in page
    )
