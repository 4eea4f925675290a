"""Prepares a data set in data/<name>/: generates ProsQA or ProntoQA, or converts GSM8k and other released files.

A ProsQA problem is a graph of made-up concepts and persons, and asks which of two concepts a person is:

    graph     0 -> 2, 2 -> 3, 1 -> 4, 2 -> 5        0 and 1 are persons; leaves 3 and 5 are reached only from 0
    root 0    its own leaves lie deeper (2 steps) than those of 1 (1 step); a tie is broken at random
    target 3  one of root's own deepest leaves; neg_target 4 is any of the other person's own
    question  Every b is a e. Tom is a b. Max is a d. Every b is a c. Is Tom a d or c?      worded by tell()
    steps     Tom is a b.  Every b is a c.          one of the shortest paths; the answer is Tom is a c.

Sources: [Hao24 A.2] and the released files. The algorithm is fitted to these files; tests/test_prepare.py compares.
"""

import contextlib
import itertools
import math
import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from nanococonut import config, data, graph, ontology, reading, tokenizer
from nanococonut.curriculum import layout

PERSONS = "Alex Bob Carol Davis Eva Fae Gabriel Jack Max Oliver Polly Rex Sally Sam Stella Tom Wren".split()
CONCEPTS = """bompus boompus brimpus chorpus dumpus felpus fompus gerpus gorpus grimpus gwompus hilpus impus jelpus
jompus kerpus lempus lorpus numpus quimpus rempus rompus rorpus scrompus shumpus sterpus storpus terpus timpus tumpus
vumpus worpus wumpus yerpus yimpus yumpus zhorpus zumpus""".split()
RELEASED = {"prosqa": (17886, 300, 500), "prontoqa": (9000, 200, 800)}  # number of problems in train, valid, test
# GSM8k-Aug [Deng23], at the commit the paper's code fetches; train.txt is in Git LFS. No checksums are published.
GSM8K = "https://{}/da03/Internalize_CoT_Step_by_Step/e06a32ee5e4cd117171daeb4755d2a97ece62761/data/gsm8k/{}.txt"
HOSTS = {"train": "media.githubusercontent.com/media"} | dict.fromkeys(("valid", "test"), "raw.githubusercontent.com")
# ProntoQA's words: entities, concepts, and families of properties. A problem uses one property of a family.
ENTITIES = "Alex Fae Max Polly Rex Sally Sam Stella Wren".split()
KINDS = """brimpus dumpus gorpus grimpus impus jompus lempus lorpus numpus rompus shumpus sterpus tumpus vumpus wumpus
yumpus zumpus""".split()
FAMILIES = """large/small bright/dull transparent/opaque slow/fast/moderate hot/cold/temperate floral/fruity/earthy
red/blue/brown/orange sour/sweet/bitter/spicy loud/muffled wooden/metallic/liquid luminous nervous/happy/feisty/shy
melodic/discordant snowy/overcast/sunny/rainy/windy kind/mean/angry/amenable/aggressive""".split()
SUFFIXES = (".json", ".jsonl", ".txt")  # of files that may hold problems
CHOICES = {"task": data.TASKS, "tokenizer": ("words", "gpt2")}


@dataclass(frozen=True)
class PrepareConfig:
    """python prepare.py TASK [--option=value ...]: generates or converts a data set and writes data/<name>/."""

    task: str = "prosqa"  # data set to prepare
    name: str = ""  # folder under data/; default: the task
    source: str = ""  # read instead of generating: a file or its URL, or a folder or base URL with train, valid, test
    seed: int = 0  # random seed; the same seed gives the same bytes
    train: int = 0  # training problems to generate; 0: as many as released
    valid: int = 0  # validation problems to generate; 0: as many as released
    test: int = 0  # test problems to generate; 0: as many as released
    n_nodes: int = 28  # ProsQA: nodes drawn per graph; nodes without an edge are dropped. 28 fits the released files
    min_hops: int = 3  # ProsQA: minimum length of a chain
    max_hops: int = 6  # ProsQA: maximum length of a chain
    hops: int = 5  # ProntoQA: length of each chain; its last hop leads from a concept to a property
    fair: bool = False  # no shortcuts. ProsQA: mirrored ancestors of both options; ProntoQA: both named equally often
    tokenizer: str = "words"  # tokenizer of the token files
    vocabulary_of: str = ""  # run or model whose tokens are used, so that it can be trained on; default: new ones


