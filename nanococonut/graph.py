"""All that is known of a ProsQA graph: how it is told, who reaches what, what a text about it is worth.

A row of ProsQA holds the graph it was told from. A node is a number. A name that begins with a capital is a person's,
the others are concepts'. An edge [a, b] is the fact that a is a b. The root reaches the target, not the neg_target:

    idx_to_symbol  ["Tom", "Max", "lempus", "rempus", "impus"]      root 0, target 3, neg_target 4
    edges          [[0, 2], [2, 3], [1, 4]]                         Tom -> lempus -> rempus     Max -> impus
"""

import collections
import itertools
import math
import random
from typing import NamedTuple

FIELDS = ("idx_to_symbol", "edges", "root", "target", "neg_target")


def has_graph(row: dict) -> bool:
    """Whether a row holds the graph it was told from."""
    return all(field in row for field in FIELDS)


def is_person(name: str) -> bool:
    """Persons have capitals, concepts have none."""
    return name[0].isupper()


def names_of(rows: list[dict]) -> tuple[list[str], list[str]]:
    """The persons and the concepts of some graphs, sorted."""
    used = sorted({name for row in rows for name in row["idx_to_symbol"]})
    persons = [name for name in used if is_person(name)]
    concepts = [name for name in used if not is_person(name)]
    return persons, concepts


# Telling: from a graph to sentences and back.


def subject(name: str) -> str:
    """How a fact begins: with a person by name, with a concept by Every."""
    return f"{name} is a " if is_person(name) else f"Every {name} is a "


def fact(names: list[str] | dict[int, str], a: int, b: int) -> str:
    """The sentence of an edge a -> b."""
    return f"{subject(names[a])}{names[b]}."


def chain_of(row: dict) -> list[int]:
    """The nodes of a row's steps, root first."""
    objects = [step.rstrip(".").split()[-1] for step in row["steps"]]
    return [row["root"], *map(row["idx_to_symbol"].index, objects)]


def tell(row: dict, rng: random.Random, names: list[str] | None = None, edges: list | None = None) -> dict:
    """The row told in sentences, under its own or other names, its two options in an order drawn anew.

    edges are the facts to tell, in that order; by default all of them, in an order drawn anew.

    >>> row = {"idx_to_symbol": ["Tom", "Max", "lempus", "rempus", "impus"], "edges": [[0, 2], [2, 3], [1, 4]],
    ...        "root": 0, "target": 3, "neg_target": 4, "steps": ["Tom is a lempus.", "Every lempus is a rempus."]}
    >>> tell(row, random.Random(1))["question"]
    'Tom is a lempus. Max is a impus. Every lempus is a rempus. Is Tom a rempus or impus?'
    """
    names = names or row["idx_to_symbol"]
    nodes = chain_of(row)
    if edges is None:
        edges = rng.sample(row["edges"], len(row["edges"]))
    facts = [fact(names, a, b) for a, b in edges]
    one, other = rng.sample([names[row["target"]], names[row["neg_target"]]], 2)
    return row | {
        "question": " ".join([*facts, f"Is {names[nodes[0]]} a {one} or {other}?"]),
        "steps": [fact(names, a, b) for a, b in itertools.pairwise(nodes)],
        "answer": fact(names, nodes[0], nodes[-1]),
        "idx_to_symbol": names,
    }


