"""Every text comes back, and a known piece is one token."""

import hashlib
import json
import random
from pathlib import Path

import pytest

from nanococonut import curriculum, data, files, tokenizer
from nanococonut.cli import UserError

RELEASED = Path(__file__).parents[2] / "shared/data/prosqa_valid_official.json"
TEXTS = [
    "Every lempus is a rempus. Tom is a lempus. Is Tom a rempus or impus?\n",
    "### Tom is a rempus.",
]
released = pytest.mark.skipif(
    not RELEASED.exists(), reason="the released files stand beside the project, not in it"
)
ODD = [
    "",
    "\n\n",
    "12,345.678 = <<2*3=6>>",
    "naïve Ωmega 漢字 \U0001f965\x00 tab\t",
    "Every is a is not. or or",
    " is a zzz.",
    "<bot><eos>",
]


def encoding():
    return tokenizer.words(tokenizer.fit(TEXTS)[0])


def test_every_known_piece_is_one_token():
    enc = encoding()
    for piece in tokenizer.fit(TEXTS)[0]:
        text = piece
        assert enc.decode(enc.encode_ordinary(text)[:1]) == piece
    assert [len(enc.encode_ordinary(text)) for text in TEXTS] == [9, 3]


def test_tiktoken_cuts_where_python_cuts():
    enc = encoding()
    for text in TEXTS + ODD:
        pieces = [enc.decode_bytes(enc.encode_ordinary(piece)) for piece in tokenizer.pieces(text)]
        assert b"".join(pieces) == text.encode()
        known = [p for p in tokenizer.pieces(text) if p in tokenizer.fit(TEXTS)[0]]
        assert sum(t >= 256 for t in enc.encode_ordinary(text)) >= len(known)


@pytest.mark.parametrize("text", ODD)
def test_any_text_comes_back(text):
    assert encoding().decode(encoding().encode_ordinary(text)) == text


def test_random_unicode_comes_back():
    rng, enc = random.Random(0), encoding()
    for _ in range(300):
        text = ""
        for _ in range(40):
            drawn = [rng.randrange(32, 127), rng.randrange(0xD800)]
            drawn.append(rng.randrange(0x10000, 0x10FFFF))
            text += chr(rng.choice(drawn))
        assert enc.decode(enc.encode_ordinary(text)) == text


def test_specials_never_come_from_text():
    enc = encoding()
    special = tokenizer.special_ids(enc)
    assert sorted(special.values()) == list(range(enc.n_vocab - 4, enc.n_vocab))
    assert not set(enc.encode_ordinary("<bot> <eot> <pause> <eos>")) & set(special.values())


@released
def test_the_released_file_comes_back():
    rows = files.read_rows(RELEASED)
    texts = [text for row in rows for text in curriculum.texts_of(row)]
    enc = tokenizer.words(tokenizer.fit(texts)[0])
    # 3 for each of 17 persons, 6 for each of 38 concepts, 3 kinds of glue
    assert len(tokenizer.fit(texts)[0]) == 282
    for text, ids in zip(texts, enc.encode_ordinary_batch(texts), strict=True):
        assert enc.decode(ids) == text
        assert all(i >= 256 or i == ord("\n") for i in ids), "nothing fell back to bytes"


def test_a_broken_vocabulary_is_refused():
    with pytest.raises(UserError):
        tokenizer.words(["lempus", "lempus"])
    with pytest.raises(UserError):
        tokenizer.words(["x"])


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError("no route to host"),
            "GPT-2's vocabulary is not on this machine and cannot be fetched",
        ),
        (
            ValueError("Hash mismatch for data downloaded from ..."),
            "is another file, perhaps a login page",
        ),
    ],
)
def test_gpt2_without_its_vocabulary_is_one_clear_line(workspace, monkeypatch, error, message):
    def refuse(name):
        raise error

    monkeypatch.setattr("tiktoken.get_encoding", refuse)
    with pytest.raises(UserError, match=message) as refused:
        tokenizer.gpt2()
    assert "TIKTOKEN_CACHE_DIR" in str(refused.value) and "\n" not in str(refused.value)
    meta = {"tokenizer": "gpt2", "vocabulary": [], "pattern": "", "longest": {}, "sha256": {}}
    files.write_text(workspace / "data/theirs/meta.json", json.dumps(meta))
    with pytest.raises(UserError, match=message):
        data.Dataset("theirs")


def test_the_hint_names_the_files_that_tiktoken_looks_for(monkeypatch):
    asked = []

    def note(address, *_, **__):
        asked.append(address)
        raise OSError("no route to host")

    monkeypatch.setattr("tiktoken.load.read_file_cached", note)
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    with pytest.raises(UserError) as refused:
        tokenizer.gpt2()
    assert asked == [tokenizer.GPT2_FILES + "vocab.bpe"]
    assert f"{hashlib.sha1(asked[0].encode()).hexdigest()} (vocab.bpe)" in str(refused.value)
    assert "encoder.json" in str(refused.value)