def draw_graph(n_nodes: int, rng: random.Random) -> list[list[int]]:
    """Edges of a random graph grown from two roots, 0 and 1. Every edge goes from a lower to a higher node."""
    # Differs from the paper: thresholds and candidates of the printed Algorithm 1 do not give the released graphs.
    roots, depth, edges = [{0}, {1}], [0, 0], []  # roots: those that reach each node
    for node in range(2, n_nodes):
        r = rng.random()
        only = {0} if r <= 0.35 else {1} if r <= 0.80 else None  # which root's own nodes may be parents; None: any node
        candidates = [v for v in range(node) if only in (None, roots[v])]
        n_parents, product = 0, rng.random()  # a Poisson sample with mean 1.5 (Knuth's method)
        while product > math.exp(-1.5):
            n_parents, product = n_parents + 1, product * rng.random()
        # Weighted sampling without replacement (Efraimidis and Spirakis 2006): deeper nodes are likelier parents.
        keys = {v: rng.random() ** (1 / (1.5 * depth[v] + 1)) for v in candidates}
        parents = sorted(candidates, key=keys.get)[max(0, len(candidates) - n_parents) :]
        roots.append(set().union(*(roots[parent] for parent in parents)))
        depth.append(1 + min((depth[parent] for parent in parents), default=-1))
        edges += [[parent, node] for parent in parents]
    return edges


def ask(edges: list[list[int]], c: PrepareConfig, rng: random.Random) -> tuple[int, int, int] | None:
    """Root, target and neg_target of a question about a graph; None if no chain has the wanted length."""
    leaves, distance = {b for _, b in edges} - {a for a, _ in edges}, [graph.distances(edges, r) for r in (0, 1)]
    own = [{v: d for v, d in distance[r].items() if v in leaves and v not in distance[1 - r]} for r in (0, 1)]
    if not all(own):
        return None
    deepest = [max(own[0].values()), max(own[1].values())]
    root = rng.randrange(2) if deepest[0] == deepest[1] else deepest.index(max(deepest))
    if not c.min_hops <= deepest[root] <= c.max_hops:
        return None
    target = rng.choice([v for v, d in own[root].items() if d == deepest[root]])
    return root, target, rng.choice(list(own[1 - root]))


def mirror(edges: list[list[int]], root: int, target: int, n_nodes: int, rng: random.Random) -> tuple | None:
    """A symmetric graph without shortcuts: new edges, and the root, target and neg_target of its question.

    The target's ancestors are copied for the other person, and every other edge that leaves an ancestor also leaves its
    copy. So the graph is unchanged when the persons and the options are swapped: a rule that looks at a person and an
    option, but not for a path between them, cannot tell the options apart. Which person is asked about is random.
    Returns None if another person is an ancestor of the target, or if there are too few nodes.

    >>> mirror([[0, 2], [2, 3], [0, 4]], root=0, target=3, n_nodes=7, rng=random.Random(0))
    ([[0, 2], [1, 3], [0, 4], [1, 4], [2, 5], [3, 6]], 1, 6, 5)
    """
    parents, children = {a for a, _ in edges}, {b for _, b in edges}
    above = sorted(graph.distances([[b, a] for a, b in edges], target))  # root first, target last: edges ascend
    free = [v for v in range(2, n_nodes) if v not in above]
    leaves = [v for v in free if v not in parents]
    if not children.issuperset(above[1:]) or len(free) < len(above) - 1 or not leaves:
        return None
    neg_target = rng.choice(leaves)
    free.remove(neg_target)
    copies = [1 - root, *sorted(rng.sample(free, len(above) - 2)), neg_target]
    other = dict(zip(above + copies, copies + above, strict=True))  # each node's counterpart
    new = [[a, b] for a, b in edges if b in above]
    new += [[other[a], other[b]] for a, b in new]
    for a, b in [edge for edge in edges if edge[1] not in other]:  # options' ancestors are only originals and copies
        new += [[v, b] for v in sorted({a, other.get(a, a)}) if [v, b] not in new]
    # Edges go from low to high: nodes are renumbered, each after its parents, and the two persons come first.
    place = {0: 0.0, 1: 0.0}
    for v in [*above[1:], *copies[1:], *(v for v in range(2, n_nodes) if v not in other)]:
        place[v] = rng.random() + max((place[a] for a, b in new if b == v), default=0.0)
    number = {v: i for i, v in enumerate(sorted(place, key=place.get))}
    asked = rng.sample([(root, target), (1 - root, neg_target)], 2)
    ends = asked[0][0], number[asked[0][1]], number[asked[1][1]]
    return sorted(([number[a], number[b]] for a, b in new), key=lambda edge: edge[::-1]), *ends


