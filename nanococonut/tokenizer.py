"""Converts text to token ids and back with tiktoken: a word-level vocabulary fitted to the data, or GPT-2's own.

The `words` encoding splits a text into phrases, words and glue. A piece in its vocabulary is one token:

>>> pieces("Is Tom a rempus or impus?\\nTom is a lempus.\\nEvery lempus is a rempus.")
['Is ', 'Tom', ' a ', 'rempus', ' or ', 'impus', '?\\n', 'Tom is a ', 'lempus.\\nEvery lempus is a ', 'rempus.']
>>> pieces("Every lempus is a rempus.\\n### Tom is a rempus.")
['Every lempus is a ', 'rempus.\\n### ', 'Tom is a ', 'rempus.']

A fact is two tokens, so an induction head can look an edge up: it finds the subject and reads what follows. A step of
ProsQA is one token, its object with what begins next, so a thought can resemble a token. Unknown pieces become bytes.
"""

import collections
import hashlib
import re

import tiktoken

from nanococonut.config import UserError
from nanococonut.graph import NAME

FUNCTION_WORDS = "True or false:|Every|every|Each|each|Is|is|are|not|an|a|or"
FUNCTION_WORD = rf"\b(?:{FUNCTION_WORDS})(?![\w-])"  # and not the beginning of a name
# Differs from the paper: it uses GPT-2's tokens, as --tokenizer=gpt2 does; from scratch, one token a step is easier.
PATTERN = (
    rf"({NAME})\.\n(?:Every|Each) \1 is an? |"  # a step's object, which is the next step's subject
    rf"(?:not )?{NAME}\.\n### |"  # the last step's object, and that the answer begins
    rf" ?(?:(?:Every|Each) )?{NAME} is an? | Is {NAME} an? |"  # subject
    rf" ?(?:(?:Every|Each) {NAME} is|[A-Z][a-z]+puses are|True or false: {NAME} is) |"  # ProntoQA's subjects
    rf"\n{NAME} is (?!an? )|"  # and how its conclusion begins
    rf"(?:not )?{NAME}\.|\n(?=### )|"  # object, and the newline before an answer
    rf"(?! ?{FUNCTION_WORD}) ?{NAME}|(?:[ .?#\n]|{FUNCTION_WORD})+|[0-9]|[\s\S]"  # word, glue, rest
)
GPT2_FILES = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"  # where tiktoken downloads from
SPECIAL = ("bot", "eot", "pause", "eos")  # begin and end of thought, Table 1's pause, end of sequence


def pieces(text: str, pattern: str = PATTERN) -> list[str]:
    """The pieces that the `words` encoding splits a text into."""
    return [match.group() for match in re.finditer(pattern, text)]


def names_in(text: str) -> list[str]:
    """The words of a text that are no function words.

    >>> names_in("Every zumpüs is a c37.")
    ['zumpüs', 'c37']
    """
    function_words = re.findall(NAME, FUNCTION_WORDS)
    return [word for word in re.findall(NAME, text) if word not in function_words]


def fit(texts, max_pieces: int = 8000) -> tuple[list[str], int]:
    """The most frequent pieces of some texts, as the vocabulary of `words`, and how many others there are.

    Single bytes are always in it. A piece that is not in it is read byte by byte.
    """
    counts = collections.Counter(piece for text in texts for piece in pieces(text))
    found = sorted((p for p in counts if len(p.encode()) > 1), key=lambda p: (-counts[p], p))
    return found[:max_pieces], len(found[max_pieces:])


def alike(vocabulary: list[str]) -> list[list[int]]:
    """The ids of the pieces that contain the same name, for each name that occurs in several pieces.

    >>> alike(["lempus.", " or ", " Every lempus is a ", "Tom is a "])
    [[256, 258]]
    """
    said = collections.defaultdict(list)
    for i, piece in enumerate(vocabulary, start=256):
        names = set(names_in(piece))
        names = {name.lower().removesuffix("es") for name in names}  # "Lempuses" and "lempus"
        if len(names) == 1 and "not " not in piece:
            said[names.pop()].append(i)
    return [ids for ids in said.values() if len(ids) > 1]


def words(vocabulary: list[str], pattern: str = PATTERN) -> tiktoken.Encoding:
    """The encoding with a fixed vocabulary: ids 0..255 are bytes, then the pieces, then <bot> <eot> <pause> <eos>."""
    ranks = {bytes([i]): i for i in range(256)} | {piece.encode(): 256 + i for i, piece in enumerate(vocabulary)}
    if len(ranks) != 256 + len(vocabulary):
        raise UserError("the vocabulary lists a piece twice or one that is a single byte")
    special = {f"<{name}>": len(ranks) + i for i, name in enumerate(SPECIAL)}
    return tiktoken.Encoding("words", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


def gpt2() -> tiktoken.Encoding:
    """GPT-2's encoding extended by <bot>, <eot> and <pause>; <eos> is its <|endoftext|>. Downloads on first use."""
    names = ("vocab.bpe", "encoder.json")  # tiktoken keeps each under the sha1 of its address
    kept = ", ".join(f"{hashlib.sha1((GPT2_FILES + name).encode()).hexdigest()} ({name})" for name in names)
    hint = f"go online, or set TIKTOKEN_CACHE_DIR to a folder that holds {kept} of {GPT2_FILES}, or use words"
    try:
        base = tiktoken.get_encoding("gpt2")
    except OSError:  # requests' exceptions are OSErrors
        raise UserError(f"GPT-2's vocabulary is not on this machine and cannot be fetched: {hint}") from None
    except (ValueError, AssertionError):  # tiktoken knows the files' checksums
        raise UserError(f"the download of GPT-2's vocabulary is another file, perhaps a login page: {hint}") from None
    special = {f"<{name}>": base.n_vocab + i for i, name in enumerate(SPECIAL[:-1])} | {"<eos>": base.eot_token}
    ranks = base._mergeable_ranks
    return tiktoken.Encoding("gpt2", pat_str=base._pat_str, mergeable_ranks=ranks, special_tokens=special)


def load(name: str, vocabulary: list[str], pattern: str = PATTERN) -> tiktoken.Encoding:
    """The encoding a dataset or a checkpoint was made with; the pattern is that of `words`."""
    return words(vocabulary, pattern) if name == "words" else gpt2()


def special_ids(encoding: tiktoken.Encoding) -> dict[str, int]:
    """{"bot": id, "eot": id, "pause": id, "eos": id}."""
    return {name: encoding.encode_single_token(f"<{name}>") for name in SPECIAL}
