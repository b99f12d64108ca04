import string

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from semires.errors import WeightsError
from semires.models.text import SPECIAL, Tokenizer

SHIPPED = "semires/weights/vocab.txt"
PAD, UNK, CLS, SEP = range(4)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(SHIPPED)


def test_shipped_vocabulary_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Tokenizer(SHIPPED).vocab_size > 200


def test_words_of_refscenes_are_one_token_each(tokenizer):
    text = "small red star left of the second blue mushroom with the yellow cap from the right"
    ids, mask = tokenizer.encode([text], 20)
    assert mask.sum() == len(text.split()) + 2
    assert UNK not in ids


def test_padding_and_specials(tokenizer):
    ids, mask = tokenizer.encode(["red star", "", "Red  STAR!"], 6)
    assert ids.dtype == mask.dtype == torch.int64
    assert ids.shape == mask.shape == (3, 6)
    assert ids[0, 0] == CLS
    assert ids[0, 3] == SEP
    assert ids[0, 4:].tolist() == [PAD, PAD]
    assert mask.tolist()[:2] == [[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]]
    assert ids[2, :3].tolist() == ids[0, :3].tolist()
    assert tokenizer.encode([], 6)[0].shape == (0, 6)


def test_truncation_keeps_both_ends_and_is_counted():
    tokenizer = Tokenizer(SHIPPED)
    ids, mask = tokenizer.encode(["red " * 30, "red", "blue " * 19, "red " * 30], 20)
    assert tokenizer.truncated == 3, "each expression counts, equal ones too"
    assert ids[3].tolist() == ids[0].tolist()
    assert ids[0, 0] == CLS
    assert ids[0, -1] == SEP
    assert mask[0].sum() == 20


@hypothesis_settings(max_examples=100, deadline=None)
@given(
    st.text(alphabet=string.ascii_letters + string.digits + string.punctuation + " ", max_size=60)
)
def test_any_ascii_is_spelt_without_unknowns(text):
    ids, _ = Tokenizer(SHIPPED).encode([text], 130)
    assert UNK not in ids


@hypothesis_settings(max_examples=100, deadline=None)
@given(st.text(max_size=200), st.integers(3, 30))
def test_any_text_gives_a_valid_row(text, length):
    ids, mask = Tokenizer(SHIPPED).encode([text], length)
    count = int(mask.sum())
    assert 2 <= count <= length
    assert mask[0].tolist() == [1] * count + [0] * (length - count)
    assert ids[0, 0] == CLS
    assert ids[0, count - 1] == SEP
    assert not ids[0, count:].any()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff\xfe\x00", "not a BERT vocabulary"),
        (b"red\nblue\n", r"lacks \[PAD\]"),
        ("\n".join(["red", *SPECIAL]).encode(), r"first token must be \[PAD\]"),
        ("\n".join([*SPECIAL, "red", "red"]).encode(), "twice"),
    ],
)
def test_no_vocabulary(tmp_path, content, says):
    path = tmp_path / "vocab.txt"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=says):
        Tokenizer(path)


def test_missing_vocabulary_and_folder(tmp_path):
    with pytest.raises(WeightsError, match="no such vocabulary file"):
        Tokenizer(tmp_path / "none.txt")
    with pytest.raises(WeightsError, match=r"holds no vocab\.txt or tokenizer\.json"):
        Tokenizer(tmp_path)


def test_folder_with_vocabulary(tmp_path, tokenizer):
    words = [*SPECIAL, "Red", "red"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    assert Tokenizer(tmp_path).encode(["Red"], 4)[0].tolist() == [[2, 6, 3, 0]]
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert Tokenizer(tmp_path).encode(["Red"], 4)[0].tolist() == [[2, 5, 3, 0]]
