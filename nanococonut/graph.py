"""ProsQA graphs: putting them in words, finding paths, asking new questions, and judging what is written about them.

A node is a number. A name is made of letters of any script, digits, "_" and "-", and does not begin with a digit. With
a capital first letter it is a person's; the other names are concepts'. An edge [a, b] is the fact that a is a b. The
root reaches the target but not the neg_target. read() finds all of this in a row's words:

    idx_to_symbol  ["Tom", "Max", "lempus", "rempus", "impus"]      root 0, target 3, neg_target 4
    edges          [[0, 2], [2, 3], [1, 4]]                         Tom -> lempus -> rempus     Max -> impus
"""

import itertools
import math
import random
import re

# As ranges of characters, because Python's engine and tiktoken's disagree about what \w is outside ASCII.
LETTERS = r"A-Za-z_\u00aa-\u167f\u1681-\u1fff\u2c00-\u2dff\u3040-\ud7ff\uf900-\ufaff"
LETTERS += r"\U00010000-\U0001efff\U00020000-\U0003ffff"
NAME = rf"[{LETTERS}][{LETTERS}0-9]*(?:-[{LETTERS}0-9]+)*"
ASKED = re.compile(rf"Is ({NAME}) a ({NAME}) or ({NAME})\?")
FACT = re.compile(rf"(?:Every )?({NAME}) is a ({NAME})\.")
FIELDS = ("idx_to_symbol", "edges", "root", "target", "neg_target")


def is_prosqa(row: dict) -> bool:
    """Whether a row is a problem of ProsQA, in whose words read() has found the graph."""
    return all(field in row for field in FIELDS)


def is_person(name: str) -> bool:
    """Whether a name is a person's: only those begin with a capital letter."""
    return name[0].isupper()


def persons_of(row: dict) -> list[int]:
    """The nodes that are persons."""
    return [v for v, name in enumerate(row["idx_to_symbol"]) if is_person(name)]


def names_of(rows: list[dict]) -> tuple[list[str], list[str]]:
    """The names of the persons and of the concepts in the graphs of some rows, sorted."""
    used = sorted({name for row in filter(is_prosqa, rows) for name in row["idx_to_symbol"]})
    return list(filter(is_person, used)), list(itertools.filterfalse(is_person, used))


def subject(name: str) -> str:
    """How a fact begins: with "Tom is a " for a person, with "Every lempus is a " for a concept."""
    return f"{name} is a " if is_person(name) else f"Every {name} is a "


def fact(names: list[str] | dict[int, str], a: int, b: int) -> str:
    """The sentence of an edge a -> b."""
    return f"{subject(names[a])}{names[b]}."


def chain_of(row: dict) -> list[int]:
    """The nodes of a row's steps, root first."""
    objects = [step.removesuffix(".").split()[-1] for step in row["steps"]]
    return [row["root"], *map(row["idx_to_symbol"].index, objects)]


def tell(row: dict, rng: random.Random, names: list[str] | None = None, edges: list | None = None) -> dict:
    """The row put in words: the facts of edges in their order, or all facts shuffled; the two options are shuffled."""
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


def told_by(question: str) -> tuple[dict | None, str]:
    """The graph that a question tells in tell()'s words, with its two options in their order; or None, and why not."""
    *facts, asked = re.split(r"(?<=\.) ", question)
    asks = ASKED.fullmatch(asked)
    found = [FACT.fullmatch(text) for text in facts]
    if not all(found):
        return (
            None,
            f"{facts[found.index(None)][:80]!r} is no fact like 'Tom is a lempus.' or 'Every lempus is a rempus.'",
        )
    if not asks:
        return None, f"{asked[:80]!r} is no question like 'Is Tom a lempus or rempus?'"
    if not is_person(asks[1]):
        return None, f"it asks about {asks[1]!r}, but a person's name begins with a capital letter"
    for text, match in zip(facts, found, strict=True):
        if text != f"{subject(match[1])}{match[2]}.":
            return None, f"{text[:80]!r}: facts about a person begin with the name, and all others with 'Every'"
    for name in [*(match[2] for match in found), asks[2], asks[3]]:
        if is_person(name):
            return None, f"{name!r} is what somebody is, but begins with a capital letter as a person does"
    names = list(dict.fromkeys(name for match in found for name in match.groups()))
    number = {name: v for v, name in enumerate(names)}
    for name in asks.groups():
        if name not in number:
            return None, f"no fact names {name!r}"
    edges = [[number[match[1]], number[match[2]]] for match in found]
    root, *options = map(number.get, asks.groups())
    return dict(idx_to_symbol=names, edges=edges, root=root, options=options), ""


