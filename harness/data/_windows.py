"""Text for language modelling, on the training device as small integers, seen through windows of tokens."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.data._config import TextConfig
from harness.data._tokens import check_lengths, encode, vocabulary_size

#: Logits of an evaluation batch, at most: 256 MiB in fp32.
_MOST = 2**26


@dataclass(frozen=True, eq=False)
class Windows:
    """A split: its tokens one after another, uint8, int16 or int32 (L,), L above `context`.

    A window is `context` tokens as inputs and the ones after them as targets. drawn: how many an epoch of training
    draws; None: as many as lie side by side, where the last one may be shorter.
    """

    tokens: Tensor
    context: int
    drawn: int | None = None

    def __len__(self) -> int:
        return self.drawn or -(-(len(self.tokens) - 1) // self.context)


@dataclass(frozen=True, eq=False)
class TextData:
    """Training: windows anywhere in the text. Evaluation: the whole text in windows side by side.

    outputs: the size of the vocabulary.
    """

    train: Windows
    val: Windows
    test: Windows
    outputs: int
    digest: str

    @property
    def device(self) -> torch.device:
        return self.train.tokens.device

    @property
    def input_shape(self) -> tuple[int]:
        """(T,)."""
        return (self.train.context,)

    def train_batch(self, indices: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Tokens and the ones after them, int64 (B, T) each.

        With a generator the windows' places are drawn; without, those of an epoch are spread over the text.
        """
        tokens, context = self.train.tokens, self.train.context
        places = len(tokens) - context
        if generator is None:
            begins = indices * places // len(self.train)
        else:
            begins = torch.randint(0, places, (len(indices),), generator=generator, device=generator.device)
        found = tokens[begins[:, None] + torch.arange(context + 1, device=tokens.device)].long()
        return found[:, :-1], found[:, 1:]

    def batches(self, split: Windows, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Every token but the first is a target once. The last window, where it is shorter, is a batch of its own."""
        context, size = split.context, max(1, min(batch_size, _MOST // (split.context * self.outputs)))
        whole = (len(split.tokens) - 1) // context
        for begin in range(0, whole, size):
            part = split.tokens[begin * context : min(begin + size, whole) * context + 1].long()
            yield part[:-1].view(-1, context), part[1:].view(-1, context)
        rest = split.tokens[whole * context :].long()
        if len(rest) > 1:
            yield rest[None, :-1], rest[None, 1:]

    def first(self, split: Windows, count: int) -> Windows:
        """The first windows of a split."""
        return Windows(split.tokens[: count * split.context + 1], split.context)


def text_data(config: TextConfig, texts: Mapping[str, str], characters: str, device: torch.device | str) -> TextData:
    """The texts of train, val and test as tokens on a device. characters: those with an id of their own.

    Raises UserError where a text is no longer than a window, and for a tokenizer that is not there.
    """
    found = {split: encode(config.tokenizer, text, characters) for split, text in texts.items()}
    check_lengths(config, {split: len(ids) for split, ids in found.items()})
    tensors = {split: torch.from_numpy(ids).to(device) for split, ids in found.items()}
    return TextData(
        train=Windows(tensors["train"], config.context, config.windows),
        val=Windows(tensors["val"], config.context),
        test=Windows(tensors["test"], config.context),
        outputs=vocabulary_size(config.tokenizer, characters),
        digest=_digest(texts, {split: ids.tobytes() for split, ids in found.items()}),
    )


def _digest(texts: Mapping[str, str], tokens: Mapping[str, bytes]) -> str:
    """16 hexadecimal digits that name every character and every token."""
    digest = hashlib.sha256()
    for split, text in texts.items():
        encoded = text.encode("utf-8", "surrogatepass")
        for part in (encoded, tokens[split]):
            digest.update(f"/{split} {len(part)}".encode())
            digest.update(part)
    return digest.hexdigest()[:16]
