"""Data sets: tokenizing and augmenting problems, and the files in data/<name>/.

A problem is a row that files.py reads; prosqa.py tells what else a row of ProsQA has. As tokens
[Hao24]:

    question \\n      each step \\n      ### answer
"""

import functools
import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nanococonut import prontoqa, prosqa, tokenizer
from nanococonut.cli import UserError
from nanococonut.curriculum import Example, texts_of
from nanococonut.files import folder_of, read_json, read_rows, sha256, write_atomically, write_text

TASKS = ("prosqa", "prontoqa", "gsm8k", "arithmetic")
SPLITS = ("train", "valid", "test")
# What to type behind `prepare.py TASK --name=NAME` for a data set whose name says what it is.
OPTIONS = {
    "prosqa-small": " --fair=true --n_nodes=16 --min_hops=3 --max_hops=5",
    "prontoqa-fair": " --fair=true",
    "prosqa-gpt2": " --tokenizer=gpt2",
    "prontoqa-gpt2": " --tokenizer=gpt2",
    "gsm8k-gpt2": " --tokenizer=gpt2",
    "arithmetic-gpt2": " --tokenizer=gpt2",
}
PARTS = ("question", "chain", "rest")  # whose longest lengths are in meta.json


# Preparing


def save(
    name: str, splits: dict[str, list[dict]], meta: dict, known: Sequence[str] = ()
) -> tuple[Path, dict]:
    """Writes data/<name>/ and returns the folder and the completed meta.

    The files are the problems as JSON and as token ids for each split, and meta.json, which is
    written last.

    meta   may have a pattern, with which a new vocabulary is fitted
    known  texts that a new vocabulary covers besides the training problems
    """
    folder = folder_of("data", name)
    if meta["tokenizer"] == "words" and not meta.get("vocabulary"):
        texts = [*texts_to_know(splits["train"]), *known]
        meta |= fitted_tokens(texts, meta.get("pattern", tokenizer.PATTERN))
    meta = {"vocabulary": [], "pattern": tokenizer.PATTERN} | meta
    encoding = tokenizer.load(meta["tokenizer"], meta["vocabulary"], meta["pattern"])
    longest = dict.fromkeys(PARTS, 0)
    digests = {}
    for split, rows in splits.items():
        arrays = tokenized(encoding, rows)
        digests |= write_split(folder, split, rows, arrays)
        for part, length in longest_lengths(arrays).items():
            longest[part] = max(longest[part], length)
    meta["counts"] = {split: len(rows) for split, rows in splits.items()}
    meta["longest"] = longest
    meta["sha256"] = digests
    write_text(folder / "meta.json", json.dumps(meta, indent=1, ensure_ascii=False) + "\n")
    return folder, meta


def fitted_tokens(texts: list[str], pattern: str) -> dict:
    """The vocabulary of `words` for some texts, and its pattern, for meta.json."""
    vocabulary, n_left_out = tokenizer.fit(texts, pattern=pattern)
    if n_left_out:
        print(
            f"the {len(vocabulary)} most frequent pieces of text are tokens; "
            f"{n_left_out} others are read byte by byte"
        )
    return {"vocabulary": vocabulary, "pattern": pattern}


def texts_to_know(rows: list[dict]) -> list[str]:
    """The texts of training problems, and each name in each place where augmentation can put it."""
    texts = [*all_texts(rows), *texts_with_names(*prosqa.names_of(rows))]
    for row in rows:
        ontology = prontoqa.read(row)
        if ontology:
            for fact in ontology.facts.values():
                texts += [fact, f" {fact}"]  # it may come to stand first, or later
    return texts


def texts_with_names(persons: list[str], concepts: list[str]) -> list[str]:
    """Each name in each place of a problem of ProsQA: first or later, as subject and as object."""
    # Not all pairs of names, which would be too many texts.
    pairs = [(person, concepts[0]) for person in persons]
    pairs += [(persons[0], concept) for concept in concepts]
    texts = []
    for person, concept in pairs:
        of_person = f"{prosqa.subject(person)}{concept}."
        of_concept = f"{prosqa.subject(concept)}{concept}."
        asked = f"Is {person} a {concept} or {concept}?"
        texts.append(f"{of_person} {of_person} {of_concept} {asked}\n")
        texts.append(f"{of_concept}\n{of_concept}\n### {of_person}")
    return texts


def all_texts(rows: list[dict]) -> list[str]:
    """The texts_of() rows, one after another."""
    return list(itertools.chain.from_iterable(texts_of(row) for row in rows))


def tokenized(encoding, rows: list[dict]) -> dict[str, np.ndarray]:
    """The concatenated token ids of rows, and the positions where each text and each row begins."""
    ids = encoding.encode_ordinary_batch(all_texts(rows))
    n_texts = [len(row["steps"]) + 2 for row in rows]  # a question, and rests of each length
    return {
        "tokens": np.concatenate([np.array(text, dtype=np.uint16) for text in ids]),
        # The first token of each text, and the first text of each row; both with the end.
        "texts": np.cumsum([0, *map(len, ids)], dtype=np.int64),
        "rows": np.cumsum([0, *n_texts], dtype=np.int64),
    }