def read(row: dict) -> dict:
    """The row with the graph that its words tell, whatever graph it came with; without one if tell() writes others."""
    row = {field: value for field, value in row.items() if field not in FIELDS}
    told, _ = told_by(row["question"])
    if not told:
        return row
    reached = distances(told["edges"], told["root"])
    target, neg_target = sorted(told.pop("options"), key=lambda v: v not in reached)
    if neg_target in reached or row["answer"] != fact(told["idx_to_symbol"], told["root"], target):
        return row
    told = row | told | dict(target=target, neg_target=neg_target)
    if not row["steps"] or not judge_chain(row["steps"], told, hidden=False).endswith("path"):
        return row
    return told


def why_untold(row: dict) -> str:
    """What in a row's words read() cannot take for a problem of ProsQA."""
    solved, why = solve(row["question"])
    if not solved:
        return why
    if not row["steps"]:
        return "it has no steps"
    if row["answer"] != solved["answer"]:
        return f"the answer is {row['answer'][:80]!r}, but by its facts {solved['answer']!r}"
    return "its steps are no chain of its facts that leads to the answer"


def solve(question: str) -> tuple[dict | None, str]:
    """The problem that a question asks, with a shortest chain and the answer; or None, and why it has none."""
    told, why = told_by(question)
    if not told:
        return None, why
    names, root, options = told["idx_to_symbol"], told["root"], told.pop("options")
    reached = distances(told["edges"], root)
    true = [v for v in options if v in reached]
    if len(true) != 1:
        how_many = "both options" if true else "none of the two options"
        return None, f"{names[root]} reaches {how_many}: a question needs exactly one"
    (target,) = true
    (neg_target,) = [v for v in options if v != target]
    path = shortest_path(told["edges"], reached, target, random.Random(0))
    steps = [fact(names, *edge) for edge in itertools.pairwise(path)]
    row = dict(question=question, steps=steps, answer=fact(names, root, target))
    return row | told | dict(target=target, neg_target=neg_target), ""


