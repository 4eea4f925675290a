"""Converts text to token ids and back with tiktoken: a vocabulary fitted to the data, or GPT-2's.

The `words` encoding splits a text into phrases, words and glue. A piece in its vocabulary is one
token, and any other piece becomes bytes:

>>> pieces("Tom is a lempus. Is Tom a rempus or impus?\\n")
['Tom is a ', 'lempus.', ' Is Tom a ', 'rempus', ' or ', 'impus', '?\\n']
>>> pieces("Tom is a lempus.\\nEvery lempus is a rempus.\\n### Tom is a rempus.")
['Tom is a ', 'lempus.\\nEvery lempus is a ', 'rempus.\\n### ', 'Tom is a ', 'rempus.']

A fact is two tokens, so an induction head can look an edge up: it finds the subject and reads what
follows. A step of ProsQA is one token, its object with what begins next, so a thought can resemble
a token.
"""

import collections
import hashlib
import re

import tiktoken

from nanococonut import arithmetic, prosqa
from nanococonut.cli import UserError
from nanococonut.prosqa import NAME

FUNCTION_WORDS = "True or false:|Every|every|Each|each|Is|is|are|not|an|a|or"
FUNCTION_WORD = rf"\b(?:{FUNCTION_WORDS})(?![\w-])"  # and not the beginning of a name
# Differs from the paper: it uses GPT-2's tokens, as --tokenizer=gpt2 does; from scratch, one token
# a step is easier.
PATTERN = "|".join(
    [
        # A step's object, which is the next step's subject.
        rf"({NAME})\.\n(?:Every|Each) \1 is an? ",
        # The last step's object, and that the answer begins.
        rf"(?:not )?{NAME}\.\n### ",
        # A fact's subject, and that of the question.
        rf" ?(?:(?:Every|Each) )?{NAME} is an? ",
        rf" Is {NAME} an? ",
        # The subjects of ProntoQA's facts about properties, and of its query.
        rf" ?(?:(?:Every|Each) {NAME} is|[A-Z][a-z]+puses are|True or false: {NAME} is) ",
        # How ProntoQA's conclusion begins.
        rf"\n{NAME} is (?!an? )",
        # An object, and the newline before an answer.
        rf"(?:not )?{NAME}\.",
        r"\n(?=### )",
        # A word, glue, and the rest.
        rf"(?! ?{FUNCTION_WORD}) ?{NAME}",
        rf"(?:[ .?#\n]|{FUNCTION_WORD})+",
        r"[0-9]",
        r"[\s\S]",
    ]
)
# Where tiktoken downloads from.
GPT2_FILES = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
# Begin and end of thought, Table 1's pause, end of sequence.
SPECIAL = ("bot", "eot", "pause", "eos")


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


def fit(texts, max_pieces: int = 8000, pattern: str = PATTERN) -> tuple[list[str], int]:
    """The most frequent pieces of some texts: the vocabulary of `words`; and how many are left out.

    Single bytes are always in it. A piece that is not in it is read byte by byte.
    """
    counts = collections.Counter()
    for text in texts:
        counts.update(pieces(text, pattern))
    found = [piece for piece in counts if len(piece.encode()) > 1]
    found.sort(key=lambda piece: (-counts[piece], piece))
    return found[:max_pieces], len(found[max_pieces:])


def alike(vocabulary: list[str]) -> list[list[int]]:
    """The ids of the pieces that contain the same name or number, for each that several contain.

    >>> alike(["lempus.", " or ", " Every lempus is a ", "Tom is a "])
    [[256, 258]]
    >>> alike(["12", "+12=", "12>>\\n", "2", " has 12 more than ", "<<12"])
    [[256, 257, 258, 260, 261]]
    >>> alike(["Ann", "Ann has ", "How many pens do ", "7 pens. ", "<<7"])
    [[256, 257], [258, 259], [259, 260]]
    """
    ids_of = collections.defaultdict(list)
    for i, piece in enumerate(vocabulary, start=256):
        # "Lempuses" and "lempus" are one name.
        names = {word.lower() for word in names_in(piece)} - arithmetic.FUNCTION_WORDS
        names = {name.removesuffix("es") for name in names}
        if len(names) == 1 and "not " not in piece:
            ids_of[names.pop()].append(i)
        # "12", "<<12", "+12=" and "12 more than " are one number.
        numbers = re.findall(r"(?:^| |<<)[-+*/]?([0-9]+)(?!\w)", piece)
        if len(numbers) == 1:
            ids_of[numbers[0]].append(i)
    return [ids for ids in ids_of.values() if len(ids) > 1]