def write_split(
    folder: Path, split: str, rows: list[dict], arrays: dict[str, np.ndarray]
) -> dict[str, str]:
    """Writes the two files of a split and returns the checksum of each."""
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    write_text(folder / f"{split}.json", f"[\n{lines}\n]\n")
    write_atomically(folder / f"{split}.npz", lambda file: np.savez(file, **arrays))
    return {name: sha256(folder / name) for name in (f"{split}.json", f"{split}.npz")}


def longest_lengths(arrays: dict[str, np.ndarray]) -> dict[str, int]:
    """The tokens of the longest question, chain, and chain with answer."""
    lengths = np.diff(arrays["texts"])
    # The texts of a row are the question, the whole rest, ..., and the answer alone.
    first, after_last = arrays["rows"][:-1], arrays["rows"][1:]
    question = lengths[first]
    rest = lengths[first + 1]
    answer = lengths[after_last - 1]
    return {
        "question": int(question.max()),
        "chain": int((rest - answer).max()),
        "rest": int(rest.max()),
    }


# Reading and augmenting


class Group(NamedTuple):
    """One or more questions about the same facts."""

    # The shared facts, which are read once; empty: each question has its own facts.
    context: list[int]
    examples: list[Example]


class Split:
    """The examples of one file as token ids, as written, or augmented if the words tell a graph."""

    def __init__(
        self,
        encoding,
        rows: list[dict],
        arrays: dict[str, np.ndarray] | None = None,
        path: Path | None = None,
    ):
        self.encoding = encoding
        self.rows = rows
        self.path = path  # the file of the rows, if there is one
        arrays = arrays or tokenized(encoding, rows)
        self.tokens = arrays["tokens"]
        self.first_tokens = arrays["texts"].tolist()  # of each text
        self.first_texts = arrays["rows"].tolist()  # of each row
        self.lengths = np.diff(arrays["texts"])[arrays["rows"][:-1]].tolist()  # of the questions
        self.ontologies = functools.cache(lambda i: prontoqa.read(rows[i]))
        self.askers = functools.cache(lambda i: prosqa.askers(rows[i]))
        self.pool = prosqa.names_of(rows)  # the names that augmented problems may use

    def __len__(self) -> int:
        return len(self.rows)

    def example(self, i: int) -> Example:
        """Problem i as written."""
        begins = self.first_tokens[self.first_texts[i] : self.first_texts[i + 1] + 1]
        question, *rests = [self.tokens[a:b].tolist() for a, b in itertools.pairwise(begins)]
        return Example(question, rests)

    @functools.cached_property
    def told(self) -> list[bool]:
        """For each row, whether its words tell a graph: such rows can be augmented."""
        return [
            prosqa.is_prosqa(row) or self.ontologies(i) is not None
            for i, row in enumerate(self.rows)
        ]

    @functools.cached_property
    def fair(self) -> bool:
        """Whether ProsQA's problems have no shortcuts, as those of prepare.py's --fair=true."""
        return all(prosqa.is_fair(row) for row in self.rows if prosqa.is_prosqa(row))

    def draw(
        self, n: int, rng: random.Random, augment: bool, questions: int = 1, **options
    ) -> list[Group]:
        """n questions about random problems, in groups of `questions` that share their facts.

        Problems are drawn with replacement. If augmented, a question is replaced by one of `least`
        steps or more about its graph with probability `reask`, and a fact off the chains is kept
        with probability `keep`.
        """
        n_groups = n // questions if augment else n
        # Takes one eighth of 8 n sorted by length: neighbours need little padding, and all problems
        # are equally likely.
        drawn = rng.choices(range(len(self)), k=8 * n_groups)
        drawn.sort(key=self.lengths.__getitem__)
        start = n_groups * rng.randrange(8)
        groups = []
        for i in drawn[start : start + n_groups]:
            if augment and self.told[i]:
                groups.append(self.retold(i, rng, questions, **options))
            else:
                groups.append(Group([], [self.example(i)]))
        return groups

    def retold(
        self, i: int, rng: random.Random, questions=1, reask=0.0, least=3, keep=1.0
    ) -> Group:
        """Problem i in a new order and with new names. For the options see draw()."""
        row = self.rows[i]
        if not self.ontologies(i):
            rows = prosqa.augment(
                row, self.askers(i), self.pool, rng, questions, reask, least, keep
            )
            return self.group(rows)
        renamed = prontoqa.renamed(row, rng)
        if not self.has_its_facts(prontoqa.read(renamed)):
            renamed = row
        return self.group([prontoqa.reordered(renamed, rng, keep)])

    def has_its_facts(self, found: prontoqa.Ontology) -> bool:
        """Whether each fact of ProntoQA is two tokens, first or later.

        A small vocabulary may lack a form.
        """
        facts = found.facts.values()
        # Each fact comes to stand first after a tab, and later after a blank. Both tell n facts in
        # 2 n tokens, and the first has n - 1 tabs.
        n_tokens_first = len(self.encoding.encode_ordinary("\t".join(facts)))
        n_tokens_later = len(self.encoding.encode_ordinary(" " + " ".join(facts)))
        return n_tokens_first + n_tokens_later == 5 * len(facts) - 1

    def group(self, rows: list[dict]) -> Group:
        """The rows as one group, all about the same facts. A single row keeps them in its text."""
        encode = self.encoding.encode_ordinary
        context = []
        examples = []
        for row in rows:
            question, *rests = texts_of(row)
            if len(rows) > 1:
                facts, mark, asked = question.rpartition(" Is ")
                context = encode(facts)
                question = mark + asked
            examples.append(Example(encode(question), [encode(rest) for rest in rests]))
        return Group(context, examples)


