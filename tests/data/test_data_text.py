"""Text: every token is predicted once in evaluation, windows hold what the text has, and what is refused."""

import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import data
from harness.core.errors import UserError
from harness.data import python_stdlib
from harness.data._windows import TextData, Windows
from harness.training.config import component

TEXT = "the quick brown fox jumps over the lazy dog\n" * 10


def made(length: int, context: int, drawn: int | None = None) -> TextData:
    """A text whose tokens count up."""
    tokens = torch.arange(length, dtype=torch.uint8)
    whole = Windows(tokens, context)
    return TextData(Windows(tokens, context, drawn), whole, whole, outputs=256, digest="made")


def config(root: Path, **settings: Any) -> Any:
    return component("data set", {"name": "text", "root": root, "context": 8, **settings})


def string(ids: torch.Tensor, characters: str) -> str:
    return "".join((characters + "?")[index] for index in ids.tolist())


@pytest.mark.parametrize("length", [9, 12, 13, 14])
@pytest.mark.parametrize("batch", [1, 2, 100])
def test_evaluation_predicts_every_token_but_the_first_once(length: int, batch: int) -> None:
    found = made(length, 4)
    inputs, targets = zip(*found.batches(found.val, batch), strict=True)
    assert torch.cat([each.flatten() for each in inputs]).tolist() == list(range(length - 1))
    assert torch.cat([each.flatten() for each in targets]).tolist() == list(range(1, length))
    assert max(len(each) for each in inputs) <= batch
    assert {each.shape[1] for each in inputs[:-1]} <= {4}
    assert len(found.val) == sum(len(each) for each in inputs)
    assert found.first(found.val, 2).tokens.tolist() == list(range(9))


def test_a_window_may_begin_anywhere_and_depends_on_the_generator_alone() -> None:
    found, indices = made(9, 4, drawn=64), torch.arange(64)
    inputs, targets = found.train_batch(indices, torch.Generator().manual_seed(1))
    assert (inputs.shape, inputs.dtype, len(found.train)) == ((64, 4), torch.int64, 64)
    assert torch.equal(inputs + 1, targets)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert set(inputs[:, 0].tolist()) == {0, 1, 2, 3, 4}
    again, other = (found.train_batch(indices, torch.Generator().manual_seed(seed))[0] for seed in (1, 2))
    assert torch.equal(again, inputs)
    assert not torch.equal(other, inputs)
    inputs, targets = found.train_batch(indices)
    assert inputs[:, 0].tolist() == sorted(inputs[:, 0].tolist())
    assert set(inputs[:, 0].tolist()) == {0, 1, 2, 3, 4}, "spread over the text"
    assert torch.equal(inputs + 1, targets)


def test_parts_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT + "Zz")
    asked = config(tmp_path / "a.txt", test_fraction=0.1, val_fraction=0.2)
    found: Any = data.load_dataset(asked, 0, "cpu")
    characters = "".join(sorted(set(TEXT)))
    assert data.shape(asked) == (found.input_shape, found.outputs) == ((8,), len(characters) + 1)
    parts = [string(each.tokens, characters) for each in (found.train, found.val, found.test)]
    assert "".join(parts) == TEXT + "?z", "a character that train lacks is the last id"
    assert [len(each) for each in parts] == [318, 80, 44]
    assert found.train.tokens.dtype == torch.uint8
    assert data.load_dataset(asked, 7, "cpu").digest == found.digest


