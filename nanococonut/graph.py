"""All that is known of a ProsQA graph: how it is told, who reaches what, what a text about it is worth.

A row of ProsQA holds the graph it was told from. A node is a number. A name that begins with a capital is a person's,
the others are concepts'. An edge [a, b] is the fact that a is a b. The root reaches the target, not the neg_target:

    idx_to_symbol  ["Tom", "Max", "lempus", "rempus", "impus"]      root 0, target 3, neg_target 4
    edges          [[0, 2], [2, 3], [1, 4]]                         Tom -> lempus -> rempus     Max -> impus
"""

import itertools
import math
import random
from collections import Counter

FIELDS = ("idx_to_symbol", "edges", "root", "target", "neg_target")


def has_graph(row: dict) -> bool:
    """Whether a row holds the graph it was told from."""
    return all(field in row for field in FIELDS)


def is_person(name: str) -> bool:
    """Persons have capitals, concepts have none."""
    return name[0].isupper()


def persons_of(row: dict) -> list[int]:
    """The nodes that are persons."""
    return [v for v, name in enumerate(row["idx_to_symbol"]) if is_person(name)]


def names_of(rows: list[dict]) -> tuple[list[str], list[str]]:
    """The persons and the concepts of some graphs, sorted."""
    used = sorted({name for row in rows for name in row["idx_to_symbol"]})
    return list(filter(is_person, used)), list(itertools.filterfalse(is_person, used))


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
    """The row told in sentences, these facts in this order or all in an order drawn anew, as are its two options."""
    names = names or row["idx_to_symbol"]
    nodes = chain_of(row)
    facts = [fact(names, a, b) for a, b in edges or rng.sample(row["edges"], len(row["edges"]))]
    one, other = rng.sample([names[row["target"]], names[row["neg_target"]]], 2)
    return row | {
        "question": " ".join([*facts, f"Is {names[nodes[0]]} a {one} or {other}?"]),
        "steps": [fact(names, *edge) for edge in itertools.pairwise(nodes)],
        "answer": fact(names, nodes[0], nodes[-1]),
        "idx_to_symbol": names,
    }


def difference(row: dict) -> str:
    """How a row's words differ from those tell() gives its graph, in whatever order; empty where they are the same."""
    for field in FIELDS:
        if field not in row:
            return f"it has no {field}"
    turned = row | {"target": row["neg_target"], "neg_target": row["target"]}
    told, other = (tell(one, random.Random(0), edges=row["edges"]) for one in (row, turned))
    own, *wanted = (Counter(one["question"].split(". ")) for one in (row, told, other))
    if own not in wanted:
        odd = min(((own - sentences) + (sentences - own) for sentences in wanted), key=len)
        return f"its question and its graph differ in {next(iter(odd))[:80]!r}"
    steps = [("step", *pair) for pair in zip(row["steps"], told["steps"], strict=True)]
    for what, text, sentence in [*steps, ("answer", row["answer"], told["answer"])]:
        if text != sentence:
            return f"its {what} is {text[:80]!r}, not {sentence!r}"
    return ""


def distances(edges: list[list[int]], *roots: int) -> dict[int, int]:
    """Steps from the nearest root to every node that is reached, nearest first.

    >>> distances([[0, 2], [2, 3], [0, 3], [1, 4]], 0)
    {0: 0, 2: 1, 3: 1}
    """
    children = {}
    for a, b in edges:
        children.setdefault(a, []).append(b)
    distance, queue = dict.fromkeys(roots, 0), list(roots)
    for a in queue:  # grows while it is read
        new = [b for b in children.get(a, ()) if b not in distance]
        distance |= dict.fromkeys(new, distance[a] + 1)
        queue += new
    return distance


def backwards(edges: list[list[int]]) -> list[list[int]]:
    """The edges turned round: distances() then counts steps up to each ancestor."""
    return [[b, a] for a, b in edges]


def before(edges: list[list[int]], distance: dict[int, int], node: int) -> list[int]:
    """The nodes that stand before a node on shortest paths; distance is from where they begin."""
    return [a for a, b in edges if b == node and distance.get(a) == distance[node] - 1]


def shortest_path(edges: list[list[int]], distance: dict[int, int], target: int, rng: random.Random) -> list[int]:
    """One of the shortest paths to target, each as likely as the other; distance is from the root."""
    n_paths = {}
    for v in distance:  # nearest first
        n_paths[v] = sum(n_paths[a] for a in before(edges, distance, v)) or 1
    path = [target]
    while distance[path[0]] > 0:
        options = before(edges, distance, path[0])
        path = rng.choices(options, [n_paths[a] for a in options]) + path
    return path


def others_than(row: dict, reached: dict[int, int]) -> list[int]:
    """The concepts that are not reached."""
    return [v for v, name in enumerate(row["idx_to_symbol"]) if v not in reached and not is_person(name)]


def farthest(row: dict, reached: dict[int, int]) -> list[int]:
    """Of the concepts that are not reached those that are farthest from the nearest person, if one leads there."""
    far = distances(row["edges"], *persons_of(row))
    found = [v for v in others_than(row, reached) if v in far]
    most = max((far[v] for v in found), default=0)
    return [v for v in found if far[v] == most]


def askers(row: dict) -> dict[int, dict[int, int]]:
    """The persons of whom one may ask, who reach some concepts and not all; of each, steps to what he reaches."""
    found = {root: distances(row["edges"], root) for root in persons_of(row)}
    return {root: reached for root, reached in found.items() if len(reached) > 1 and others_than(row, reached)}


