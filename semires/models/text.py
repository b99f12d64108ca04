"""Expressions to BERT's tokens: int64 ids and mask (B,L), padded with zeros to a fixed length.

The vocabulary comes from a BERT file (one token a line), a local folder or a hub id. Unlike the
published code, which cuts ids off and loses [SEP], truncation keeps [CLS] and [SEP].
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from semires.config.schema import Bert
from semires.errors import WeightsError
from semires.files import read_json
from semires.models.sources import VOCABULARY, folder_of, shipped

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class Tokenizer:
    """transformers' `BertTokenizer` with the project's conventions.

    Attributes:
        vocab_size: number of tokens of the vocabulary.
        truncated: expressions that :meth:`encode` has cut so far.

    Args:
        source: a vocabulary file, a local folder or a hub id.
        key: the parameter that names it, for messages.

    Raises:
        WeightsError: there is no such file or it is no BERT vocabulary.
    """

    def __init__(self, source: str | Path, key: str = "model.bert.vocabulary") -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # loaders fork
        self._tokenizer: Any = _load(source, key)
        self.vocab_size = len(self._tokenizer)
        self.truncated = 0

    @classmethod
    def from_config(cls, bert: Bert) -> Tokenizer:
        """The tokenizer of ``model.bert``: ``vocabulary`` if given, else ``pretrained``'s own.

        Raises:
            WeightsError: neither is given, or there is nothing to read.
        """
        source = bert.vocabulary or bert.pretrained
        if source is None:
            raise WeightsError("model.bert: give `vocabulary` or `pretrained`, both are null")
        return cls(source, "model.bert.vocabulary" if bert.vocabulary else "model.bert.pretrained")

    def encode(self, texts: list[str], max_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and attention mask, int64 (B,max_tokens); adds to :attr:`truncated`.

        [CLS] and [SEP] count as tokens. An empty expression is [CLS] [SEP].
        """
        rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}  # many are equal
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
    from transformers import BertTokenizer

    path = shipped(source)
    if not path.is_file():
        if path.suffix == ".txt":
            raise WeightsError(f"{path}: no such vocabulary file ({key})")
        # transformers makes an empty tokenizer, silently, of a folder without a vocabulary.
        path = folder_of(source, VOCABULARY, key) / "vocab.txt"
    return BertTokenizer(vocab=_read_vocabulary(path), do_lower_case=_lower_case(path))


def _lower_case(vocabulary: Path) -> bool:
    """Whether the tokenizer that a vocabulary belongs to lowers case; BERT's default is yes."""
    settings = vocabulary.with_name("tokenizer_config.json")
    value = read_json(settings) if settings.is_file() else {}
    return bool(value.get("do_lower_case", True)) if isinstance(value, dict) else True


def _read_vocabulary(path: Path) -> dict[str, int]:
    """A vocabulary file's tokens by line number.

    Raises:
        WeightsError: not UTF-8, a special token is missing, [PAD] is not first, or a token doubles.
    """
    try:
        tokens = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path}: not a BERT vocabulary file ({error})") from error
    tokens = [token.removesuffix("\r") for token in tokens]
    missing = [token for token in SPECIAL if token not in tokens]
    if missing:
        raise WeightsError(f"{path}: not a BERT vocabulary file: it lacks {', '.join(missing)}")
    if tokens[0] != "[PAD]":
        raise WeightsError(f"{path}: not a BERT vocabulary file: its first line must be [PAD]")
    if len(set(tokens)) < len(tokens):
        raise WeightsError(f"{path}: not a BERT vocabulary file: a token stands there twice")
    return {token: index for index, token in enumerate(tokens)}