def prosqa(c: PrepareConfig, rng: random.Random) -> tuple | None:
    """A problem for graph.tell() to put in words, and its identity, which ignores names; None if it does not fit."""
    edges = draw_graph(c.n_nodes, rng)
    asked = ask(edges, c, rng)
    if asked and c.fair:
        edges, *asked = mirror(edges, *asked[:2], c.n_nodes, rng) or [edges]
    if not asked:
        return None
    nodes = sorted({a for a, _ in edges} | {b for _, b in edges})  # nodes with an edge, which are renumbered
    index = {v: i for i, v in enumerate(nodes)}
    edges = [[index[a], index[b]] for a, b in edges]
    root, target, neg_target = (index[v] for v in asked)
    children = {b for _, b in edges}
    n_persons = len(nodes) - len(children)
    if n_persons > len(PERSONS) or len(children) > len(CONCEPTS):
        return None
    persons, concepts = iter(rng.sample(PERSONS, n_persons)), iter(rng.sample(CONCEPTS, len(children)))
    names = [next(concepts if v in children else persons) for v in range(len(nodes))]
    path = graph.shortest_path(edges, graph.distances(edges, root), target, rng)
    row = {"question": "", "answer": "", "steps": [graph.fact(names, a, b) for a, b in itertools.pairwise(path)]}
    row |= {"idx_to_symbol": names, "edges": edges, "root": root, "target": target, "neg_target": neg_target}
    return row, str((edges, root, target, neg_target))


def prontoqa(c: PrepareConfig, rng: random.Random) -> tuple:
    """One ProntoQA problem [Saparov22] like those of the released generator with 5 hops, and its question.

    Each concept of the chain has two parents: the next concept and a distractor. The question asks for a property of
    the last concept, whose opposite is planted elsewhere. The second fact about the entity leads to two other concepts.
    """
    names, one = iter(rng.sample(KINDS, len(KINDS))), {x: f"an {x}" if x[0] in "aeiou" else f"a {x}" for x in KINDS}
    chain, aside = [next(names) for _ in range(c.hops)], [next(names) for _ in range(c.hops)]
    last, other, others_parent, planted = (next(names) for _ in range(4))
    links = [*zip(chain, [*chain[1:], last], strict=True), *zip(chain, aside, strict=True), (other, others_parent)]
    if c.fair:  # the planted concept gets a child and two parents, like the last concept of the chain
        links += [(next(names), planted), (planted, next(names)), (planted, next(names))]
    properties = {}  # (concept, property, whether it has it)
    for concept, family in zip([*chain, *aside, other], rng.sample(FAMILIES, 2 * c.hops + 1), strict=True):
        properties[concept] = (concept, rng.choice(family.split("/")), rng.random() < 2 / 3)
    _, asked, has = properties[chain[-1]]
    facts = {link: in_words(link[0], one[link[1]], f"{link[1]}es", rng) for link in links}
    for concept, name, it_has in [*properties.values(), (planted, asked, not has)]:
        what = name if it_has else f"not {name}"
        facts[concept, name, it_has] = in_words(concept, what, what, rng)
    entity, negated = rng.choice(ENTITIES), rng.random() < 0.5
    about = rng.sample([f"{entity} is {one[chain[0]]}.", f"{entity} is {one[other]}."], 2)
    query = f"True or false: {entity} is {'not ' * negated}{asked}."
    used = [facts[link] for link in zip(chain, chain[1:], strict=False)] + [facts[properties[chain[-1]]]]
    steps = [f"{entity} is {one[concept]}. {fact}" for concept, fact in zip(chain, used, strict=True)]
    steps += [f"{entity} is {'' if has else 'not '}{asked}."]
    question = " ".join([*rng.sample(list(facts.values()), len(facts)), *about, query])
    return {"question": question, "answer": str(has != negated), "steps": steps}, question