def some_edges(row: dict, rng: random.Random, keep: float, always: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """The row's edges in an order drawn anew; those that are not in always stay with probability keep."""
    edges = map(tuple, rng.sample(row["edges"], len(row["edges"])))
    return [edge for edge in edges if keep == 1 or edge in always or rng.random() < keep]


def difference(row: dict) -> str:
    """How a row's own words differ from what tell() makes of its graph; empty where they are the same.

    The order of the facts and of the two options is free: tell() draws it anew.

    >>> row = {"idx_to_symbol": ["Tom", "Max", "lempus", "impus"], "edges": [[0, 2], [1, 3]], "root": 0, "target": 2,
    ...        "neg_target": 3, "question": "Max is a impus. Tom is a lempus. Is Tom a lempus or impus?",
    ...        "steps": ["Tom is a lempus."], "answer": "Tom is a lempus."}
    >>> difference(row), difference(row | {"answer": "Yes"})
    ('', "its answer is 'Yes', not 'Tom is a lempus.'")
    """
    for field in FIELDS:
        if field not in row:
            return f"it has no {field}"
    names, nodes = row["idx_to_symbol"], chain_of(row)
    *sentences, asked = row["question"].split(". ")
    own = collections.Counter(f"{sentence}." for sentence in sentences)
    told = collections.Counter(fact(names, a, b) for a, b in row["edges"])
    for sentence in own - told:
        return f"its question says {sentence[:80]!r}, which tells no edge so"
    for sentence in told - own:
        return f"its question does not say {sentence[:80]!r}"
    root, one, other = (names[row[field]] for field in ("root", "target", "neg_target"))
    options = [f"Is {root} a {one} or {other}?", f"Is {root} a {other} or {one}?"]
    if asked not in options:
        return f"its question asks {asked[:80]!r}, not {options[0]!r}"
    steps = [fact(names, a, b) for a, b in itertools.pairwise(nodes)]
    for number, (step, wanted) in enumerate(zip(row["steps"], steps, strict=True), start=1):
        if step != wanted:
            return f"its step {number} is {step[:80]!r}, not {wanted!r}"
    answer = fact(names, nodes[0], nodes[-1])
    if row["answer"] != answer:
        return f"its answer is {row['answer'][:80]!r}, not {answer!r}"
    return ""


# Searching: who reaches what, and how far away it is.


def distances(edges: list[list[int]], root: int) -> dict[int, int]:
    """Steps from root to every node that it reaches, nearest first.

    >>> distances([[0, 2], [2, 3], [0, 3], [1, 4]], root=0)
    {0: 0, 2: 1, 3: 1}
    """
    children = {}
    for a, b in edges:
        children.setdefault(a, []).append(b)
    distance, queue = {root: 0}, [root]
    for a in queue:  # grows while it is read
        new = [b for b in children.get(a, ()) if b not in distance]
        distance |= dict.fromkeys(new, distance[a] + 1)
        queue += new
    return distance


def backwards(edges: list[list[int]]) -> list[list[int]]:
    """The edges turned round: distances() then counts steps up to each ancestor."""
    return [[b, a] for a, b in edges]


def shortest_path(edges: list[list[int]], distance: dict[int, int], target: int, rng: random.Random) -> list[int]:
    """One of the shortest paths to target, each as likely as the other; distance is from the root."""
    before = {v: [a for a, b in edges if b == v and distance.get(a) == d - 1] for v, d in distance.items()}
    n_paths = {}
    for v, d in distance.items():  # nearest first
        n_paths[v] = 1 if d == 0 else sum(n_paths[a] for a in before[v])
    path = [target]
    while before[path[-1]]:
        path += rng.choices(before[path[-1]], [n_paths[a] for a in before[path[-1]]])
    return path[::-1]


def harder(row: dict, rng: random.Random) -> dict:
    """The row, for tell(), with another false option: of all that root does not reach the farthest from any person.

    Mostly the true option is the farther one, so a model can be right without a search; these give it less away.
    """
    names, reached = row["idx_to_symbol"], distances(row["edges"], row["root"])
    persons = [v for v, name in enumerate(names) if is_person(name)]
    # Node -1 leads to every person: steps from there, less one, are steps from the nearest person.
    far = distances([*row["edges"], *([-1, v] for v in persons)], -1)
    others = [v for v in sorted(far) if far[v] > 1 and v not in reached]
    most = max((far[v] for v in others), default=0)
    return row | {"neg_target": rng.choice([v for v in others if far[v] == most] or [row["neg_target"]])}


class Asker(NamedTuple):
    """A person whom other questions about a graph may be about."""

    root: int
    levels: list[list[int]]  # [k]: the nodes k steps away
    parents: dict[int, list[int]]  # of each node that root reaches, the nodes before it on shortest paths
    others: list[int]  # concepts that root does not reach
    farthest: list[int]  # those of them that are farthest from all persons


def askers(row: dict) -> list[Asker]:
    """The persons of a graph about whom one may ask: each reaches some concepts and not all."""
    names, edges = row["idx_to_symbol"], row["edges"]
    persons = [v for v, name in enumerate(names) if is_person(name)]
    far = distances([*edges, *([-1, v] for v in persons)], -1)  # as in harder()
    found = []
    for root in persons:
        distance = distances(edges, root)
        others = [v for v, name in enumerate(names) if v not in distance and not is_person(name)]
        if others and len(distance) > 1:
            levels = [[v for v, d in distance.items() if d == k] for k in range(max(distance.values()) + 1)]
            parents = {v: [a for a, b in edges if b == v and distance.get(a) == d - 1] for v, d in distance.items()}
            most = max(far.get(v, 0) for v in others)
            farthest = [v for v in others if far.get(v, 0) == most]
            found.append(Asker(root, levels, parents, others, farthest))
    return found


def way_to(asker: Asker, node: int, rng: random.Random) -> list[int]:
    """A shortest path from an asker's root to a node that it reaches."""
    path = [node]
    while asker.parents[path[-1]]:
        path.append(rng.choice(asker.parents[path[-1]]))
    return path[::-1]


def ask(row: dict, people: list[Asker], rng: random.Random, least: int) -> dict:
    """The row, for tell(), with another question about its graph; the row itself where there is none.

    Any person may be the root, any node at least `least` steps away the target, and any concept that the root does
    not reach the false option, half of the time one of the farthest from all persons.
    """
    fit = [asker for asker in people if len(asker.levels) > least]
    if not fit:
        return row
    asker = rng.choice(fit)
    target = rng.choice(asker.levels[rng.randint(least, len(asker.levels) - 1)])
    neg_target = rng.choice(asker.farthest if rng.random() < 0.5 else asker.others)
    steps = [fact(row["idx_to_symbol"], a, b) for a, b in itertools.pairwise(way_to(asker, target, rng))]
    return row | {"root": asker.root, "target": target, "neg_target": neg_target, "steps": steps}


def both_chains(row: dict, people: list[Asker], rng: random.Random) -> set[tuple[int, int]]:
    """The edges of the row's chain, and of a chain by which another person reaches the false option, if one does.

    A graph that lacks the latter gives the answer away: the false option hangs in the air.
    """
    edges = set(itertools.pairwise(chain_of(row)))
    able = [asker for asker in people if asker.root != row["root"] and row["neg_target"] in asker.parents]
    if able:
        edges |= set(itertools.pairwise(way_to(rng.choice(able), row["neg_target"], rng)))
    return edges


def frontiers(edges: list[tuple[int, int]], root: int, n: int) -> list[list[int]]:
    """The nodes to which ways of 0, 1, ..., n - 1 edges lead from root: what a search looks at, step by step.

    >>> frontiers([(0, 1), (0, 2), (1, 3), (2, 3)], root=0, n=4)
    [[0], [1, 2], [3], []]
    """
    found = [[root]]
    while len(found) < n:
        found.append(sorted({b for a, b in edges if a in found[-1]}))
    return found


def twin(row: dict) -> dict | None:
    """The row asked of another person, one who reaches the false option and not the true one, so that it is right.

    Of such persons it is the one nearest to the false option, and of several the first. The text is the row's own with
    another name in its question. None where there is no such person, or the question does not end as ProsQA's do.

    >>> row = {"idx_to_symbol": ["Tom", "Max", "lempus", "rempus", "impus"], "edges": [[0, 2], [2, 3], [1, 4]],
    ...        "root": 0, "target": 3, "neg_target": 4, "steps": ["Tom is a lempus.", "Every lempus is a rempus."],
    ...        "question": "Max is a impus. Tom is a lempus. Is Tom a rempus or impus?", "answer": "Tom is a rempus."}
    >>> other = twin(row)
    >>> other["question"], other["steps"], other["answer"]
    ('Max is a impus. Tom is a lempus. Is Max a rempus or impus?', ['Max is a impus.'], 'Max is a impus.')
    >>> [other[end] for end in ("root", "target", "neg_target")]
    [1, 4, 3]
    """
    names, true, false = row["idx_to_symbol"], row["target"], row["neg_target"]
    beside = distances(backwards(row["edges"]), true)  # who is above the true option
    others = [v for v in distances(backwards(row["edges"]), false) if is_person(names[v]) and v not in beside]
    before, asked, options = row["question"].rpartition(f"Is {names[row['root']]} a ")
    if not others or not asked:
        return None
    far = {v: distances(row["edges"], v) for v in others}
    root = min(others, key=lambda v: (far[v][false], v))
    path = shortest_path(row["edges"], far[root], false, random.Random(0))
    return row | {
        "question": f"{before}Is {names[root]} a {options}",
        "steps": [fact(names, *edge) for edge in itertools.pairwise(path)],
        "answer": fact(names, root, false),
        **{"root": root, "target": false, "neg_target": true},
    }


def twins(rows: list[dict]) -> list[tuple[dict, dict]]:
    """Each row that has a twin, and the twin."""
    pairs = [(row, twin(row)) for row in rows]
    return [(row, other) for row, other in pairs if other]


def on_shortest_paths(row: dict) -> set[int]:
    """The nodes that are on some shortest path from root to target.

    >>> sorted(on_shortest_paths({"edges": [[0, 1], [1, 2], [0, 3], [3, 4], [4, 2], [3, 5]], "root": 0, "target": 2}))
    [0, 1, 2]
    """
    down = distances(row["edges"], row["root"])
    up = distances(backwards(row["edges"]), row["target"])
    return {v for v in up if v in down and down[v] + up[v] == down[row["target"]]}


def heights(edges: list[list[int]]) -> dict[str, dict[int, int]]:
    """Steps from each node to its nearest leaf ("shortest") and to its farthest ("longest").

    >>> heights([[0, 1], [1, 2], [0, 2]])
    {'shortest': {0: 1, 1: 1, 2: 0}, 'longest': {0: 2, 1: 1, 2: 0}}
    """
    nodes = {v for edge in edges for v in edge}
    inner = {a for a, _ in edges}
    shortest, longest = {}, dict.fromkeys(nodes, 0)
    for v in nodes:
        leaves = [d for u, d in distances(edges, v).items() if u not in inner]
        shortest[v] = min(leaves, default=0)
    begins = nodes  # where ways of n steps begin
    for n in range(1, len(nodes) + 1):  # no way is longer, but in a cycle, which a foreign graph may have
        begins = {a for a, b in edges if b in begins}
        longest |= dict.fromkeys(begins, n)
    return {"shortest": shortest, "longest": longest}


# Judging: what a written chain is worth, and how far one comes without a model.

VERDICTS = ("correct_path", "longer_path", "hallucination", "wrong_target")  # of a chain; see evaluate.verdict


def judge_chain(steps: list[str], row: dict, hidden: bool) -> str:
    """Which of the VERDICTS [Hao24 5.1] a written chain gets; hidden: its first steps were thoughts.

    A chain whose beginning is hidden counts by the best beginning there is: the shortest path to its first word.

    >>> row = {"edges": [[0, 2], [2, 3], [2, 4], [4, 3]], "idx_to_symbol": ["Tom", "Max", "lempus", "rempus", "impus"],
    ...        "root": 0, "target": 3}
    >>> judge_chain(["Tom is a lempus.", "Every lempus is a rempus."], row, hidden=False)
    'correct_path'
    >>> judge_chain(["Tom is a rempus."], row, hidden=False), judge_chain(["Every lempus is a impus."], row, True)
    ('hallucination', 'wrong_target')
    """
    facts = {fact(row["idx_to_symbol"], a, b): (a, b) for a, b in row["edges"]}
    edges = [facts.get(step) for step in steps]
    if not all(edges) or any(a[1] != b[0] for a, b in itertools.pairwise(edges)):
        return "hallucination"
    from_root = distances(row["edges"], row["root"])
    first, last = edges[0][0], edges[-1][1]
    if first not in (from_root if hidden else [row["root"]]):
        return "hallucination"
    if last != row["target"]:
        return "wrong_target"
    n_steps = from_root[first] + len(edges)
    return "correct_path" if n_steps == from_root[row["target"]] else "longer_path"


def rule_scores(row: dict, option: int) -> dict[str, float]:
    """What each rule that looks for no path thinks of an option: it takes the one with the higher score."""
    above = distances(backwards(row["edges"]), option)  # of every ancestor
    persons = {v: d for v, d in above.items() if is_person(row["idx_to_symbol"][v])}
    return {
        "no other person within 2 steps back": all(d > 2 or v == row["root"] for v, d in persons.items()),
        "more ancestors": len(above),
        "farther from the nearest person": min(persons.values(), default=math.inf),
    }


def rule_points(row: dict) -> dict[str, float]:
    """How likely each rule of rule_scores() is right: 1, 0, or 0.5 where it cannot tell and has to guess."""
    right, wrong = rule_scores(row, row["target"]), rule_scores(row, row["neg_target"])
    return {rule: 0.5 if right[rule] == wrong[rule] else float(right[rule] > wrong[rule]) for rule in right}


def rules(rows: list[dict]) -> dict[str, float]:
    """How often each rule of rule_scores() is right."""
    points = list(map(rule_points, rows))
    return {rule: sum(point[rule] for point in points) / len(rows) for rule in points[0]}


def rules_both(pairs: list[tuple[dict, dict]]) -> dict[str, float]:
    """How often each rule of rule_scores() is right in both, a problem and its twin; none where there are no pairs."""
    both = {}
    for row, other in pairs:
        points, other_points = rule_points(row), rule_points(other)
        for rule in points:
            both[rule] = both.get(rule, 0.0) + points[rule] * other_points[rule]
    return {rule: n / len(pairs) for rule, n in both.items()}
