"""Text to token ids and back, through tiktoken: a closed word-level vocabulary built offline, or GPT-2's own.

The words encoding cuts a text into phrases, words and glue; a piece that its vocabulary knows is one token:

>>> pieces("Is Tom a rempus or impus?\\nTom is a lempus.\\nEvery lempus is a rempus.")
['Is ', 'Tom', ' a ', 'rempus', ' or ', 'impus', '?\\n', 'Tom is a ', 'lempus.\\nEvery lempus is a ', 'rempus.']

A fact of ProsQA is two tokens, so an edge is looked up by plain induction: find the subject, read what follows. A step
is one, its object with the next one's subject, so a thought can be like a token. What is not known is spelt in bytes.
"""

import collections
import re

import tiktoken

from nanococonut.config import UserError

FUNCTION_WORDS = "True or false:|Every|every|Each|each|Is|is|are|not|an|a|or"
# Differs from the paper: it uses GPT-2's tokens, as --tokenizer=gpt2 does; from scratch, one token a step is easier.
PATTERN = (
    r"([a-z]+)\.\n(?:Every|Each) \1 is an? |"  # a step's object, which is the next one's subject
    r" ?(?:(?:Every|Each) [a-z]+|[A-Z][a-z]+|### [A-Z][a-z]+) is an? | Is [A-Z][a-z]+ an? |"  # subject
    r"[a-z]+\.|\n(?=### )|"  # object, and what stands before an answer
    rf"(?! ?(?:{FUNCTION_WORDS})\b) ?[A-Za-z]+|(?:[ .?#\n]|\b(?:{FUNCTION_WORDS})\b)+|[0-9]|[\s\S]"  # word, glue, rest
)
SPECIAL = ("bot", "eot", "pause", "eos")  # begin and end of thought, Table 1's pause, end of sequence


def pieces(text: str) -> list[str]:
    """The pieces that the words encoding cuts a text into."""
    return [match.group() for match in re.finditer(PATTERN, text)]


def fit(texts, max_pieces: int = 8000) -> list[str]:
    """The most frequent pieces of some texts, as the vocabulary of `words`; those of one byte are in it anyway."""
    counts = collections.Counter(piece for text in texts for piece in pieces(text))
    return sorted((p for p in counts if len(p.encode()) > 1), key=lambda p: (-counts[p], p))[:max_pieces]


def alike(vocabulary: list[str]) -> list[list[int]]:
    """The ids of the pieces that say the same name, for each name that several pieces say.

    >>> alike(["lempus.", " or ", " Every lempus is a ", "Tom is a "])
    [[256, 258]]
    """
    said = collections.defaultdict(list)
    for i, piece in enumerate(vocabulary, start=256):
        names = set(re.findall("[A-Za-z]+", piece)) - set(re.findall("[A-Za-z]+", FUNCTION_WORDS))
        if len(names) == 1:
            said[names.pop()].append(i)
    return [ids for ids in said.values() if len(ids) > 1]


def words(vocabulary: list[str]) -> tiktoken.Encoding:
    """The closed encoding of some pieces: ids 0..255 are bytes, then the pieces, then <bot> <eot> <pause> <eos>."""
    ranks = {bytes([i]): i for i in range(256)} | {piece.encode(): 256 + i for i, piece in enumerate(vocabulary)}
    if len(ranks) != 256 + len(vocabulary):
        raise UserError("the vocabulary lists a piece twice or one that is a single byte")
    special = {f"<{name}>": len(ranks) + i for i, name in enumerate(SPECIAL)}
    return tiktoken.Encoding("words", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)


def gpt2() -> tiktoken.Encoding:
    """GPT-2's encoding with <bot>, <eot> and <pause> behind it; its <|endoftext|> is <eos>. Downloads on first use."""
    try:
        base = tiktoken.get_encoding("gpt2")
    except (OSError, ValueError, AssertionError) as error:  # not there, or by its checksum another file
        hint = "go online once, bring what tiktoken keeps then in TIKTOKEN_CACHE_DIR, or use words"
        raise UserError(f"GPT-2's vocabulary cannot be fetched ({type(error).__name__}): {hint}") from None
    special = {f"<{name}>": base.n_vocab + i for i, name in enumerate(SPECIAL[:-1])} | {"<eos>": base.eot_token}
    ranks = base._mergeable_ranks
    return tiktoken.Encoding("gpt2", pat_str=base._pat_str, mergeable_ranks=ranks, special_tokens=special)


def load(name: str, vocabulary: list[str]) -> tiktoken.Encoding:
    """The encoding a dataset or a checkpoint was made with."""
    return words(vocabulary) if name == "words" else gpt2()


def special_ids(encoding: tiktoken.Encoding) -> dict[str, int]:
    """{"bot": id, "eot": id, "pause": id, "eos": id}."""
    return {name: encoding.encode_single_token(f"<{name}>") for name in SPECIAL}
