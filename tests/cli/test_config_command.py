"""`python -m harness.config` lists every setting, as the schema has it."""

import subprocess
import sys

import pytest
from pydantic import BaseModel

from harness import config
from harness.core import registry
from harness.core.errors import UserError
from harness.training.config import config_class

COMPONENTS = [(kind, name) for kind in registry.WITH_SETTINGS for name in registry.names(kind)]


def models_within(annotation: object) -> set[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    return {found for part in getattr(annotation, "__args__", ()) for found in models_within(part)}


def test_every_section_that_a_sweep_or_a_run_can_have_is_listed() -> None:
    listed = {model for _, model in config.SECTIONS.values()}
    reached, todo = set(), [config.SECTIONS[name][1] for name in ("sweep", "run")]
    while todo:
        model = todo.pop()
        reached.add(model)
        inner = {found for field in model.model_fields.values() for found in models_within(field.annotation)}
        todo += sorted(inner - reached, key=str)
    assert reached <= listed


@pytest.mark.parametrize("name", config.SECTIONS)
def test_every_key_has_its_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert config.main([name]) == 0
    lines = capsys.readouterr().out.splitlines()
    keys = [line.split(":")[0].strip() for line in lines if line.startswith("  ") and line[2] != " "]
    assert keys == list(config.SECTIONS[name][1].model_fields)


@pytest.mark.parametrize(("kind", "name"), COMPONENTS, ids=[name for _, name in COMPONENTS])
def test_components_have_their_settings(kind: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert config.main([name, "--markdown"]) == 0
    fields = config_class(kind, name).model_fields
    assert [f"| `{key}` |" in capsys_line for key, capsys_line in zip(fields, _rows(capsys), strict=True)] == [
        True
    ] * len(fields)


def _rows(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("| `")]


@pytest.mark.parametrize("name", [*config.SECTIONS, *(name for _, name in COMPONENTS)])
def test_every_setting_has_a_description_in_the_words_of_yaml(name: str) -> None:
    _, found = config.find(name)
    assert not [one.key for one in config.settings_of(found) if not one.description or "None" in one.description]


def test_types_defaults_and_ranges() -> None:
    run = {one.key: one for one in config.settings_of(config.SECTIONS["run"][1])}
    train = {one.key: one for one in config.settings_of(config.SECTIONS["train"][1])}
    assert train["optimizer"][1:4] == ("adam | adamw | sgd", "adam", "")
    assert train["batch_size"][1:4] == ("int", "128", "1 <= x <= 1000000")
    assert train["learning_rate"][1:4] == ("float", "0.001", "0 < x <= 1000.0")
    assert train["patience"][1:3] == ("int | null", "null")
    assert run["seed"].range == "0 <= x < 4294967296"
    assert run["deploy"][1:3] == ("section", "required")
    sweep = {one.key: one for one in config.settings_of(config.SECTIONS["sweep"][1])}
    assert sweep["cells"][1:4] == ("list of section", "required", "at least 1 entry")
    assert sweep["sampler"].default == "tpe"


def test_a_misspelt_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="'trian'; did you mean 'train'"):
        config.main(["trian"])


@pytest.mark.parametrize("name", ["train.learning_rate", "base.train.learning_rate"])
def test_a_key_alone(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert config.main([name]) == 0
    assert capsys.readouterr().out.startswith("train, and pretrain\n  learning_rate: float; default 0.001;")


def test_samplers_and_pruners_have_one_section_that_names_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for name in ("sampler", "pruner"):
        assert config.main([name]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert said[0].startswith("sampler and pruner: a name, or a section")
    assert "a sampler (random, grid, qmc, tpe, gp, nsgaii) or a pruner (none, median, percentile," in said[0]
    with pytest.raises(UserError, match=r"unknown .* 'prunre'; did you mean 'pruner'"):
        config.main(["prunre"])


def test_a_key_wherever_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert config.main(["strength"]) == 0
    said = capsys.readouterr().out
    assert {"method oscillation", "method kure", "method dampening"} < set(said.splitlines())
    assert said.count("  strength: ") == said.count("method ")


def test_a_misspelt_key_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown key of train 'lerning_rate'; did you mean 'learning_rate'\?"):
        config.main(["train.lerning_rate"])
    with pytest.raises(UserError, match=r"or key 'lerning_rate'; did you mean 'learning_rate'\? \(legal: activations,"):
        config.main(["lerning_rate"])


@pytest.mark.parametrize("name", ["data.val", "base.data.val"])
def test_a_key_of_a_component_is_said_to_depend_on_it(name: str) -> None:
    said = rf"^{name} depends on the data set: python -m harness.config image_pairs.val \(it is .*: image_pairs, text"
    with pytest.raises(UserError, match=said):
        config.main([name])
    assert config.main(["text.val"]) == 0
    with pytest.raises(UserError, match=r"unknown key of any model 'widht'; did you mean 'width'\?"):
        config.main(["model.widht"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("base.target_bit", "base of a sweep file, or a file for harness.run\n  target_bit: "),
        ("base.train", "train, and pretrain\n"),
        ("data.augment.flip", "data.augment\n  flip: "),
    ],
)
def test_keys_as_they_are_written_in_a_file(name: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert config.main([name]) == 0
    assert capsys.readouterr().out.startswith(said)


def test_sections_need_no_torch() -> None:
    code = "import sys; from harness.config import main; main([]); sys.exit('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
