"""Data sets: scoring answers, tokenizing and augmenting problems, and the files in data/<name>/.

A problem is a row that reading.py reads; graph.py tells what else a row of ProsQA has. As tokens [Hao24]:

    question \\n      each step \\n      ### answer
"""

import functools
import hashlib
import http.client
import json
import os
import random
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nanococonut import graph, ontology, tokenizer
from nanococonut.config import UserError
from nanococonut.curriculum import Example, texts_of
from nanococonut.reading import read_json, read_rows

TASKS = ("prosqa", "prontoqa", "gsm8k")
SPLITS = ("train", "valid", "test")
OPTIONS = {"prontoqa-fair": " --fair=true"} | {f"{task}-gpt2": " --tokenizer=gpt2" for task in TASKS}
OPTIONS["prosqa-small"] = " --fair=true --n_nodes=16 --min_hops=3 --max_hops=5"
MAX_DOWNLOAD = 2 * 10**9  # bytes; a download is held in memory while it is checked
ALLOWED = re.compile(r"https://|http://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?(/|$)")  # http: only this machine


def final_answer(text: str) -> str:
    """The text after the last "#", without commas [ref run.py].

    >>> final_answer("Tom is a lempus.\\n### Tom is a rempus."), final_answer("<<2*3=6>>\\n### 1,200")
    ('Tom is a rempus.', '1200')
    """
    return text.rpartition("#")[2].replace(",", "").strip()


def is_right(text: str, row: dict) -> bool:
    """Whether a text ends in the row's answer, word for word: the criterion of the paper's accuracy."""
    return final_answer(text) == final_answer(row["answer"])


def write_atomically(path: Path, write) -> None:
    """Calls write(file) on a temporary file, flushes it to disk and renames it to path. Raises UserError."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # other processes have their own
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save makes a RuntimeError of the OSError of a full disk
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise UserError(f"cannot write {path}: {cause.strerror}") from None
    finally:
        if temporary.exists():
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes a text as UTF-8. A lone surrogate, as in a file name that is not UTF-8, becomes "?"."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8", errors="replace")))


def sha256(path: Path) -> str:
    """The checksum of a file; of an .npz that of its arrays, because Python's versions pack them differently.

    A missing or damaged file raises what numpy does.
    """
    if path.suffix != ".npz":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    digest = hashlib.sha256()
    with open(path, "rb") as packed, np.load(packed, allow_pickle=False) as file:
        for name in sorted(file):
            array = file[name]
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def fetch(url: str, path: Path, option: str, digest: str | None = None) -> Path:
    """Downloads a URL to path, checks its size and digest, and returns path. Raises UserError that names the option."""
    try:
        if not ALLOWED.match(url):
            raise ValueError("only https addresses are fetched")
        print(f"fetching {url}")
        with urllib.request.urlopen(url, timeout=30) as reply:
            if not ALLOWED.match(reply.url):
                raise ValueError(f"it redirects to {reply.url}; only https addresses are fetched")
            total, content = int(reply.headers["Content-Length"] or 0), reply.read(MAX_DOWNLOAD + 1)
        if not total <= len(content) <= MAX_DOWNLOAD:
            raise ValueError(f"received {len(content)} bytes of {total}; the limit is {MAX_DOWNLOAD}")
        if digest not in (None, hashlib.sha256(content).hexdigest()):
            raise ValueError(f"invalid hash value, expected {digest}")
    except (OSError, http.client.HTTPException, ValueError) as error:
        what = f"cannot fetch {url} ({error}); download it and give its path as --{option}"
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise (FileNotFoundError if getattr(error, "code", None) == 404 else UserError)(what) from None
    write_atomically(path, lambda file: file.write(content))
    return path


def folder_of(parent: str, name: str) -> Path:
    """The path parent/name. Raises UserError for a name that could lead out of parent."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(f"{name!r} is not a name for {parent}/: letters, digits, '.', '_' and '-', like prosqa-small")
    return Path(parent) / name


