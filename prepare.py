"""Prepares a data set: generates ProsQA, ProntoQA or arithmetic, or converts GSM8k and other files.

    python prepare.py prosqa                                       as many problems as released
    python prepare.py prontoqa --fair=true --name=prontoqa-fair    without shortcuts
    python prepare.py arithmetic                                   word problems like GSM8k's
    python prepare.py prosqa --source=FILE --name=mine             problems of one's own
    python prepare.py gsm8k                                        fetched

How problems are drawn is told in prosqa.py, prontoqa.py and arithmetic.py, and what a file may hold
in files.py. Writes into data/<name>/:

    train.json, valid.json, test.json    the problems
    train.npz, valid.npz, test.npz       their token ids
    preview.txt                          ten problems, each with its layout at every stage
    meta.json                            the options, the vocabulary, sizes and checksums
"""

import contextlib
import itertools
import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from nanococonut import arithmetic, cli, data, files, prontoqa, prosqa, scoring, tokenizer
from nanococonut.curriculum import layout

# Number of problems in train, valid, test, as released. Those of arithmetic are ours: many, because
# they are not augmented. Of 40,000 a model of the preset's size learns the words by heart.
SIZES = {
    "prosqa": (17886, 300, 500),
    "prontoqa": (9000, 200, 800),
    "arithmetic": (100000, 300, 500),
}
# GSM8k-Aug [Deng23], at the commit the paper's code fetches; train.txt is in Git LFS. No checksums
# are published.
GSM8K = (
    "https://{}/da03/Internalize_CoT_Step_by_Step/e06a32ee5e4cd117171daeb4755d2a97ece62761"
    "/data/gsm8k/{}.txt"
)
HOSTS = {
    "train": "media.githubusercontent.com/media",
    "valid": "raw.githubusercontent.com",
    "test": "raw.githubusercontent.com",
}
SUFFIXES = (".json", ".jsonl", ".txt")  # of files that may hold problems
CHOICES = {"task": data.TASKS, "tokenizer": ("words", "gpt2")}


@dataclass(frozen=True)
class PrepareConfig:
    """python prepare.py TASK [--option=value ...]: prepares a data set in data/<name>/."""

    # data set to prepare
    task: str = "prosqa"
    # folder under data/; default: the task
    name: str = ""
    # read instead of generating: a file or its URL, or a folder or base URL with train, valid, test
    source: str = ""
    # random seed; the same seed gives the same bytes
    seed: int = 0
    # training problems to generate; 0: as many as released (arithmetic: 100000)
    train: int = 0
    # validation problems to generate; 0: as many as released (arithmetic: 300)
    valid: int = 0
    # test problems to generate; 0: as many as released (arithmetic: 500)
    test: int = 0
    # ProsQA: nodes drawn per graph; nodes without an edge are dropped. 28 fits the released files
    n_nodes: int = 28
    # ProsQA: mean number of parents that a node draws; 1.5 fits the released files. With more of
    # them graphs are denser, and paths part and join more often
    parents: float = 1.5
    # ProsQA: minimum length of a chain
    min_hops: int = 3
    # ProsQA: maximum length of a chain
    max_hops: int = 6
    # ProntoQA: length of each chain; its last hop leads from a concept to a property
    hops: int = 5
    # arithmetic: steps of the longest chains; each number of steps is equally frequent
    max_steps: int = 5
    # arithmetic: largest number told or found; each is a token, so a larger one is harder to learn
    max_number: int = 50
    # no shortcuts. ProsQA: mirrored ancestors of both options; ProntoQA: both named equally often
    fair: bool = False
    # tokenizer of the token files
    tokenizer: str = "words"
    # run or model whose tokens are used, so that it can be trained on; default: new ones
    vocabulary_of: str = ""


# The options that decide how a task's problems are drawn, besides their number.
OPTIONS = {
    "prosqa": ["n_nodes", "parents", "min_hops", "max_hops", "fair"],
    "prontoqa": ["hops", "fair"],
    "arithmetic": ["max_steps", "max_number"],
}