def in_words(concept: str, one: str, many: str, rng: random.Random) -> str:
    """A fact in a random form: "Xes are Yes." (1/2), "Every X is a Y." (1/4) or "Each X is a Y." (1/4)."""
    form = rng.choice(["many", "many", "Every", "Each"])
    return f"{concept.capitalize()}es are {many}." if form == "many" else f"{form} {concept} is {one}."


def generate(c: PrepareConfig) -> dict[str, list[dict]]:
    """The three splits. They are disjoint: no problem occurs twice, in ProsQA not even under other names."""
    generator = prosqa if c.task == "prosqa" else prontoqa
    rng, seen, n_tries = random.Random(f"{c.task} {c.seed}"), set(), 0
    sizes = {split: getattr(c, split) or n for split, n in zip(data.SPLITS, RELEASED[c.task], strict=True)}
    splits = {split: [] for split in data.SPLITS}
    with tqdm(total=sum(sizes.values()), desc=c.task, unit="problem") as progress:
        for split, rows in splits.items():
            while len(rows) < sizes[split]:
                row, identity = generator(c, rng) or (None, None)
                n_tries += 1
                if row and identity not in seen:
                    seen.add(identity)
                    rows.append(graph.tell(row, rng) if c.task == "prosqa" else row)
                    progress.update()
                if n_tries >= 1000 and len(seen) < n_tries / 200:
                    rarely = f"graphs of {c.n_nodes} nodes hardly ever have chains of {c.min_hops} to {c.max_hops} hops"
                    raise config.UserError(f"{rarely}; try more nodes or fewer hops")
    return splits


def demand_effect(c: PrepareConfig) -> None:
    """Raises UserError for an option that is typed and would change nothing."""
    drawn = ["train", "valid", "test", "n_nodes", "min_hops", "max_hops", "hops", "fair"]
    used = {"prosqa": set(drawn) - {"hops"}, "prontoqa": {"train", "valid", "test", "hops", "fair"}, "gsm8k": set()}
    what, fits = (f"--source={c.source}", set()) if c.source else (c.task, used[c.task])
    for name in drawn:
        if name not in fits and getattr(c, name) != getattr(PrepareConfig, name):
            raise config.UserError(f"--{name} has no effect on {what}: leave it out")
    if c.vocabulary_of and c.tokenizer != PrepareConfig.tokenizer:
        raise config.UserError("--vocabulary_of says which tokens are used: leave --tokenizer out")


def identity(row: dict) -> str:
    """What two problems have in common if they differ in the order of facts and options alone."""
    if not graph.is_prosqa(row):
        return row["question"]
    *facts, asked = re.split(r"(?<=\.) ", row["question"])
    return " ".join([*sorted(facts), *sorted(asked.rstrip("?").split())])