def tokenized(encoding, rows: list[dict]) -> dict[str, np.ndarray]:
    """The concatenated token ids of rows, and the positions where each text and each row begins."""
    ids = encoding.encode_ordinary_batch([text for row in rows for text in texts_of(row)])
    return {
        "tokens": np.concatenate([np.array(text, dtype=np.uint16) for text in ids]),
        "texts": np.cumsum([0, *map(len, ids)], dtype=np.int64),  # first token of each text
        "rows": np.cumsum([0, *(len(row["steps"]) + 2 for row in rows)], dtype=np.int64),  # first text of each row
    }


def texts_to_know(rows: list[dict]) -> list[str]:
    """The texts of training problems, and each name in each place where augmentation can put it."""
    texts = [text for row in rows for text in texts_of(row)]
    persons, concepts = graph.names_of(rows)
    # Not all pairs of names, which would be too many texts.
    pairs = [(person, concepts[0]) for person in persons] + [(persons[0], concept) for concept in concepts]
    for person, concept in pairs:
        one, every = graph.subject(person), graph.subject(concept)
        texts.append(f"{one}{concept}. {one}{concept}. {every}{concept}. Is {person} a {concept} or {concept}?\n")
        texts.append(f"{every}{concept}.\n{every}{concept}.\n### {one}{concept}.")
    for found in filter(None, map(ontology.read, rows)):  # a fact may come to stand first, or later
        texts += [gap + fact for fact in found.facts.values() for gap in ("", " ")]
    return texts


def save(name: str, splits: dict[str, list[dict]], meta: dict) -> tuple[Path, dict]:
    """Writes data/<name>/ (JSON, token ids, and meta.json last) and returns the folder and the completed meta."""
    folder = folder_of("data", name)
    if meta["tokenizer"] == "words" and not meta.get("vocabulary"):
        meta["vocabulary"], n_left_out = tokenizer.fit(texts_to_know(splits["train"]))
        meta["pattern"] = tokenizer.PATTERN
        if n_left_out:
            about = f"the {len(meta['vocabulary'])} most frequent pieces of text are tokens"
            print(f"{about}; {n_left_out} others are read byte by byte")
    meta = {"vocabulary": [], "pattern": tokenizer.PATTERN} | meta
    encoding = tokenizer.load(meta["tokenizer"], meta["vocabulary"], meta["pattern"])
    longest, digests = {}, {}  # longest lengths in tokens; checksum of each file
    for split, rows in splits.items():
        lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        write_text(folder / f"{split}.json", f"[\n{lines}\n]\n")
        arrays = tokenized(encoding, rows)
        write_atomically(folder / f"{split}.npz", lambda file, arrays=arrays: np.savez(file, **arrays))
        digests |= {file: sha256(folder / file) for file in (f"{split}.json", f"{split}.npz")}
        lengths, first = np.diff(arrays["texts"]), arrays["rows"]  # texts of a row: question, whole rest, ..., answer
        question, rest, answer = lengths[first[:-1]], lengths[first[:-1] + 1], lengths[first[1:] - 1]
        for what, found in (("question", question), ("chain", rest - answer), ("rest", rest)):
            longest[what] = max(longest.get(what, 0), int(found.max()))
    counts = {split: len(rows) for split, rows in splits.items()}
    meta |= dict(counts=counts, longest=longest, sha256=digests)
    write_text(folder / "meta.json", json.dumps(meta, indent=1, ensure_ascii=False) + "\n")
    return folder, meta


def node_tokens(encoding, name: str) -> list[int]:
    """The tokens with which a chain of ProsQA goes on at a node (tokenizer.py), or its name's token; [] without any."""
    start = graph.subject(name)
    texts = [start] if graph.is_person(name) else [f"{name}.\n{start}", f"{name}.\n### "]
    found = [ids[0] for ids in map(encoding.encode_ordinary, texts) if len(ids) == 1]
    named = encoding.encode_ordinary(f"{name}.")
    return found or (named if len(named) == 1 else [])


class Group(NamedTuple):
    """One or more questions about the same facts."""

    context: list[int]  # the shared facts, which are read once; empty: each question has its own facts
    examples: list[Example]