def main(c: PrepareConfig) -> None:
    demand_ranges(c)
    folder = folder_of(c)  # refuses a name that leads outside data/ before any work
    demand_effect(c)
    splits = generate(c) if is_generated(c) else read_source(c)
    if (folder / "meta.json").exists():
        print(f"{folder} had data already, which are replaced")
    known = arithmetic.texts_to_know(c.max_number) if c.task == "arithmetic" else []
    _, meta = data.save(c.name or c.task, splits, meta_of(c, splits["train"]), known)
    previews = [preview(row, meta["max_steps"]) for row in splits["train"][:10]]
    files.write_text(folder / "preview.txt", "\n".join(previews))
    print(previews[0])
    report_sizes(folder, meta, splits["train"])
    report_names_without_token(meta, splits["train"])
    report_cut_answers(splits)
    report_problems_without_steps(folder, splits["train"])
    if c.task == "arithmetic":
        report_baselines(splits)
    if c.task in ("prosqa", "prontoqa"):
        report_problems_without_graph(folder, splits["train"], c.task)


def is_generated(c: PrepareConfig) -> bool:
    """Whether problems are drawn, and not read from files."""
    return c.task in SIZES and not c.source


def folder_of(c: PrepareConfig) -> Path:
    """The folder to write. Raises UserError for a name that could lead out of data/."""
    return files.folder_of("data", c.name or c.task)


def meta_of(c: PrepareConfig, rows: list[dict]) -> dict:
    """What meta.json says of training problems before they are tokenized."""
    meta = {
        "task": c.task,
        "seed": c.seed,
        "tokenizer": c.tokenizer,
        "max_steps": max(len(row["steps"]) for row in rows),
    }
    options = OPTIONS[c.task] if is_generated(c) else ["source"]
    meta["options"] = {name: getattr(c, name) for name in options}
    if c.vocabulary_of:
        meta |= tokens_of_run(c.vocabulary_of)
    elif c.task == "arithmetic":
        meta["pattern"] = arithmetic.PATTERN
    return meta


def tokens_of_run(name: str) -> dict:
    """The tokens of a run or a model, by name or path, for meta.json. Raises UserError."""
    from nanococonut import runs  # imports torch, which nothing else here needs

    file = runs.named(name)
    if not file:
        raise cli.UserError(f"--vocabulary_of={name} not found; expected a run or a file")
    return data.tokens_of(runs.load_state(file)[0]["data"])


# Options that make no sense


def demand_ranges(c: PrepareConfig) -> None:
    """Raises UserError for an option that is too small or too large."""
    most_problems = 10**7
    sizes = f"from 0 to {most_problems}"
    cli.demand(c, "train valid test", lambda n: 0 <= n <= most_problems, sizes)
    most_nodes = len(prosqa.CONCEPTS) + 2  # and two persons
    names = f"from 3 to {most_nodes}, as many as there are names"
    cli.demand(c, "n_nodes", lambda n: 3 <= n <= most_nodes, names)
    # A hop takes a concept and a distractor, four concepts are elsewhere, and three more if fair.
    most_hops = 5 if c.fair and c.task == "prontoqa" else 6
    concepts = f"from 1 to {most_hops}: there are {len(prontoqa.KINDS)} concepts"
    cli.demand(c, "hops", lambda n: 1 <= n <= most_hops, concepts)
    most_steps = arithmetic.MOST_STEPS
    cli.demand(c, "max_steps", lambda n: 1 <= n <= most_steps, f"from 1 to {most_steps}")
    numbers = "from 20 to 200, because each number is in 28 tokens"  # 8, and one with each thing
    cli.demand(c, "max_number", lambda n: 20 <= n <= 200, numbers)
    cli.demand(c, "parents", lambda mean: 0.1 <= mean <= 5, "from 0.1 to 5")
    chains = f"from 1 to --max_hops={c.max_hops}"
    cli.demand(c, "min_hops", lambda n: 1 <= n <= c.max_hops, chains)


