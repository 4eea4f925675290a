"""Text to token ids and back, through tiktoken: a closed word-level vocabulary built offline, or GPT-2's own.

The words encoding cuts a text into phrases, words and glue; a piece that its vocabulary knows is one token:

>>> re.findall(PATTERN, "Tom is a lempus. Every lempus is a rempus. Is Tom a rempus or impus?")
['Tom', ' is a lempus. ', 'Every lempus', ' is a rempus. ', 'Is ', 'Tom', ' a ', 'rempus', ' or ', 'impus', '?']
>>> re.findall(PATTERN, "She sold 48 clips.")
['She', ' sold', ' ', '4', '8', ' clips', '.']

The subject and the predicate of a fact are one piece each, so a fact of ProsQA is two tokens, side by side: looking an
edge up is then the plainest induction there is, "find the subject, read what follows". With four tokens a fact the
small models tried never found it in the time they had (RESULTS.md). Glue is a run of function words, full stops and
blanks. What the vocabulary lacks falls back to bytes, so every text comes back unchanged. Digits stand alone, as
arithmetic wants.
"""

import collections
import re

import tiktoken

from nanococonut.config import UserError

FUNCTION_WORDS = "True or false:|Every|every|Each|each|Is|is|are|not|an|a|or"
# Differs from the paper: it uses GPT-2's tokens, as --tokenizer=gpt2 does; from scratch, few tokens a fact are easier.
PATTERN = (
    r"(?:Every|Each) [a-z]+| is an? [a-z]+\.\s?|"  # subject, predicate
    rf"(?! ?(?:{FUNCTION_WORDS})\b) ?[A-Za-z]+|(?:[ .?#\n]|\b(?:{FUNCTION_WORDS})\b)+|[0-9]|[\s\S]"  # word, glue, rest
)
SPECIAL = ("bot", "eot", "pause", "eos")  # begin and end of thought, Table 1's pause, end of sequence


def fit(texts, max_pieces: int = 8000) -> list[str]:
    """The most frequent pieces of some texts, as the vocabulary of `words`; those of one byte are in it anyway."""
    counts = collections.Counter(piece for text in texts for piece in re.findall(PATTERN, text))
    pieces = sorted((p for p in counts if len(p.encode()) > 1), key=lambda p: (-counts[p], p))
    return pieces[:max_pieces]


def words(pieces: list[str]) -> tiktoken.Encoding:
    """The closed encoding of some pieces: ids 0..255 are bytes, then the pieces, then <bot> <eot> <pause> <eos>."""
    ranks = {bytes([i]): i for i in range(256)} | {piece.encode(): 256 + i for i, piece in enumerate(pieces)}
    if len(ranks) != 256 + len(pieces):
        raise UserError("the vocabulary lists a piece twice or one that is a single byte")
    special = {f"<{name}>": len(ranks) + i for i, name in enumerate(SPECIAL)}
    return tiktoken.Encoding("words", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)


def gpt2() -> tiktoken.Encoding:
    """GPT-2's encoding with <bot>, <eot> and <pause> behind it; its <|endoftext|> is <eos>. Downloads on first use."""
    try:
        base = tiktoken.get_encoding("gpt2")
    except OSError as error:  # requests' exceptions are OSErrors
        raise UserError(
            f"--tokenizer=gpt2 fetches GPT-2's vocabulary at first use and could not ({type(error).__name__}); "
            "go online once, or use --tokenizer=words"
        ) from None
    special = {f"<{name}>": base.n_vocab + i for i, name in enumerate(SPECIAL[:-1])} | {"<eos>": base.eot_token}
    return tiktoken.Encoding(
        "gpt2", pat_str=base._pat_str, mergeable_ranks=base._mergeable_ranks, special_tokens=special
    )


def load(name: str, pieces: list[str]) -> tiktoken.Encoding:
    """The encoding a dataset or a checkpoint was made with."""
    return words(pieces) if name == "words" else gpt2()


def special_ids(encoding: tiktoken.Encoding) -> dict[str, int]:
    """{"bot": id, "eot": id, "pause": id, "eos": id}."""
    return {name: encoding.encode_single_token(f"<{name}>") for name in SPECIAL}