class Dataset:
    """The data set data/<name>/: its meta, encoding and special ids. Splits are read on demand."""

    def __init__(self, name: str):
        self.folder = folder_of("data", name)
        if not (self.folder / "meta.json").exists():
            raise UserError(f"{self.folder} not found; {how_to_get(name)}")
        self.meta = read_json(self.folder / "meta.json")
        try:
            tokens = [self.meta[key] for key in ("tokenizer", "vocabulary", "pattern")]
            self.encoding = tokenizer.load(*tokens)
            is_usable = is_complete(self.meta)
        except (KeyError, TypeError, ValueError, AttributeError):
            is_usable = False
        if not is_usable:
            advice = "is damaged or outdated; prepare the data again"
            raise UserError(f"{self.folder}/meta.json {advice}")
        self.special = tokenizer.special_ids(self.encoding)

    def demand_unchanged(self, run: str, trained: dict) -> None:
        """Raises UserError if the problems are not those that a run was trained on.

        trained is what its checkpoint holds of its data.
        """
        if not same_problems(trained["sha256"], self.meta["sha256"]):
            advice = "prepare it again, or train a new run"
            raise UserError(f"{self.folder} is not the data {run} was trained on; {advice}")

    def has_tokens_of(self, trained: dict) -> bool:
        """Whether the token files are in the tokens that a checkpoint was trained with."""
        return tokens_of(self.meta) == tokens_of(trained)

    def split(self, name: str) -> Split:
        """One of train, valid, test. Raises UserError if a file is not as it was prepared."""
        for file in (f"{name}.json", f"{name}.npz"):
            try:
                is_intact = sha256(self.folder / file) == self.meta["sha256"][file]
            except Exception:  # of a damaged .npz, numpy and zipfile raise many types
                is_intact = False
            if not is_intact:
                wrong = "is not as it was prepared (checksum); prepare the data again"
                raise UserError(f"{self.folder}/{file} {wrong}")
        path = self.folder / f"{name}.json"
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as file:
            return Split(self.encoding, read_rows(path), dict(file), path)


def how_to_get(name: str) -> str:
    """Which data sets are under data/, and the command that prepares one of this name."""
    task = next((task for task in TASKS if name.startswith(task)), "prosqa")
    command = f"python prepare.py {task}"
    if name != task:
        command += f" --name={name}"
    command += OPTIONS.get(name, "")
    there = [path.parent.name for path in sorted(Path("data").glob("*/meta.json"))]
    return f"there is: {', '.join(there)}; or run: {command}" if there else f"run: {command}"


def is_complete(meta: dict) -> bool:
    """Whether a meta.json has the lengths and the checksums that save() writes.

    What has another form may raise KeyError, TypeError or AttributeError.
    """
    lengths = [meta["longest"][part] for part in PARTS]
    names = [f"{split}.{kind}" for split in SPLITS for kind in ("json", "npz")]
    are_numbers = all(length in range(10**6) for length in lengths)
    return are_numbers and all(name in meta["sha256"] for name in names)


# What a run remembers of its data


def tokens_of(meta: dict) -> dict:
    """What decides how a text is split into tokens, out of the meta of a data set."""
    keys = ["tokenizer"] if meta["tokenizer"] == "gpt2" else ["tokenizer", "vocabulary", "pattern"]
    return {key: meta[key] for key in keys}


def same_problems(sha256: dict[str, str], other: dict[str, str]) -> bool:
    """Whether two records of checksums are of the same problems, in whatever tokens."""
    names = [f"{split}.json" for split in SPLITS]
    return all(sha256.get(name) == other.get(name) for name in names)


def checksums(folder: Path) -> dict[str, str]:
    """The checksums of a data set's files; {} without them, or if they cannot be read."""
    try:
        return dict(read_json(folder / "meta.json")["sha256"])
    except (UserError, KeyError, TypeError, ValueError):
        return {}


def datasets_with(sha256: dict[str, str]) -> list[str]:
    """The names of the data sets under data/ that have the problems with these checksums."""
    return [
        path.name
        for path in sorted(Path("data").glob("*"))
        if same_problems(checksums(path), sha256)
    ]
