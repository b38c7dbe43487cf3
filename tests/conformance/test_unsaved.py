"""A method whose resumed run differs is told what it keeps that no checkpoint holds."""

from pathlib import Path

import pytest
from test_state_and_pickup import NEW_METHOD

from harness.conformance import training
from harness.conformance.common import Case, CheckFailed
from harness.conformance.unsaved import explained
from harness.core import registry

#: In the method's `after_backward`, in place of the step's index; and what else its class has.
KEPT = {
    "a counter": ("self.calls()", "def calls(self):\n self.n = getattr(self, 'n', 0) + 1\n return self.n", "`self.n`"),
    "a tensor": (
        "int(self.total.add_(1))",
        "def prepare(self, model, calibration):\n self.total = torch.zeros(())",
        "`self.total`",
    ),
    "in containers": (
        "self.seen['steps'].append(1) or len(self.seen['steps'])",
        "def prepare(self, model, calibration):\n self.seen, self.same = {'steps': []}, [1]",
        "`self.seen`",
    ),
    "saved but not loaded": (
        "self.calls()",
        "def calls(self):\n self.n = getattr(self, 'n', 0) + 1\n return self.n\n"
        "def state_dict(self):\n return {'n': self.n}",
        "`self.n`",
    ),
    "two": (
        "self.calls()",
        "a = b = 0\ndef calls(self):\n self.a += 1\n self.b += 2\n return self.a + self.b",
        "`self.a`, `self.b`",
    ),
    "on a layer": (
        "self.calls(step.model)",
        "def calls(self, model):\n layer = next(model.children())\n layer.count = getattr(layer, 'count', 0) + 1\n"
        " return layer.count",
        ".count` of the network",
    ),
}


def _case(folder: Path, index: str, further: str) -> Case:
    lines = further.replace("\n ", "\n    ").splitlines()
    body = "".join(f"\n    {line}" for line in lines)
    (folder / "keeps.py").write_text(NEW_METHOD.replace("step.index", f"({index})") + body + "\n")
    return Case(registry.check("method", str(folder / "keeps.py")), "mlp5", folder=folder)


@pytest.mark.parametrize(("index", "further", "named"), KEPT.values(), ids=KEPT)
def test_what_a_method_keeps_is_named_with_the_hooks_that_save_it(
    index: str, further: str, named: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckFailed) as failed:
        training.the_whole_state_is_resumed(_case(tmp_path, index, further))
    said = str(failed.value)
    assert said.startswith("after a resume: state.")
    place, _, hooks = said.partition("Likely cause: training changed ")[2].partition(", and after a resume")
    assert place == named if named.startswith("`self") else place.endswith(named)
    assert "return it from `state_dict()` of the method and set it again in `load_state_dict(state)`" in hooks


def test_the_cause_is_told_in_general_where_no_attribute_shows_it(tmp_path: Path) -> None:
    case = _case(tmp_path, "step.index", "")
    with (
        pytest.raises(CheckFailed, match=r"^result differs\. Likely cause: the method keeps something that training"),
        explained(case.config(), tmp_path),
    ):
        raise CheckFailed("result differs")


def test_the_check_of_a_resumed_run_tells_it_too(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match=r"resumed and uninterrupted: result.* training changed `self.n`, and"):
        training.a_resumed_run_equals_an_uninterrupted_one(_case(tmp_path, *KEPT["a counter"][:2]))