def distances(edges: list[list[int]], *roots: int) -> dict[int, int]:
    """The number of steps from the nearest root to every node that can be reached, nearest first.

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


def shortest_path(edges: list[list[int]], distance: dict[int, int], target: int, rng: random.Random) -> list[int]:
    """A random shortest path to target, all equally likely; distance is from the root."""
    before = {v: [] for v in distance}  # the nodes one step nearer that lead there
    for a, b in edges:
        if a in distance and distance[a] == distance[b] - 1:
            before[b].append(a)
    n_paths = {}
    for v in distance:  # nearest first
        n_paths[v] = sum(n_paths[a] for a in before[v]) or 1
    path = [target]
    while options := before[path[0]]:  # only the root has none
        path = rng.choices(options, [n_paths[a] for a in options]) + path
    return path


def others_than(row: dict, reached: dict[int, int]) -> list[int]:
    """The concepts that are not among the nodes reached."""
    return [v for v, name in enumerate(row["idx_to_symbol"]) if v not in reached and not is_person(name)]


def askers(row: dict) -> dict[int, dict[int, int]]:
    """The persons a question can be about, who reach some concepts but not all -> steps to the nodes they reach."""
    found = {root: distances(row["edges"], root) for root in persons_of(row)}
    return {root: reached for root, reached in found.items() if len(reached) > 1 and others_than(row, reached)}


def ask(row: dict, people: dict[int, dict[int, int]], rng: random.Random, least: int) -> dict:
    """The row with a random question of `least` steps or more, to be worded by tell(); unchanged if there is none."""
    fit = [(root, reached) for root, reached in people.items() if max(reached.values()) >= least]
    if not fit:
        return row
    root, reached = rng.choice(fit)
    n_steps = rng.randint(least, max(reached.values()))
    target = rng.choice([v for v, d in reached.items() if d == n_steps])
    options = others_than(row, reached)
    if rng.random() < 0.5:  # a harder false option: the true one is mostly farther from persons
        far = distances(row["edges"], *persons_of(row))
        most = max(far.get(v, 0) for v in options)
        options = [v for v in options if far.get(v, 0) == most]
    asked = {"root": root, "target": target, "neg_target": rng.choice(options)}
    path = itertools.pairwise(shortest_path(row["edges"], reached, target, rng))
    return row | asked | {"steps": [fact(row["idx_to_symbol"], *edge) for edge in path]}


def rechain(row: dict, people: dict[int, dict[int, int]], rng: random.Random) -> dict:
    """The row with a random one of its shortest chains, if its own is one of them: no other one is more right."""
    reached = people.get(row["root"]) or distances(row["edges"], row["root"])
    if len(row["steps"]) != reached[row["target"]]:
        return row
    path = shortest_path(row["edges"], reached, row["target"], rng)
    return row | {"steps": [fact(row["idx_to_symbol"], *edge) for edge in itertools.pairwise(path)]}


def both_chains(row: dict, people: dict[int, dict[int, int]], rng: random.Random) -> set[tuple[int, int]]:
    """The edges of the row's chain, and of another person's chain to the false option: so both options have one."""
    edges, false = set(itertools.pairwise(chain_of(row))), row["neg_target"]
    able = [reached for root, reached in people.items() if root != row["root"] and false in reached]
    if able:
        edges |= set(itertools.pairwise(shortest_path(row["edges"], rng.choice(able), false, rng)))
    return edges


def twin(row: dict) -> dict | None:
    """The row asked about the nearest person who reaches the false option but not the true one; None if nobody does."""
    names, true, false = row["idx_to_symbol"], row["target"], row["neg_target"]
    others = {v: reached for v, reached in askers(row).items() if false in reached and true not in reached}
    start, asked, options = row["question"].rpartition(f"Is {names[row['root']]} a ")
    if not others or not asked:
        return None
    root = min(others, key=lambda v: others[v][false])
    path = shortest_path(row["edges"], others[root], false, random.Random(0))
    told = {"question": f"{start}Is {names[root]} a {options}", "answer": fact(names, root, false)}
    told["steps"] = [fact(names, *edge) for edge in itertools.pairwise(path)]
    return row | told | {"root": root, "target": false, "neg_target": true}


def judge_chain(steps: list[str], row: dict, hidden: bool) -> str:
    """The verdict [Hao24 5.1] on a chain; if hidden, its unwritten first steps count as a shortest path."""
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
    """The score that each rule without a path search gives an option. It picks the option with the higher score."""
    above = distances([[b, a] for a, b in row["edges"]], option)  # steps from every ancestor
    persons = {v: above[v] for v in persons_of(row) if v in above}
    return {
        "no other person within 2 steps back": all(d > 2 or v == row["root"] for v, d in persons.items()),
        "more ancestors": len(above),
        "farther from the nearest person": min(persons.values(), default=math.inf),
    }


def rule_points(row: dict) -> dict[str, float]:
    """The probability that each rule of rule_scores() is right: 1, 0, or 0.5 where equal scores force a guess."""
    right, wrong = rule_scores(row, row["target"]), rule_scores(row, row["neg_target"])
    return {rule: 0.5 if right[rule] == wrong[rule] else float(right[rule] > wrong[rule]) for rule in right}