class Split:
    """The examples of one file as token ids: as written, or augmented where the words tell a graph."""

    def __init__(
        self, encoding, rows: list[dict], arrays: dict[str, np.ndarray] | None = None, path: Path | None = None
    ):
        self.encoding, self.rows, self.path = encoding, rows, path  # path: the file of the rows, if there is one
        arrays = arrays or tokenized(encoding, rows)
        self.tokens, self.texts, self.begins = arrays["tokens"], arrays["texts"].tolist(), arrays["rows"].tolist()
        self.lengths = np.diff(arrays["texts"])[arrays["rows"][:-1]].tolist()  # of the questions
        self.ontologies = functools.cache(lambda i: ontology.read(rows[i]))
        self.askers = functools.cache(lambda i: graph.askers(rows[i]))
        self.pool = graph.names_of(rows)  # the names that augmented problems may use

    def __len__(self) -> int:
        return len(self.rows)

    def example(self, i: int) -> Example:
        ends = self.texts[self.begins[i] : self.begins[i + 1] + 1]
        question, *rests = (self.tokens[a:b].tolist() for a, b in zip(ends, ends[1:], strict=False))
        return Example(question, rests)

    @functools.cached_property
    def told(self) -> list[bool]:
        """For each row, whether its words tell a graph: such rows can be augmented."""
        return [graph.is_prosqa(row) or self.ontologies(i) is not None for i, row in enumerate(self.rows)]

    def retold(self, i: int, rng: random.Random, questions=1, reask=0.0, least=3, keep=1.0) -> Group:
        """Problem i in a new order and with new names; reordered() does it for ProntoQA. For the options see draw()."""
        if self.ontologies(i):
            return self.reordered(i, rng, keep)
        row, names, askers = self.rows[i], self.rows[i]["idx_to_symbol"], self.askers(i)
        again = [reask > 0 and rng.random() < reask for _ in range(questions)]
        rows = [graph.ask(row, askers, rng, least) if new else graph.rechain(row, askers, rng) for new in again]
        # Differs from the paper: its texts are fixed, but its weights are pretrained. From scratch, 17,886 are few.
        persons, concepts = self.pool
        n_persons = len(graph.persons_of(row))
        persons, concepts = iter(rng.sample(persons, n_persons)), iter(rng.sample(concepts, len(names) - n_persons))
        names = [next(persons if graph.is_person(name) else concepts) for name in names]
        always = set().union(*(graph.both_chains(asked, askers, rng) for asked in rows if keep < 1))
        edges = map(tuple, rng.sample(row["edges"], len(row["edges"])))
        edges = [edge for edge in edges if keep == 1 or edge in always or rng.random() < keep]
        return self.together([graph.tell(asked, rng, names, edges) for asked in rows])

    def reordered(self, i: int, rng: random.Random, keep: float) -> Group:
        """Problem i of ProntoQA with other names and another order of facts, the entity's last. For keep see draw()."""
        row, encode = ontology.renamed(self.rows[i], rng), self.encoding.encode_ordinary
        found = ontology.read(row)
        facts = found.facts.values()  # each is two tokens, first or later, unless a small vocabulary lacks a form
        if len(encode("\t".join(facts)) + encode(" " + " ".join(facts))) != 5 * len(facts) - 1:  # a tab between two
            row, found = self.rows[i], self.ontologies(i)
        edges = rng.sample(list(found.facts), len(found.facts))
        edges = [edge for edge in edges if keep == 1 or edge in found.needed or rng.random() < keep]
        edges.sort(key=lambda edge: edge[0] == 0)  # otherwise the order stays: the sort is stable
        _, asks, query = row["question"].partition(ontology.ASKS)
        told = {"question": " ".join(found.facts[edge] for edge in edges) + asks + query}
        return self.together([row | told])

    def together(self, told: list[dict]) -> Group:
        """One group of questions about the same facts. A single question keeps the facts in its text."""
        encode = self.encoding.encode_ordinary
        context, examples = [], []
        for row in told:
            question, *rests = texts_of(row)
            if len(told) > 1:
                facts, mark, asked = question.rpartition(" Is ")
                context, question = encode(facts), mark + asked
            examples.append(Example(encode(question), list(map(encode, rests))))
        return Group(context, examples)

    def draw(self, n: int, rng: random.Random, augment: bool, questions: int = 1, **how) -> list[Group]:
        """n questions about problems drawn with replacement, in groups of `questions` that share their facts.

        If augmented, a question is replaced by one of `least` steps or more about its graph with probability `reask`,
        and a fact off the chains is kept with probability `keep`.
        """
        n_groups = n // questions if augment else n
        # Takes one eighth of 8 n sorted by length: neighbours need little padding, and all problems are equally likely.
        drawn = sorted(rng.choices(range(len(self)), k=8 * n_groups), key=self.lengths.__getitem__)
        start = n_groups * rng.randrange(8)
        return [
            self.retold(i, rng, questions, **how) if augment and self.told[i] else Group([], [self.example(i)])
            for i in drawn[start : start + n_groups]
        ]