def test_files_of_a_folder(tmp_path: Path) -> None:
    for name in ("train/b.txt", "train/deep/a.txt", "held.txt", "end.txt", ".hidden.txt", "train/.git/c.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() + b" is its text\r\n")
    (tmp_path / "train/picture.png").write_bytes(b"\x89PNG")
    found: Any = data.load_dataset(config(tmp_path, files="*.txt", val="held.txt", test="end.txt"), 0, "cpu")
    characters = "".join(sorted(set("train/b.txt is its text\ntrain/deep/a.txt is its text\n")))
    assert string(found.train.tokens, characters) == "train/b.txt is its text\ntrain/deep/a.txt is its text\n"
    assert [len(each.tokens) for each in (found.val, found.test)] == [21, 20]
    again = data.load_dataset(config(tmp_path, train="train", files="*.txt", val="held.txt", test="end.txt"), 0, "cpu")
    assert again.digest == found.digest
    (tmp_path / "held.txt").write_text("other text of its own")
    assert data.prepare(config(tmp_path, files="*.txt", val="held.txt", test="end.txt")).digest != found.digest


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ("train/a.txt", "val/b.txt"),
            r"/val would be pooled .*; set data.val: val, or, to pool all text, data.train: \.",
        ),
        (("train/a.txt", "Validation/b.txt", "test/c.txt"), "set data.val: Validation, data.test: test, or"),
        (
            ("wiki.train.tokens", "wiki.valid.tokens", "test.txt"),
            "set data.val: wiki.valid.tokens, data.test: test.txt, or",
        ),
    ],
)
def test_what_is_called_like_a_split_is_not_pooled_unnoticed(tmp_path: Path, names: tuple[str, ...], said: str) -> None:
    for name in (*names, "other/test/d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(TEXT)
    with pytest.raises(UserError, match=said):
        data.check(config(tmp_path))
    data.check(config(tmp_path, train="."))
    data.check(config(tmp_path, val=names[1].partition("/")[0]))
    data.check(config(tmp_path, files=names[0].partition("/")[2] or names[0]))


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "context": ({"context": 100}, "data.context: 100: val has 2. characters, and one more than a window is needed"),
    "no root": ({"root": None}, "data.root is not set"),
    "nothing there": ({"root": "none"}, "data.root: nothing is at"),
    "no such file": ({"root": ".", "val": "vall.txt"}, "data.val: neither a file nor a folder is at .*vall.txt"),
    "a file of a file": ({"val": "x"}, "data.val: 'x': data.root is one file"),
    "in two splits": ({"root": ".", "train": "t.txt", "val": "t.txt"}, "data.val: .*t.txt is a file of train, too"),
    "no file left": ({"root": "one", "val": "t.txt"}, "data.root: .*one holds no file beside those of val"),
    "no file of that name": ({"root": ".", "files": "*.md"}, r"holds no file of data.files: '\*.md'"),
    "empty": ({"root": "empty.txt"}, "data.root: .*empty.txt: empty, there is no text to read"),
    "empty split": ({"root": ".", "files": "t.txt", "test": "empty.txt"}, "data.test: .*empty.txt: empty"),
    "not UTF-8": ({"root": "latin.txt"}, "data.root: .*latin.txt is not UTF-8: byte 0xe9 at 3"),
    "tokenizer": ({"tokenizer": "charcters"}, "tokenizer: 'charcters': no tokenizer; did you mean 'characters'"),
    "no tokenizer": ({"tokenizer": "hf:./none"}, "data.tokenizer: 'hf:./none': none is not there"),
    "no tokenizer in a folder": ({"tokenizer": "hf:."}, r"data.tokenizer: 'hf:.': . holds no tokenizer \(one of tok"),
    "download": ({"download": True}, "data.download"),
}


@pytest.mark.parametrize(("changes", "said"), BAD.values(), ids=BAD)
def test_what_does_not_fit_is_refused(
    changes: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one").mkdir()
    for name in ("t.txt", "one/t.txt"):
        Path(name).write_text(TEXT)
    Path("empty.txt").touch()
    Path("latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(UserError, match=said):
        data.prepare(component("data set", {"name": "text", "root": "t.txt", "context": 8, **changes}))


def test_a_tokenizer_without_transformers_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.core.extras.find_spec", lambda package: None)
    asked = component("data set", {"name": "python_stdlib", "tokenizer": "hf:some/model"})
    with pytest.raises(UserError, match=r"data.tokenizer: 'hf:some/model' needs transformers: .*harness\[language\]"):
        data.check(asked)


def test_the_standard_library_is_split_by_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = [name for names in python_stdlib.FILES.values() for name in names]
    assert len(names) == len(set(names)) == 72
    asked = component("data set", {"name": "python_stdlib", "context": 16})
    data.check(asked)
    found: Any = data.load_dataset(asked, 0, "cpu")
    assert data.shape(asked) == (found.input_shape, found.outputs) == ((16,), 97)
    text = "".join(
        (Path(sysconfig.get_path("stdlib")) / name).read_text("utf-8") for name in python_stdlib.FILES["val"]
    )
    ids = found.val.tokens
    assert string(ids, python_stdlib.ALPHABET) == "".join(c if c in python_stdlib.ALPHABET else "?" for c in text)
    assert (found.train.tokens == 96).float().mean() < 1e-3, "hardly a character is another"
    monkeypatch.setattr(python_stdlib, "_folder", lambda: tmp_path)
    with pytest.raises(UserError, match=r"data.name: python_stdlib: .* has no _pyio.py; a Python of 3.11 to 3.14"):
        data.check(asked)