def demand_effect(c: PrepareConfig) -> None:
    """Raises UserError for an option that is typed and would change nothing."""
    what = f"--source={c.source}" if c.source else c.task
    used = []
    if is_generated(c):
        used = [*data.SPLITS, *OPTIONS[c.task]]
    for name in (*data.SPLITS, *itertools.chain.from_iterable(OPTIONS.values())):
        if name not in used and getattr(c, name) != getattr(PrepareConfig, name):
            raise cli.UserError(f"--{name} has no effect on {what}: leave it out")
    if c.vocabulary_of and c.tokenizer != PrepareConfig.tokenizer:
        raise cli.UserError("--vocabulary_of says which tokens are used: leave --tokenizer out")


# Generating


def generate(c: PrepareConfig) -> dict[str, list[dict]]:
    """The three splits. They are disjoint: no problem occurs twice.

    Of ProsQA and arithmetic none occurs even under other names, and of arithmetic no chain of steps
    occurs in two splits.
    """
    rng = random.Random(f"{c.task} {c.seed}")
    sizes = {}
    for split, n_default in zip(data.SPLITS, SIZES[c.task], strict=True):
        sizes[split] = getattr(c, split) or n_default
    splits = {split: [] for split in data.SPLITS}
    seen = set()
    n_tries = n_fit = last_new = 0
    with tqdm(total=sum(sizes.values()), desc=c.task, unit="problem") as progress:
        for split, rows in splits.items():
            while len(rows) < sizes[split]:
                drawn = draw(c, rng, len(seen))
                n_tries += 1
                if drawn:
                    row, identity = drawn
                    n_fit += 1
                    if identity not in seen and may_be_of(c, split, identity):
                        seen.add(identity)
                        last_new = n_tries
                        rows.append(prosqa.tell(row, rng) if c.task == "prosqa" else row)
                        progress.update()
                is_rare = n_tries >= 1000 and n_fit < n_tries / 200
                if is_rare or n_tries - last_new >= 20_000:
                    raise cli.UserError(why_rare(c))
    return splits


def may_be_of(c: PrepareConfig, split: str, identity: str) -> bool:
    """Whether a split may have a new problem: of arithmetic each chain belongs to one split."""
    return c.task != "arithmetic" or arithmetic.split_of(identity) == split


def draw(c: PrepareConfig, rng: random.Random, n_there: int) -> tuple[dict, str] | None:
    """A random problem, of ProsQA not yet in words, and its identity; or None: draw again.

    n_there is how many problems there are already. Of arithmetic each number of steps has its turn.
    """
    if c.task == "prosqa":
        return prosqa.draw(rng, c.n_nodes, c.min_hops, c.max_hops, c.fair, c.parents)
    if c.task == "prontoqa":
        return prontoqa.draw(rng, c.hops, c.fair)
    return arithmetic.draw(rng, n_there % c.max_steps + 1, c.max_number)


def why_rare(c: PrepareConfig) -> str:
    """Why hardly any random problem is new and fits, and what to try."""
    if c.task == "prosqa":
        hops = f"chains of {c.min_hops} to {c.max_hops} hops"
        rarely = f"graphs of {c.n_nodes} nodes hardly ever have {hops}"
        advice = "more nodes or fewer hops"
        if c.parents != PrepareConfig.parents:
            advice = f"--parents={PrepareConfig.parents}, {advice}"
        return f"{rarely}; try {advice}"
    if c.task == "prontoqa":
        there = f"there are hardly any other problems of {c.hops} hops"
        return f"{there}; try more hops or fewer problems"
    there = f"there are hardly any other problems with numbers up to {c.max_number}"
    return f"{there}; try a larger --max_number or fewer problems"


# Reading files