def read_source(c: PrepareConfig) -> dict[str, list[dict]]:
    """The splits of --source: from a folder or base URL, or one file split 80/10/10 by the seed. Raises UserError."""
    if Path(c.source.partition("?")[0]).suffix.lower() in SUFFIXES or Path(c.source).is_file():
        rows = reading.read_rows(local(c.source, c))
        if len(rows) < 10:
            raise config.UserError(f"{c.source} has {len(rows)} problems; 10 are needed for 80/10/10")
        random.Random(f"split {c.seed}").shuffle(rows)
        a, b = len(rows) * 8 // 10, len(rows) * 9 // 10
        splits = {"train": rows[:a], "valid": rows[a:b], "test": rows[b:]}
    else:
        splits = {split: reading.read_rows(file_of_split(c, split)) for split in data.SPLITS}
    unread = sorted({field for rows in splits.values() for field in reading.unread(rows)})
    if unread:
        print(f"not read: {', '.join(unread)}; a model reads question, context, steps and answer")
    questions = {split: sorted(map(identity, rows)) for split, rows in splits.items()}
    for one, other in itertools.combinations(splits, 2):
        if questions[one] == questions[other]:
            raise config.UserError(f"{one} and {other} hold the same problems; give each split a file of its own")
    train, valid = set(questions["train"]), set(questions["valid"])
    n_repeated = sum(q in train for q in questions["valid"]) + sum(q in train or q in valid for q in questions["test"])
    if n_repeated:
        print(f"warning: {n_repeated} questions of valid or test also occur in an earlier split")
    return splits


def local(source: str, c: PrepareConfig) -> Path:
    """The local path of a file. A file at a URL is first fetched to data/<name>/source/. Raises UserError."""
    if "://" in source:
        name = re.sub(r"[^A-Za-z0-9._-]", "_", Path(source.partition("?")[0]).name)
        return data.fetch(source, data.folder_of("data", c.name or c.task) / "source" / name, "source")
    path, target = Path(source).expanduser(), data.folder_of("data", c.name or c.task)
    if not path.exists():
        raise FileNotFoundError(f"cannot read {source}: no such file")
    if path.resolve().parent == target.resolve():
        raise config.UserError(f"{source} lies in {target}, which would be replaced: choose another --name")
    return path


def file_of_split(c: PrepareConfig, split: str) -> Path:
    """The file of a split: the first of its possible names that exists. Raises UserError if none does."""
    if not c.source:
        return local(GSM8K.format(HOSTS[split], split), c)
    stems = [split, f"{c.task}_{split}", f"{c.task}_{split}_graph_4_coconut"]  # last: as in Reasoning by Superposition
    if c.task == "gsm8k":
        stems.append(f"gsm_{split}")  # as in the paper's code
    if split == "valid":
        stems += ["validation", f"{c.task}_validation"]
    if "://" not in c.source and not Path(c.source).expanduser().exists():
        raise config.UserError(f"cannot read {c.source}: no such file or folder")
    base, mark, query = c.source.partition("?") if "://" in c.source else (c.source, "", "")
    for stem, suffix in itertools.product(stems, SUFFIXES):
        with contextlib.suppress(FileNotFoundError):
            return local(f"{base.rstrip('/')}/{stem}{suffix}{mark}{query}", c)
    raise config.UserError(f"{c.source} has no {' nor '.join(stems)}, in {', '.join(SUFFIXES)}")


def tokens_of_run(name: str) -> dict:
    """The tokens of a run or a model, by name or path, for meta.json. Raises UserError."""
    from nanococonut import answers  # imports torch, which nothing else here needs

    file = answers.named(name)
    if not file:
        raise config.UserError(f"--vocabulary_of={name} not found; expected a run or a file")
    return data.tokens_of(answers.load_state(file)[0]["data"])


def is_cut_by_scoring(answer: str) -> bool:
    """Whether data.final_answer takes away more of an answer than blanks and the commas of thousands."""
    return data.final_answer(answer) != re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", answer).strip()