def words(vocabulary: list[str], pattern: str = PATTERN) -> tiktoken.Encoding:
    """The encoding with a fixed vocabulary.

    Ids 0..255 are bytes; then come the pieces, then <bot> <eot> <pause> <eos>.
    """
    ranks = {bytes([i]): i for i in range(256)}
    ranks |= {piece.encode(): i for i, piece in enumerate(vocabulary, start=256)}
    if len(ranks) != 256 + len(vocabulary):
        raise UserError("the vocabulary lists a piece twice or one that is a single byte")
    special = {f"<{name}>": i for i, name in enumerate(SPECIAL, start=len(ranks))}
    return tiktoken.Encoding(
        "words", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
    )


def gpt2() -> tiktoken.Encoding:
    """GPT-2's encoding extended by <bot>, <eot> and <pause>; <eos> is its <|endoftext|>.

    Downloads on first use.
    """
    try:
        base = tiktoken.get_encoding("gpt2")
    except OSError:  # requests' exceptions are OSErrors
        wrong = "GPT-2's vocabulary is not on this machine and cannot be fetched"
        raise UserError(f"{wrong}: {where_to_get_gpt2()}") from None
    except (ValueError, AssertionError):  # tiktoken knows the files' checksums
        wrong = "the download of GPT-2's vocabulary is another file, perhaps a login page"
        raise UserError(f"{wrong}: {where_to_get_gpt2()}") from None
    special = {f"<{name}>": i for i, name in enumerate(SPECIAL[:-1], start=base.n_vocab)}
    special["<eos>"] = base.eot_token
    return tiktoken.Encoding(
        "gpt2",
        pat_str=base._pat_str,
        mergeable_ranks=base._mergeable_ranks,
        special_tokens=special,
    )


def where_to_get_gpt2() -> str:
    """What to do without GPT-2's vocabulary."""
    kept = []
    for name in ("vocab.bpe", "encoder.json"):
        # tiktoken keeps each file under the sha1 of its address.
        digest = hashlib.sha1((GPT2_FILES + name).encode()).hexdigest()
        kept.append(f"{digest} ({name})")
    folder = f"a folder that holds {', '.join(kept)} of {GPT2_FILES}"
    return f"go online, or set TIKTOKEN_CACHE_DIR to {folder}, or use words"


def load(name: str, vocabulary: list[str], pattern: str = PATTERN) -> tiktoken.Encoding:
    """The encoding a dataset or a checkpoint was made with; the pattern is that of `words`."""
    return words(vocabulary, pattern) if name == "words" else gpt2()


def special_ids(encoding: tiktoken.Encoding) -> dict[str, int]:
    """{"bot": id, "eot": id, "pause": id, "eos": id}."""
    return {name: encoding.encode_single_token(f"<{name}>") for name in SPECIAL}


def node_tokens(encoding, name: str) -> list[int]:
    """The tokens with which a chain of ProsQA goes on at a node, or its name's token.

    These are the pieces shown above that hold the name; [] if none of them is one token.
    """
    start = prosqa.subject(name)
    texts = [start] if prosqa.is_person(name) else [f"{name}.\n{start}", f"{name}.\n### "]
    for candidates in (texts, [f"{name}."]):
        encoded = [encoding.encode_ordinary(text) for text in candidates]
        found = [ids[0] for ids in encoded if len(ids) == 1]
        if found:
            return found
    return []