def read_source(c: PrepareConfig) -> dict[str, list[dict]]:
    """The splits of --source: from a folder or base URL, or from one file. Raises UserError."""
    is_file = Path(c.source).is_file()
    if is_file or Path(c.source.partition("?")[0]).suffix.lower() in SUFFIXES:
        splits = split_file(c)
    else:
        splits = {split: files.read_rows(file_of_split(c, split)) for split in data.SPLITS}
    rows = list(itertools.chain.from_iterable(splits.values()))
    unread = files.unread(rows)
    if unread:
        print(f"not read: {', '.join(unread)}; a model reads question, context, steps and answer")
    check_overlap(splits)
    return splits


def split_file(c: PrepareConfig) -> dict[str, list[dict]]:
    """The problems of one file, split 80/10/10 by the seed. Raises UserError."""
    rows = files.read_rows(local(c.source, c))
    if len(rows) < 10:
        raise cli.UserError(f"{c.source} has {len(rows)} problems; 10 are needed for 80/10/10")
    random.Random(f"split {c.seed}").shuffle(rows)
    first_valid = len(rows) * 8 // 10
    first_test = len(rows) * 9 // 10
    return {
        "train": rows[:first_valid],
        "valid": rows[first_valid:first_test],
        "test": rows[first_test:],
    }


def check_overlap(splits: dict[str, list[dict]]) -> None:
    """Raises UserError if two splits are the same, and warns of questions in several splits."""
    questions = {}
    for split, rows in splits.items():
        questions[split] = sorted(without_order(row) for row in rows)
    for one, other in itertools.combinations(splits, 2):
        if questions[one] == questions[other]:
            advice = "give each split a file of its own"
            raise cli.UserError(f"{one} and {other} hold the same problems; {advice}")
    earlier = set(questions["train"])
    repeated = [question for question in questions["valid"] if question in earlier]
    earlier |= set(questions["valid"])
    repeated += [question for question in questions["test"] if question in earlier]
    if repeated:
        print(f"warning: {len(repeated)} questions of valid or test also occur in an earlier split")


def without_order(row: dict) -> str:
    """What two problems have in common if they differ in the order of facts and options alone."""
    if not prosqa.is_prosqa(row):
        return row["question"]
    *facts, asked = re.split(r"(?<=\.) ", row["question"])
    return " ".join([*sorted(facts), *sorted(asked.rstrip("?").split())])


def local(source: str, c: PrepareConfig) -> Path:
    """The local path of a file. A file at a URL is first fetched to data/<name>/source/.

    Raises UserError, or FileNotFoundError if there is no such file.
    """
    target = folder_of(c)
    if "://" in source:
        name = re.sub(r"[^A-Za-z0-9._-]", "_", Path(source.partition("?")[0]).name)
        return files.fetch(source, target / "source" / name, "source")
    path = Path(source).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"cannot read {source}: no such file")
    if path.resolve().parent == target.resolve():
        advice = "choose another --name"
        raise cli.UserError(f"{source} lies in {target}, which would be replaced: {advice}")
    return path


def file_of_split(c: PrepareConfig, split: str) -> Path:
    """The file of a split: the first of its possible names that exists.

    Raises UserError if none does.
    """
    if not c.source:
        return local(GSM8K.format(HOSTS[split], split), c)
    is_url = "://" in c.source
    if not is_url and not Path(c.source).expanduser().exists():
        raise cli.UserError(f"cannot read {c.source}: no such file or folder")
    # What follows the ? of a URL stays at its end.
    base, mark, query = c.source.partition("?") if is_url else (c.source, "", "")
    stems = stems_of(c.task, split)
    for stem, suffix in itertools.product(stems, SUFFIXES):
        with contextlib.suppress(FileNotFoundError):
            return local(f"{base.rstrip('/')}/{stem}{suffix}{mark}{query}", c)
    raise cli.UserError(f"{c.source} has no {' nor '.join(stems)}, in {', '.join(SUFFIXES)}")