def say_what_is_no_token(meta: dict, rows: list[dict]) -> None:
    """Prints how many names of graphs are read byte by byte, if any are."""
    encoding = tokenizer.load(meta["tokenizer"], meta["vocabulary"], meta["pattern"])
    names = [name for found in graph.names_of(rows) for name in found]
    split = [name for name in names if not data.node_tokens(encoding, name)]
    if split and meta["tokenizer"] == "words":
        print(f"{len(split)} of {len(names)} names have no token and are read byte by byte, as {split[0]!r}")


def main(c: PrepareConfig) -> None:
    n_names, n_hops = len(CONCEPTS) + 2, 5 if c.fair and c.task == "prontoqa" else 6
    config.demand(c, "train valid test", lambda n: 0 <= n <= 10**7, f"from 0 to {10**7}")
    config.demand(c, "n_nodes", lambda n: 3 <= n <= n_names, f"from 3 to {n_names}, as many as there are names")
    config.demand(c, "hops", lambda n: 1 <= n <= n_hops, f"from 1 to {n_hops}: there are {len(KINDS)} concepts")
    config.demand(c, "min_hops", lambda n: 1 <= n <= c.max_hops, f"from 1 to --max_hops={c.max_hops}")
    data.folder_of("data", c.name or c.task)  # refuses a name that leads outside data/ before any work
    demand_effect(c)
    splits = read_source(c) if c.source or c.task == "gsm8k" else generate(c)
    lengths = Counter(len(row["steps"]) for row in splits["train"])
    meta = {"task": c.task, "seed": c.seed, "tokenizer": c.tokenizer, "max_steps": max(lengths)}
    options = {"prosqa": ["n_nodes", "min_hops", "max_hops", "fair"], "prontoqa": ["hops", "fair"], "gsm8k": ["source"]}
    meta["options"] = {k: getattr(c, k) for k in (["source"] if c.source else options[c.task])}
    there = data.folder_of("data", c.name or c.task) / "meta.json"
    if there.exists():
        print(f"{there.parent} had data already, which are replaced")
    if c.vocabulary_of:
        meta |= tokens_of_run(c.vocabulary_of)
    folder, meta = data.save(c.name or c.task, splits, meta)
    shown = []  # ten examples as text, each with its layout at every stage of coconut
    for row in splits["train"][:10]:
        words = [row["question"], *(f"    {step}" for step in row["steps"]), f"    ### {row['answer']}"]
        made = [layout("coconut", s, max(lengths), len(row["steps"])) for s in range(max(lengths) + 1)]
        shown.append("\n".join([*words, *(f"    stage {s} | {line}" for s, line in enumerate(made)), ""]))
    data.write_text(folder / "preview.txt", "\n".join(shown))
    print(shown[0])
    print("steps in a chain (train):", ", ".join(f"{k}: {n}" for k, n in sorted(lengths.items())))
    print(f"{folder}: {meta['counts']}, {len(meta['vocabulary'])} words, see {folder}/preview.txt")
    say_what_is_no_token(meta, splits["train"])
    odd = [row["answer"] for rows in splits.values() for row in rows if is_cut_by_scoring(row["answer"])]
    if odd:
        print(f"{len(odd)} answers count without their commas and what stands before their last #, as {odd[0]!r}")
    if lengths[0]:
        without = f"{lengths[0]} of {len(splits['train'])} problems have no steps"
        print(f"{folder}/train.json: {without}; from them a model learns the answer alone, as in --method=no_cot")
    kept = [i for i, row in enumerate(splits["train"]) if not graph.is_prosqa(row) and not ontology.read(row)]
    if kept and c.task != "gsm8k":
        how_many = f"--augment leaves {len(kept)} of {len(splits['train'])} problems as they are in the file"
        why = f": {graph.why_untold(splits['train'][kept[0]])}" if c.task == "prosqa" else ""
        first = f"the first is row {kept[0]}{why}"
        print(f"{folder}/train.json: {how_many}, because their words tell no graph; {first}")


if __name__ == "__main__":
    config.run(main, PrepareConfig, choices=CHOICES)
