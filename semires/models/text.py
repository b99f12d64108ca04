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
    tokenizer = _of_json(path) if path.suffix == ".json" else _of_vocabulary(path)
    _check(tokenizer, path)
    return tokenizer


def _of_vocabulary(path: Path) -> Any:
    """A tokenizer of a vocabulary file, one token a line.

    Raises:
        WeightsError: the file is not UTF-8 text, or a token occurs twice.
    """
    from transformers import BertTokenizer

    with weights_errors(str(path), NO_VOCABULARY):
        tokens = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    tokens = [token.removesuffix("\r") for token in tokens]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) < len(tokens):
        raise WeightsError(f"{path}: {NO_VOCABULARY}: a token occurs twice")
    _check_special(vocabulary, path)
    return BertTokenizer(vocab=vocabulary, do_lower_case=_lower_case(path))


def _of_json(path: Path) -> Any:
    """A tokenizer of a ``tokenizer.json``, as `save_pretrained` of transformers 5 writes it.

    Raises:
        WeightsError: the file is damaged, or of another kind of tokenizer.
    """
    from transformers import PreTrainedTokenizerFast

    with weights_errors(str(path), "no BERT tokenizer"):
        model = json.loads(path.read_text(encoding="utf-8"))["model"]
        kind, vocabulary = model["type"], model["vocab"]
        if kind != "WordPiece" or not isinstance(vocabulary, dict):
            raise ValueError(f"its kind is {kind}, and BERT's is WordPiece")
        _check_special(vocabulary, path)
        special = dict(zip(("pad", "unk", "cls", "sep", "mask"), SPECIAL, strict=True))
        return PreTrainedTokenizerFast(
            tokenizer_file=str(path), **{f"{name}_token": value for name, value in special.items()}
        )


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


def _check_special(vocabulary: dict[str, int], path: Path) -> None:
    """Refuse a vocabulary without BERT's special tokens.

    Raises:
        WeightsError: one is missing, or [PAD] is not the first token.
    """
    missing = [token for token in SPECIAL if token not in vocabulary]
    if missing:
        raise WeightsError(f"{path}: {NO_VOCABULARY}: it lacks {', '.join(missing)}")
    if vocabulary["[PAD]"] != 0:
        raise WeightsError(f"{path}: {NO_VOCABULARY}: its first token must be [PAD]")


def _check(tokenizer: Any, path: Path) -> None:
    """Refuse a tokenizer whose ids have gaps, or that does not add [CLS] and [SEP].

    Raises:
        WeightsError: ids are missing, or a special token is not added.
    """
    vocabulary = tokenizer.get_vocab()
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise WeightsError(f"{path}: {NO_VOCABULARY}: the ids of its tokens are not 0, 1, 2, ...")
    if tokenizer("")["input_ids"] != [vocabulary["[CLS]"], vocabulary["[SEP]"]]:
        raise WeightsError(f"{path}: no BERT tokenizer: it does not add [CLS] and [SEP]")
