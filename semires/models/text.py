"""Expressions to BERT's tokens: int64 ids and mask (B,L), padded with zeros to a fixed length.

The vocabulary comes from a BERT file (one token a line), a ``tokenizer.json``, a local folder with
one of them, or a hub id. Truncation keeps [CLS] and [SEP]; the published code drops [SEP].
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from semires.config.model import ModelSection
from semires.errors import WeightsError
from semires.models.sources import VOCABULARY, folder_of, shipped
from semires.models.weights import check_file, weights_errors

NO_VOCABULARY = "not a BERT vocabulary file"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class Tokenizer:
    """A BERT tokenizer of transformers with the project's padding and truncation.

    Attributes:
        vocab_size: number of tokens of the vocabulary.
        truncated: number of expressions that :meth:`encode` has truncated so far.

    Args:
        source: a vocabulary file, a local folder or a hub id.
        key: the parameter that names it, for messages.

    Raises:
        WeightsError: the file does not exist or is not a BERT vocabulary.
    """

    def __init__(self, source: str | Path, key: str = "model.bert.vocabulary") -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # data loaders fork
        self._tokenizer: Any = _load(source, key)
        self.vocab_size = len(self._tokenizer)
        self.truncated = 0

    @classmethod
    def from_config(cls, model: ModelSection) -> Tokenizer:
        """The tokenizer of a `model` section.

        Raises:
            WeightsError: the section names no vocabulary, or it cannot be read.
        """
        try:
            key, source = model.vocabulary_source()
        except ValueError as error:
            raise WeightsError(str(error)) from None
        return cls(source, key)

    def encode(self, texts: list[str], max_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and attention mask, int64 (B,max_tokens); adds to :attr:`truncated`.

        [CLS] and [SEP] count as tokens. An empty expression is [CLS] [SEP].
        """
        rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}  # many texts are equal
        ids = torch.zeros(len(rows), max_tokens, dtype=torch.int64)
        mask, cut = torch.zeros_like(ids), torch.zeros(len(rows), dtype=torch.int64)
        for row, tokens in enumerate(self._tokenize(list(rows))):
            if len(tokens) > max_tokens:
                cut[row] = 1
                tokens = [*tokens[: max_tokens - 1], tokens[-1]]
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        places = torch.tensor([rows[text] for text in texts], dtype=torch.int64)
        self.truncated += int(cut[places].sum())
        return ids[places], mask[places]

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        return self._tokenizer(  # type: ignore[no-any-return]
            texts, return_attention_mask=False, return_token_type_ids=False, verbose=False
        )["input_ids"]


def _load(source: str | Path, key: str) -> Any:
    path = shipped(source)
    if not path.is_file():
        if path.suffix == ".txt":
            raise WeightsError(f"{path}: no such vocabulary file ({key})")
        folder = folder_of(source, VOCABULARY, key)
        path = next(folder / name for name in VOCABULARY if (folder / name).is_file())
    check_file(path)
    in_json = path.suffix == ".json"
    with weights_errors(str(path), "no BERT tokenizer" if in_json else NO_VOCABULARY):
        text = path.read_text(encoding="utf-8")
        vocabulary = _of_json(text) if in_json else _of_lines(text)
        if missing := [token for token in SPECIAL if token not in vocabulary]:
            raise ValueError(f"it lacks {', '.join(missing)}")
        if vocabulary["[PAD]"] != 0:
            raise ValueError("its first token must be [PAD]")
        tokenizer = _from_json(path) if in_json else _from_vocabulary(vocabulary, path)
        vocabulary = tokenizer.get_vocab()
        if sorted(vocabulary.values()) != list(range(len(vocabulary))):
            raise ValueError("the ids of its tokens are not 0, 1, 2, ...")
        if tokenizer("")["input_ids"] != [vocabulary["[CLS]"], vocabulary["[SEP]"]]:
            raise ValueError("it does not add [CLS] and [SEP]")
    return tokenizer


def _of_lines(text: str) -> dict[str, int]:
    """The ids of a vocabulary file, one token a line."""
    tokens = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) < len(tokens):
        raise ValueError("a token occurs twice")
    return vocabulary


def _of_json(text: str) -> dict[str, int]:
    """The ids of a ``tokenizer.json``, as `save_pretrained` of transformers 5 writes it."""
    model = json.loads(text)["model"]
    if model["type"] != "WordPiece" or not isinstance(model["vocab"], dict):
        raise ValueError(f"its kind is {model['type']}, and BERT's is WordPiece")
    return dict(model["vocab"])


def _from_vocabulary(vocabulary: dict[str, int], path: Path) -> Any:
    from transformers import BertTokenizer

    return BertTokenizer(vocab=vocabulary, do_lower_case=_lower_case(path))


def _from_json(path: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    names = ("pad", "unk", "cls", "sep", "mask")
    special = {f"{name}_token": token for name, token in zip(names, SPECIAL, strict=True)}
    return PreTrainedTokenizerFast(tokenizer_file=str(path), **special)


def _lower_case(vocabulary: Path) -> bool:
    """Whether the tokenizer of a vocabulary file lowercases text; BERT's default is yes.

    Raises:
        WeightsError: tokenizer_config.json beside the vocabulary is damaged.
    """
    settings = vocabulary.with_name("tokenizer_config.json")
    if not settings.is_file():
        return True
    check_file(settings)
    with weights_errors(str(settings)):
        value = json.loads(settings.read_text(encoding="utf-8"))
        return bool(value.get("do_lower_case", True))