def stems_of(task: str, split: str) -> list[str]:
    """The names that the file of a split may have, without suffix."""
    stems = [split, f"{task}_{split}"]
    stems.append(f"{task}_{split}_graph_4_coconut")  # as in Reasoning by Superposition
    if task == "gsm8k":
        stems.append(f"gsm_{split}")  # as in the paper's code
    if split == "valid":
        stems += ["validation", f"{task}_validation"]
    return stems


# What is printed


def preview(row: dict, max_steps: int) -> str:
    """A problem as text, with its layout at every stage of coconut."""
    lines = [row["question"]]
    lines += [f"    {step}" for step in row["steps"]]
    lines.append(f"    ### {row['answer']}")
    for stage in range(max_steps + 1):
        lines.append(
            f"    stage {stage} | {layout('coconut', stage, max_steps, len(row['steps']))}"
        )
    return "\n".join([*lines, ""])


def report_sizes(folder: Path, meta: dict, rows: list[dict]) -> None:
    """Prints how long the chains of training problems are, and how much was written where."""
    lengths = Counter(len(row["steps"]) for row in rows)
    counted = ", ".join(f"{length}: {n}" for length, n in sorted(lengths.items()))
    print("steps in a chain (train):", counted)
    print(f"{folder}: {meta['counts']}, {len(meta['vocabulary'])} words, see {folder}/preview.txt")


def report_names_without_token(meta: dict, rows: list[dict]) -> None:
    """Prints how many names of graphs are read byte by byte, if any are."""
    if meta["tokenizer"] != "words":
        return
    encoding = tokenizer.load(meta["tokenizer"], meta["vocabulary"], meta["pattern"])
    persons, concepts = prosqa.names_of(rows)
    names = persons + concepts
    split = [name for name in names if not tokenizer.node_tokens(encoding, name)]
    if split:
        how_many = f"{len(split)} of {len(names)} names"
        print(f"{how_many} have no token and are read byte by byte, as {split[0]!r}")


def report_cut_answers(splits: dict[str, list[dict]]) -> None:
    """Prints how many answers scoring takes something away from, if any are."""
    rows = itertools.chain.from_iterable(splits.values())
    cut = [row["answer"] for row in rows if is_cut_by_scoring(row["answer"])]
    if cut:
        uncounted = "without their commas and what stands before their last #"
        print(f"{len(cut)} answers count {uncounted}, as {cut[0]!r}")


def is_cut_by_scoring(answer: str) -> bool:
    """Whether scoring takes away more of an answer than blanks and the commas of thousands."""
    without_thousands = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", answer)
    return scoring.final_answer(answer) != without_thousands.strip()


def report_baselines(splits: dict[str, list[dict]]) -> None:
    """Prints the accuracy on test of answers that take no steps."""
    for name, accuracy in arithmetic.baselines(splits["test"], splits["train"]).items():
        print(f"baseline, {name}: {accuracy:.1%} of test")


def report_problems_without_steps(folder: Path, rows: list[dict]) -> None:
    """Prints how many training problems have no steps, if any have none."""
    n_without = len([row for row in rows if not row["steps"]])
    if n_without:
        how_many = f"{n_without} of {len(rows)} problems have no steps"
        effect = "from them a model learns the answer alone, as in --method=no_cot"
        print(f"{folder}/train.json: {how_many}; {effect}")


def report_problems_without_graph(folder: Path, rows: list[dict], task: str) -> None:
    """Prints how many training problems cannot be augmented, if any, and why the first cannot."""
    without = []
    for i, row in enumerate(rows):
        if not prosqa.is_prosqa(row) and not prontoqa.read(row):
            without.append(i)
    if without:
        how_many = f"{len(without)} of {len(rows)} problems"
        effect = f"--augment leaves {how_many} as they are in the file"
        first = f"the first is row {without[0]}"
        if task == "prosqa":
            first += f": {prosqa.why_untold(rows[without[0]])}"
        print(f"{folder}/train.json: {effect}, because their words tell no graph; {first}")


if __name__ == "__main__":
    cli.run(main, PrepareConfig, choices=CHOICES)
