"""Language modelling on Python: source files of the standard library that runs this, split by file.

Real text that is always there. The files are those below, which Python 3.11 to 3.14 all have; their text differs
between versions, so numbers compare within one version alone. The record has the version and the text's digest.
A character is a token: the 95 of printable ASCII and the line end have ids of their own, all others share one.
"""

import sysconfig
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness.core.errors import UserError
from harness.data._config import TextConfig

if TYPE_CHECKING:
    import torch

    from harness.data._windows import TextData

_VAL = "csv graphlib json/decoder socketserver tempfile textwrap"
_TEST = "contextlib json/encoder plistlib random shlex"
_TRAIN = """
    _pyio argparse ast asyncio/base_events asyncio/tasks base64 bdb calendar codecs collections/__init__
    concurrent/futures/process configparser dataclasses difflib dis doctest email/message enum ftplib functools gettext
    gzip http/client http/cookiejar http/server imaplib inspect ipaddress logging/__init__ logging/config
    logging/handlers mailbox multiprocessing/managers multiprocessing/pool optparse os pdb pickle pickletools platform
    pprint pydoc shutil smtplib socket ssl subprocess tarfile threading tokenize trace traceback typing unittest/case
    unittest/mock urllib/parse urllib/request weakref xml/dom/minidom xml/etree/ElementTree xmlrpc/client
"""
FILES = {split: [f"{name}.py" for name in names.split()] for split, names in
         (("train", _TRAIN), ("val", _VAL), ("test", _TEST))}  # fmt: skip
#: Characters with an id of their own.
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))


class Config(TextConfig):
    """No files are needed: `root` and `download` change nothing."""

    name: Literal["python_stdlib"] = "python_stdlib"


def check(config: Config) -> None:
    """Raises UserError: a file of the standard library or the tokenizer is not there; a window that is too long."""
    from harness.data._tokens import check_text, check_tokenizer

    check_tokenizer(config.tokenizer)
    folder = _folder()
    for name in (name for names in FILES.values() for name in names):
        if not (folder / name).is_file():
            raise UserError(
                f"data.name: python_stdlib: {folder} has no {name}; a Python of 3.11 to 3.14 with the source files of "
                "its standard library is needed"
            )
    check_text(config, _texts(folder))


def shape(config: Config) -> tuple[tuple[int], int]:
    """(T,), and the size of the vocabulary."""
    from harness.data._tokens import vocabulary_size

    return (config.context,), vocabulary_size(config.tokenizer, ALPHABET)


def load(config: Config, seed: int, device: "torch.device | str") -> "TextData":
    """The text on a device; nothing depends on the seed. Raises UserError like `check`."""
    from harness.data._windows import text_data

    check(config)
    return text_data(config, _texts(_folder()), ALPHABET, device)


@lru_cache(maxsize=1)
def _texts(folder: Path) -> dict[str, str]:
    """The text of each split, files one after another."""
    from harness.data._tokens import read_text

    where = "data.name: python_stdlib"
    return {split: "".join(read_text(folder / name, where) for name in names) for split, names in FILES.items()}


def _folder() -> Path:
    return Path(sysconfig.get_path("stdlib"))