def tokens_of(about: dict) -> dict:
    """What decides how a text is split into tokens, out of a meta.json or of what a checkpoint holds of its data."""
    keys = ["tokenizer"] if about["tokenizer"] == "gpt2" else ["tokenizer", "vocabulary", "pattern"]
    return {key: about[key] for key in keys}


def same_problems(sha256: dict[str, str], other: dict[str, str]) -> bool:
    """Whether two records of checksums are of the same problems, in whatever tokens."""
    files = [f"{split}.json" for split in SPLITS]
    return all(sha256.get(file) == other.get(file) for file in files)


def checksums(folder: Path) -> dict[str, str]:
    """The checksums of a data set's files; {} without them, or if they cannot be read."""
    try:
        return dict(read_json(folder / "meta.json")["sha256"])
    except (UserError, KeyError, TypeError, ValueError):
        return {}


def datasets_with(sha256: dict[str, str]) -> list[str]:
    """The names of the data sets under data/ that have the problems with these checksums."""
    return [path.name for path in sorted(Path("data").glob("*")) if same_problems(checksums(path), sha256)]


class Dataset:
    """The data set data/<name>/: its meta, encoding and special ids. Its splits are read on demand."""

    def __init__(self, name: str):
        self.folder = folder_of("data", name)
        if not (self.folder / "meta.json").exists():
            task = next((task for task in TASKS if name.startswith(task)), "prosqa")
            task += f" --name={name}" if name != task else ""
            there = ", ".join(path.parent.name for path in sorted(Path("data").glob("*/meta.json")))
            there = f"there is: {there}; or run" if there else "run"
            raise UserError(f"{self.folder} not found; {there}: python prepare.py {task}{OPTIONS.get(name, '')}")
        self.meta = read_json(self.folder / "meta.json")
        try:
            self.encoding = tokenizer.load(*(self.meta[key] for key in ("tokenizer", "vocabulary", "pattern")))
            assert all(self.meta["longest"][part] in range(10**6) for part in ("question", "chain", "rest"))
            assert all(f"{split}.{kind}" in self.meta["sha256"] for split in SPLITS for kind in ("json", "npz"))
        except (KeyError, TypeError, ValueError, AttributeError, AssertionError):
            raise UserError(f"{self.folder}/meta.json is damaged or outdated; prepare the data again") from None
        self.special = tokenizer.special_ids(self.encoding)

    def demand_unchanged(self, run: str, trained: dict) -> None:
        """Raises UserError if the problems are not those that a run was trained on, by what its checkpoint holds."""
        if not same_problems(trained["sha256"], self.meta["sha256"]):
            raise UserError(f"{self.folder} is not the data {run} was trained on; prepare it again, or train a new run")

    def has_tokens_of(self, trained: dict) -> bool:
        """Whether the token files are in the tokens that a checkpoint was trained with."""
        return tokens_of(self.meta) == tokens_of(trained)

    def split(self, name: str) -> Split:
        """One of train, valid, test. Raises UserError if a file has changed since it was prepared."""
        for file in (f"{name}.json", f"{name}.npz"):
            try:
                is_intact = sha256(self.folder / file) == self.meta["sha256"][file]
            except Exception:  # of a damaged .npz, numpy and zipfile raise many types
                is_intact = False
            if not is_intact:
                raise UserError(f"{self.folder}/{file} is not as it was prepared (checksum); prepare the data again")
        rows = read_rows(self.folder / f"{name}.json")
        with np.load(self.folder / f"{name}.npz", allow_pickle=False) as file:
            return Split(self.encoding, rows, dict(file), self.folder / f"{name}.json")