def ask(row: dict, people: dict[int, dict[int, int]], rng: random.Random, least: int) -> dict:
    """The row, for tell(), with a question of `least` steps or more of its askers; itself if there is none."""
    fit = [root for root, reached in people.items() if max(reached.values()) >= least]
    if not fit:
        return row
    root = rng.choice(fit)
    reached = people[root]
    n_steps = rng.randint(least, max(reached.values()))
    target = rng.choice([v for v, d in reached.items() if d == n_steps])
    options = others_than(row, reached)
    if rng.random() < 0.5:  # a false option that gives little away: mostly the true one is farther from persons
        options = farthest(row, reached) or options
    asked = {"root": root, "target": target, "neg_target": rng.choice(options)}
    path = itertools.pairwise(shortest_path(row["edges"], reached, target, rng))
    return row | asked | {"steps": [fact(row["idx_to_symbol"], *edge) for edge in path]}


def both_chains(row: dict, people: dict[int, dict[int, int]], rng: random.Random) -> set[tuple[int, int]]:
    """The edges of the row's chain, and of another person's to the false option, which must not hang in the air."""
    edges, false = set(itertools.pairwise(chain_of(row))), row["neg_target"]
    able = [reached for root, reached in people.items() if root != row["root"] and false in reached]
    if able:
        edges |= set(itertools.pairwise(shortest_path(row["edges"], rng.choice(able), false, rng)))
    return edges


def frontiers(edges: list[tuple[int, int]], root: int, n: int) -> list[list[int]]:
    """The nodes to which ways of 0, 1, ..., n - 1 edges lead from root: what a search looks at, step by step."""
    found = [[root]]
    for _ in range(n - 1):
        found.append(sorted({b for a, b in edges if a in found[-1]}))
    return found[:n]


def twin(row: dict) -> dict | None:
    """The row asked of the nearest person who reaches the false option and not the true one; None where nobody does."""
    names, true, false = row["idx_to_symbol"], row["target"], row["neg_target"]
    above_true, above_false = (distances(backwards(row["edges"]), option) for option in (true, false))
    others = [v for v in persons_of(row) if v in above_false and v not in above_true]
    start, asked, options = row["question"].rpartition(f"Is {names[row['root']]} a ")
    if not others or not asked:
        return None
    root = min(others, key=above_false.get)
    path = shortest_path(row["edges"], distances(row["edges"], root), false, random.Random(0))
    told = {"question": f"{start}Is {names[root]} a {options}", "answer": fact(names, root, false)}
    told["steps"] = [fact(names, *edge) for edge in itertools.pairwise(path)]
    return row | told | {"root": root, "target": false, "neg_target": true}


def twins(rows: list[dict]) -> list[tuple[dict, dict]]:
    """Each row that has a twin, and the twin."""
    pairs = [(row, twin(row)) for row in rows if has_graph(row)]
    return [(row, other) for row, other in pairs if other]


def on_shortest_paths(row: dict) -> set[int]:
    """The nodes that are on some shortest path from root to target."""
    down = distances(row["edges"], row["root"])
    up = distances(backwards(row["edges"]), row["target"])
    return {v for v in up if v in down and down[v] + up[v] == down[row["target"]]}


def heights(edges: list[list[int]]) -> dict[str, dict[int, int]]:
    """Steps from each node to its nearest leaf ("shortest") and to its farthest ("longest")."""
    nodes = {v for edge in edges for v in edge}
    up = distances(backwards(edges), *(nodes - {a for a, _ in edges}))
    longest = dict.fromkeys(nodes, 0)
    begins = nodes  # where ways of n steps begin
    for n in range(1, len(nodes) + 1):  # no way is longer, but in a cycle, which a foreign graph may have
        begins = {a for a, b in edges if b in begins}
        longest |= dict.fromkeys(begins, n)
    return {"shortest": {v: up.get(v, 0) for v in nodes}, "longest": longest}


def judge_chain(steps: list[str], row: dict, hidden: bool) -> str:
    """A chain's evaluate.VERDICTS [Hao24 5.1]; if hidden, it begins with a shortest path to its first word."""
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
    persons = {v: above[v] for v in persons_of(row) if v in above}
    return {
        "no other person within 2 steps back": all(d > 2 or v == row["root"] for v, d in persons.items()),
        "more ancestors": len(above),
        "farther from the nearest person": min(persons.values(), default=math.inf),
    }


def rule_points(row: dict) -> dict[str, float]:
    """How likely each rule of rule_scores() is right: 1, 0, or 0.5 where it cannot tell and has to guess."""
    right, wrong = rule_scores(row, row["target"]), rule_scores(row, row["neg_target"])
    return {rule: 0.5 if right[rule] == wrong[rule] else float(right[rule] > wrong[rule]) for rule in right}


def rules(asked: list[tuple[dict, ...]]) -> dict[str, float]:
    """How often chance and each rule of rule_scores() are right in all of (problem,), or of (problem, its twin)."""
    if not asked:
        return {}
    points = [list(map(rule_points, rows)) for rows in asked]
    n_right = {rule: sum(math.prod(point[rule] for point in all_of) for all_of in points) for rule in points[0][0]}
    return {"chance": 0.5 ** len(asked[0])} | {rule: n / len(asked) for rule, n in n_right.items()}
