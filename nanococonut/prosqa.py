"""ProsQA: graphs of made-up concepts, told in words, and questions that take a search to answer.

A node is a number, its name is a word, and an edge [a, b] is the fact that a is a b:

    graph      Tom -> lempus -> rempus       Max -> impus
                         `----> zumpus

    row        idx_to_symbol  ["Tom", "Max", "lempus", "rempus", "impus", "zumpus"]
               edges          [[0, 2], [2, 3], [1, 4], [2, 5]]
               root           0     the person asked about
               target         3     the option that root reaches
               neg_target     4     the option that it does not reach

    its words  question       Every lempus is a zumpus. Tom is a lempus. Max is a impus.
                              Every lempus is a rempus. Is Tom a impus or rempus?
               steps          Tom is a lempus.   Every lempus is a rempus.
               answer         Tom is a rempus.

draw() makes the graph and the question [Hao24 A.2], and tell() puts them in words:

    edges      the graph grows from two roots, 0 and 1; each new node draws its parents among the
               nodes before it. Nodes with parents are concepts, and all others are persons
    own        the leaves that one of the two roots reaches and the other one does not
    root       the root with the deeper own leaf (2 steps to 3 and 5, and 1 to 4); a tie is broken
               at random
    target     one of its own deepest leaves; neg_target is any of the other one's own leaves
    fair       mirror() makes the surroundings of both options alike

The algorithm is fitted to the released files; tests/test_prepare.py compares. read() goes the other
way, from the words to the graph.
"""

import itertools
import math
import random
import re

from nanococonut import scoring

# A name has letters of any script, digits, "_" and "-", and does not begin with a digit. Letters
# are given as ranges, because Python's engine and tiktoken's disagree about \w outside ASCII.
LETTERS = r"A-Za-z_\u00aa-\u167f\u1681-\u1fff\u2c00-\u2dff\u3040-\ud7ff\uf900-\ufaff"
LETTERS += r"\U00010000-\U0001efff\U00020000-\U0003ffff"
NAME = rf"[{LETTERS}][{LETTERS}0-9]*(?:-[{LETTERS}0-9]+)*"
ASKED = re.compile(rf"Is ({NAME}) a ({NAME}) or ({NAME})\?")
FACT = re.compile(rf"(?:Every )?({NAME}) is a ({NAME})\.")
PERSONS = """
    Alex Bob Carol Davis Eva Fae Gabriel Jack Max Oliver Polly Rex Sally Sam Stella Tom Wren
""".split()
CONCEPTS = """
    bompus boompus brimpus chorpus dumpus felpus fompus gerpus gorpus grimpus gwompus hilpus impus
    jelpus jompus kerpus lempus lorpus numpus quimpus rempus rompus rorpus scrompus shumpus sterpus
    storpus terpus timpus tumpus vumpus worpus wumpus yerpus yimpus yumpus zhorpus zumpus
""".split()
VERDICTS = """
    correct_path longer_path hallucination wrong_target correct_label incorrect_label
""".split()
FIELDS = ("idx_to_symbol", "edges", "root", "target", "neg_target")


# Words


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
    used = set()
    for row in rows:
        if is_prosqa(row):
            used.update(row["idx_to_symbol"])
    persons = [name for name in sorted(used) if is_person(name)]
    concepts = [name for name in sorted(used) if not is_person(name)]
    return persons, concepts


def subject(name: str) -> str:
    """How a fact begins: with "Tom is a " for a person, with "Every lempus is a " for a concept."""
    return f"{name} is a " if is_person(name) else f"Every {name} is a "


def fact(names: list[str] | dict[int, str], a: int, b: int) -> str:
    """The sentence of an edge a -> b."""
    return f"{subject(names[a])}{names[b]}."


def facts_along(names: list[str], path: list[int]) -> list[str]:
    """The sentences of the edges of a path: the steps of a chain."""
    return [fact(names, a, b) for a, b in itertools.pairwise(path)]


def chain_of(row: dict) -> list[int]:
    """The nodes of a row's steps, root first."""
    objects = [step.removesuffix(".").split()[-1] for step in row["steps"]]
    return [row["root"], *map(row["idx_to_symbol"].index, objects)]


def tell(
    row: dict, rng: random.Random, names: list[str] | None = None, edges: list | None = None
) -> dict:
    """The row put in words. The two options are shuffled.

    names  of the nodes, instead of the row's own
    edges  whose facts are told, in this order; without them all facts are told, shuffled
    """
    path = chain_of(row)
    names = names or row["idx_to_symbol"]
    if edges is None:
        edges = rng.sample(row["edges"], len(row["edges"]))
    facts = [fact(names, a, b) for a, b in edges]
    one, other = rng.sample([names[row["target"]], names[row["neg_target"]]], 2)
    return row | {
        "question": " ".join([*facts, f"Is {names[path[0]]} a {one} or {other}?"]),
        "steps": facts_along(names, path),
        "answer": fact(names, path[0], path[-1]),
        "idx_to_symbol": names,
    }


def told_by(question: str) -> tuple[dict | None, str]:
    """The graph that a question tells in tell()'s words, and the root; or None, and why not.

    The two options are nodes too, in their order: which is the target is not known here.
    """
    *facts, asked = re.split(r"(?<=\.) ", question)
    matches = [FACT.fullmatch(text) for text in facts]
    for text, match in zip(facts, matches, strict=True):
        if not match:
            like = "'Tom is a lempus.' or 'Every lempus is a rempus.'"
            return None, f"{text[:80]!r} is no fact like {like}"
    asks = ASKED.fullmatch(asked)
    if not asks:
        return None, f"{asked[:80]!r} is no question like 'Is Tom a lempus or rempus?'"
    why = wrong_name(matches, asks)
    if why:
        return None, why
    names = list(dict.fromkeys(itertools.chain.from_iterable(m.groups() for m in matches)))
    number = {name: v for v, name in enumerate(names)}
    for name in asks.groups():
        if name not in number:
            return None, f"no fact names {name!r}"
    edges = [[number[match[1]], number[match[2]]] for match in matches]
    root, *options = [number[name] for name in asks.groups()]
    return dict(idx_to_symbol=names, edges=edges, root=root, options=options), ""


def wrong_name(facts: list[re.Match], asks: re.Match) -> str:
    """Which name is of the wrong kind, a person's or a concept's, and the rule; "" if none is."""
    person, *options = asks.groups()
    if not is_person(person):
        return f"it asks about {person!r}, but a person's name begins with a capital letter"
    for match in facts:
        if match[0] != f"{subject(match[1])}{match[2]}.":
            rule = "facts about a person begin with the name, and all others with 'Every'"
            return f"{match[0][:80]!r}: {rule}"
    for name in [*(match[2] for match in facts), *options]:
        if is_person(name):
            rule = "is what somebody is, but begins with a capital letter as a person does"
            return f"{name!r} {rule}"
    return ""


def read(row: dict) -> dict:
    """The row with the graph that its words tell, whatever graph it came with.

    It has none if the words are not those of tell(), or do not prove the answer.
    """
    row = {field: value for field, value in row.items() if field not in FIELDS}
    graph, _ = told_by(row["question"])
    if not graph:
        return row
    root, options = graph["root"], graph.pop("options")
    reached = distances(graph["edges"], root)
    true = [v for v in options if v in reached]
    false = [v for v in options if v not in reached]
    if len(true) != 1 or row["answer"] != fact(graph["idx_to_symbol"], root, true[0]):
        return row
    found = row | graph | {"target": true[0], "neg_target": false[0]}
    if not row["steps"]:
        return row
    is_proof = judge_chain(row["steps"], found, hidden=False) in ("correct_path", "longer_path")
    return found if is_proof else row


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
    """The problem that a question asks, with a shortest chain and the answer; or None, and why."""
    graph, why = told_by(question)
    if not graph:
        return None, why
    names, root, options = graph["idx_to_symbol"], graph["root"], graph.pop("options")
    reached = distances(graph["edges"], root)
    true = [v for v in options if v in reached]
    false = [v for v in options if v not in reached]
    if len(true) != 1:
        how_many = "both options" if true else "none of the two options"
        return None, f"{names[root]} reaches {how_many}: a question needs exactly one"
    path = shortest_path(graph["edges"], reached, true[0], random.Random(0))
    words = {
        "question": question,
        "steps": facts_along(names, path),
        "answer": fact(names, root, true[0]),
    }
    return words | graph | {"target": true[0], "neg_target": false[0]}, ""


# Paths


def distances(edges: list[list[int]], *roots: int) -> dict[int, int]:
    """The steps from the nearest root to each node that can be reached, nearest first.

    >>> distances([[0, 2], [2, 3], [0, 3], [1, 4]], 0)
    {0: 0, 2: 1, 3: 1}
    """
    children = {}
    for a, b in edges:
        children.setdefault(a, []).append(b)
    distance = dict.fromkeys(roots, 0)
    queue = list(roots)
    for a in queue:  # grows while it is read
        new = [b for b in children.get(a, ()) if b not in distance]
        distance |= dict.fromkeys(new, distance[a] + 1)
        queue += new
    return distance


def shortest_path(
    edges: list[list[int]], distance: dict[int, int], target: int, rng: random.Random
) -> list[int]:
    """A random shortest path to target, all equally likely; distance is from the root."""
    before = {v: [] for v in distance}  # the nodes one step nearer that lead there
    for a, b in edges:
        if a in distance and distance[a] == distance[b] - 1:
            before[b].append(a)
    n_paths = {}  # shortest paths from the root to each node
    for v in distance:  # nearest first
        n_paths[v] = sum(n_paths[a] for a in before[v]) if before[v] else 1
    path = [target]
    while before[path[0]]:  # only the root has none
        options = before[path[0]]
        path = rng.choices(options, [n_paths[a] for a in options]) + path
    return path


# Drawing a problem


def draw(
    rng: random.Random, n_nodes: int, min_hops: int, max_hops: int, fair: bool, parents: float
) -> tuple[dict, str] | None:
    """A problem for tell() to put in words, and its identity; None if it does not fit.

    The identity ignores names. A problem does not fit if its chain has not the wanted length, if
    its graph cannot be mirrored, or if there are too few names.

    parents  the mean number of parents that a node draws
    """
    edges = draw_graph(n_nodes, parents, rng)
    ends = draw_ends(edges, min_hops, max_hops, rng)
    if not ends:
        return None
    root, target, neg_target = ends
    if fair:
        mirrored = mirror(edges, root, target, n_nodes, rng)
        if not mirrored:
            return None
        edges, root, target, neg_target = mirrored
    # Nodes without an edge are dropped, and the others renumbered.
    used = sorted(set(itertools.chain.from_iterable(edges)))
    number = {v: i for i, v in enumerate(used)}
    edges = [[number[a], number[b]] for a, b in edges]
    root, target, neg_target = number[root], number[target], number[neg_target]
    names = draw_names(edges, len(used), rng)
    if not names:
        return None
    path = shortest_path(edges, distances(edges, root), target, rng)
    row = {
        "question": "",
        "answer": "",
        "steps": facts_along(names, path),
        "idx_to_symbol": names,
        "edges": edges,
        "root": root,
        "target": target,
        "neg_target": neg_target,
    }
    return row, str((edges, root, target, neg_target))


def draw_graph(n_nodes: int, mean_parents: float, rng: random.Random) -> list[list[int]]:
    """Edges of a random graph grown from two roots, 0 and 1. Every edge goes to a higher node."""
    # Differs from the paper: thresholds and candidates of the printed Algorithm 1 do not give the
    # released graphs.
    edges = []
    reached_by = [{0}, {1}]  # for each node, which of the two roots reach it
    depth = [0, 0]  # of each node: a node without parents has 0
    for node in range(2, n_nodes):
        candidates = draw_candidates(reached_by, rng)
        n_parents = min(draw_poisson(mean_parents, rng), len(candidates))
        # Weighted sampling without replacement (Efraimidis and Spirakis 2006): the largest keys
        # win, and deeper nodes are likelier parents.
        keys = {v: rng.random() ** (1 / (1.5 * depth[v] + 1)) for v in candidates}
        ranked = sorted(candidates, key=keys.get)
        parents = ranked[len(ranked) - n_parents :]
        edges += [[parent, node] for parent in parents]
        reached_by.append(set().union(*(reached_by[parent] for parent in parents)))
        if parents:
            depth.append(1 + min(depth[parent] for parent in parents))
        else:
            depth.append(0)
    return edges


def draw_candidates(reached_by: list[set[int]], rng: random.Random) -> list[int]:
    """The nodes that a new node may have as parents: those of one root alone, or all."""
    r = rng.random()
    if r <= 0.35:
        return [v for v, roots in enumerate(reached_by) if roots == {0}]
    if r <= 0.80:
        return [v for v, roots in enumerate(reached_by) if roots == {1}]
    return list(range(len(reached_by)))


def draw_poisson(mean: float, rng: random.Random) -> int:
    """A Poisson sample, by Knuth's method."""
    n = 0
    product = rng.random()
    while product > math.exp(-mean):
        n += 1
        product *= rng.random()
    return n


def draw_ends(
    edges: list[list[int]], min_hops: int, max_hops: int, rng: random.Random
) -> tuple[int, int, int] | None:
    """Root, target and neg_target of a question about a graph.

    None if a root has no leaves of its own, or if the chain has not the wanted length.
    """
    leaves = {b for _, b in edges} - {a for a, _ in edges}
    distance = [distances(edges, 0), distances(edges, 1)]
    own = [
        {v: d for v, d in distance[0].items() if v in leaves and v not in distance[1]},
        {v: d for v, d in distance[1].items() if v in leaves and v not in distance[0]},
    ]
    if not own[0] or not own[1]:
        return None
    deepest = [max(own[0].values()), max(own[1].values())]
    root = deepest.index(max(deepest))
    if deepest[0] == deepest[1]:
        root = rng.randrange(2)
    if not min_hops <= deepest[root] <= max_hops:
        return None
    target = rng.choice([v for v, d in own[root].items() if d == deepest[root]])
    return root, target, rng.choice(list(own[1 - root]))


def mirror(
    edges: list[list[int]], root: int, target: int, n_nodes: int, rng: random.Random
) -> tuple | None:
    """A symmetric graph without shortcuts: its edges, root, target and neg_target.

    The target's ancestors are copied for the other person, and every other edge that leaves an
    ancestor also leaves its copy. So the graph is unchanged when the persons and the options are
    swapped: a rule that looks at a person and an option, but not for a path between them, cannot
    tell the options apart. Which person is asked about is random. Returns None if another person is
    an ancestor of the target, or if there are too few nodes.

    >>> mirror([[0, 2], [2, 3], [0, 4]], root=0, target=3, n_nodes=7, rng=random.Random(0))
    ([[0, 2], [1, 3], [0, 4], [1, 4], [2, 5], [3, 6]], 1, 6, 5)
    """
    parents = {a for a, _ in edges}
    children = {b for _, b in edges}
    # All that lead to the target, and the target itself, which is last: edges ascend.
    originals = sorted(distances([[b, a] for a, b in edges], target))
    others = [v for v in range(2, n_nodes) if v not in originals]
    leaves = [v for v in others if v not in parents]
    if not children.issuperset(originals[1:]):
        return None
    if len(others) < len(originals) - 1 or not leaves:
        return None
    neg_target = rng.choice(leaves)
    others.remove(neg_target)
    copies = [1 - root, *sorted(rng.sample(others, len(originals) - 2)), neg_target]
    edges = mirrored_edges(edges, originals, copies)
    counterparts = {*originals, *copies}
    unpaired = [v for v in range(2, n_nodes) if v not in counterparts]
    number = draw_numbers(edges, [*originals[1:], *copies[1:], *unpaired], rng)
    (root, target), (_, neg_target) = rng.sample([(root, target), (1 - root, neg_target)], 2)
    edges = [[number[a], number[b]] for a, b in edges]
    edges.sort(key=lambda edge: (edge[1], edge[0]))
    return edges, root, number[target], number[neg_target]


def mirrored_edges(
    edges: list[list[int]], originals: list[int], copies: list[int]
) -> list[list[int]]:
    """The edges among the originals, the same among the copies, and from both to all other nodes.

    Edges from elsewhere to a copy are left out, because no such edge leads to an original.
    """
    counterpart = dict(zip(originals + copies, copies + originals, strict=True))
    mirrored = [[a, b] for a, b in edges if b in originals]
    mirrored += [[counterpart[a], counterpart[b]] for a, b in mirrored]
    for a, b in edges:
        if b in counterpart:
            continue
        for parent in sorted({a, counterpart.get(a, a)}):
            if [parent, b] not in mirrored:
                mirrored.append([parent, b])
    return mirrored


def draw_numbers(edges: list[list[int]], nodes: list[int], rng: random.Random) -> dict[int, int]:
    """A random new number for each node, higher than those of its parents.

    The nodes are given each after its parents, without 0 and 1: the two roots keep their numbers.
    """
    place = {0: 0.0, 1: 0.0}
    for v in nodes:
        places_of_parents = [place[a] for a, b in edges if b == v]
        place[v] = rng.random() + max(places_of_parents, default=0.0)
    return {v: i for i, v in enumerate(sorted(place, key=place.get))}


def draw_names(edges: list[list[int]], n_nodes: int, rng: random.Random) -> list[str] | None:
    """Random names of the nodes, concepts' for those with parents; None if there are too few."""
    children = {b for _, b in edges}
    n_persons = n_nodes - len(children)
    if n_persons > len(PERSONS) or len(children) > len(CONCEPTS):
        return None
    persons = iter(rng.sample(PERSONS, n_persons))
    concepts = iter(rng.sample(CONCEPTS, len(children)))
    return [next(concepts if v in children else persons) for v in range(n_nodes)]


# Augmentation: other questions about the same graph, and other words for it


def unreached_concepts(row: dict, reached: dict[int, int]) -> list[int]:
    """The concepts that are not among the nodes reached."""
    names = row["idx_to_symbol"]
    return [v for v, name in enumerate(names) if v not in reached and not is_person(name)]


def askers(row: dict) -> dict[int, dict[int, int]]:
    """The persons a question can be about -> the steps to each node that they reach.

    These are the persons who reach some concepts, but not all.
    """
    found = {}
    for root in persons_of(row):
        reached = distances(row["edges"], root)
        if len(reached) > 1 and unreached_concepts(row, reached):
            found[root] = reached
    return found


def ask(row: dict, people: dict[int, dict[int, int]], rng: random.Random, least: int) -> dict:
    """The row with a random question of `least` steps or more, not yet in words.

    people is askers(row). The row is unchanged if there is no such question.
    """
    far_enough = [root for root, reached in people.items() if max(reached.values()) >= least]
    if not far_enough:
        return row
    root = rng.choice(far_enough)
    reached = people[root]
    n_steps = rng.randint(least, max(reached.values()))
    target = rng.choice([v for v, d in reached.items() if d == n_steps])
    options = unreached_concepts(row, reached)
    if rng.random() < 0.5:
        # A harder false option: the true one is mostly farther from persons too.
        depth = distances(row["edges"], *persons_of(row))
        deepest = max(depth.get(v, 0) for v in options)
        options = [v for v in options if depth.get(v, 0) == deepest]
    ends = {"root": root, "target": target, "neg_target": rng.choice(options)}
    path = shortest_path(row["edges"], reached, target, rng)
    return row | ends | {"steps": facts_along(row["idx_to_symbol"], path)}


def rechain(row: dict, people: dict[int, dict[int, int]], rng: random.Random) -> dict:
    """The row with a random one of its shortest chains, if its own is one: all are as right."""
    reached = people.get(row["root"]) or distances(row["edges"], row["root"])
    if len(row["steps"]) != reached[row["target"]]:
        return row
    path = shortest_path(row["edges"], reached, row["target"], rng)
    return row | {"steps": facts_along(row["idx_to_symbol"], path)}


def both_chains(
    row: dict, people: dict[int, dict[int, int]], rng: random.Random
) -> set[tuple[int, int]]:
    """The edges of the row's chain, and of another person's chain to the false option.

    With both told, neither option is the only one to which a chain leads.
    """
    edges = set(itertools.pairwise(chain_of(row)))
    false = row["neg_target"]
    others = [reached for root, reached in people.items() if root != row["root"]]
    others = [reached for reached in others if false in reached]
    if others:
        path = shortest_path(row["edges"], rng.choice(others), false, rng)
        edges |= set(itertools.pairwise(path))
    return edges


def rename(row: dict, pool: tuple[list[str], list[str]], rng: random.Random) -> list[str]:
    """Random names out of a pool for the nodes of a row, persons' for persons."""
    n_persons = len(persons_of(row))
    n_concepts = len(row["idx_to_symbol"]) - n_persons
    persons = iter(rng.sample(pool[0], n_persons))
    concepts = iter(rng.sample(pool[1], n_concepts))
    return [next(persons if is_person(name) else concepts) for name in row["idx_to_symbol"]]


def augment(
    row: dict,
    people: dict[int, dict[int, int]],
    pool: tuple[list[str], list[str]],
    rng: random.Random,
    questions: int = 1,
    reask: float = 0.0,
    least: int = 3,
    keep: float = 1.0,
) -> list[dict]:
    """The row with new names and a new order of its facts, once for each question about it.

    people     askers() of the row
    pool       names of persons and of concepts to choose from
    questions  how many questions are asked, with the same facts and names
    reask      probability that a question is new, with a chain of `least` steps or more
    keep       probability that a fact off the chains is told
    """
    # Differs from the paper: its texts are fixed, but its weights are pretrained. From scratch,
    # 17,886 texts are few.
    is_new = [reask > 0 and rng.random() < reask for _ in range(questions)]
    rows = [ask(row, people, rng, least) if new else rechain(row, people, rng) for new in is_new]
    names = rename(row, pool, rng)
    needed = set()
    if keep < 1:
        for asked in rows:
            needed |= both_chains(asked, people, rng)
    edges = []
    for a, b in rng.sample(row["edges"], len(row["edges"])):
        if keep == 1 or (a, b) in needed or rng.random() < keep:
            edges.append((a, b))
    return [tell(asked, rng, names, edges) for asked in rows]


# Twins: the same facts and options with the other answer


def twin(row: dict) -> dict | None:
    """The row asked about the nearest person who reaches the false option, but not the true one.

    None if there is no such person.
    """
    names, true, false = row["idx_to_symbol"], row["target"], row["neg_target"]
    others = {}
    for person, reached in askers(row).items():
        if false in reached and true not in reached:
            others[person] = reached
    start, asked, options = row["question"].rpartition(f"Is {names[row['root']]} a ")
    if not others or not asked:
        return None
    root = min(others, key=lambda person: others[person][false])
    path = shortest_path(row["edges"], others[root], false, random.Random(0))
    return row | {
        "question": f"{start}Is {names[root]} a {options}",
        "answer": fact(names, root, false),
        "steps": facts_along(names, path),
        "root": root,
        "target": false,
        "neg_target": true,
    }


# Rules without a search: what a model could answer by instead of following a path


def rule_scores(row: dict, option: int) -> dict[str, float]:
    """The score that each rule gives an option. It picks the option with the higher score."""
    above = distances([[b, a] for a, b in row["edges"]], option)  # steps from every ancestor
    persons = {v: above[v] for v in persons_of(row) if v in above}
    near_others = [v for v, d in persons.items() if d <= 2 and v != row["root"]]
    return {
        "no other person within 2 steps back": 0 if near_others else 1,
        "more ancestors": len(above),
        "farther from the nearest person": min(persons.values(), default=math.inf),
    }


def chance_to_pick(right: float, wrong: float) -> float:
    """The probability that the option with score right is picked; equal scores force a guess."""
    if right == wrong:
        return 0.5
    return 1.0 if right > wrong else 0.0


def rule_points(row: dict) -> dict[str, float]:
    """The probability that each rule of rule_scores() is right: 1, 0, or 0.5."""
    right = rule_scores(row, row["target"])
    wrong = rule_scores(row, row["neg_target"])
    return {rule: chance_to_pick(right[rule], wrong[rule]) for rule in right}


def is_fair(row: dict) -> bool:
    """Whether each rule has to guess."""
    return set(rule_points(row).values()) == {0.5}


# Verdicts on what is written


def judge_chain(steps: list[str], row: dict, hidden: bool) -> str:
    """The verdict [Hao24 5.1] on a chain.

    If hidden, first steps may be missing: those that were not written count as a shortest path.
    """
    edge_of = {fact(row["idx_to_symbol"], a, b): (a, b) for a, b in row["edges"]}
    edges = [edge_of.get(step) for step in steps]
    if not all(edges):
        return "hallucination"
    for (_, end), (start, _) in itertools.pairwise(edges):
        if end != start:
            return "hallucination"
    first, last = edges[0][0], edges[-1][1]
    from_root = distances(row["edges"], row["root"])
    may_begin = first in from_root if hidden else first == row["root"]
    if not may_begin:
        return "hallucination"
    if last != row["target"]:
        return "wrong_target"
    n_steps = from_root[first] + len(edges)
    return "correct_path" if n_steps == from_root[row["target"]] else "longer_path"


def verdict(text: str, row: dict, hidden: bool) -> str:
    """Which of the six VERDICTS [Hao24 5.1] a text gets.

    Its steps decide, by judge_chain(), and if there are none its answer does. hidden says whether
    thoughts stand before the text: then it may begin in the middle of a hidden step, and after more
    thoughts than the chain has steps it is the answer without its mark.
    """
    chain, mark, _ = text.rpartition("###")
    if not mark:
        begins_as_answer = text.startswith(subject(row["idx_to_symbol"][row["root"]]))
        is_answer = hidden and begins_as_answer and "\n" not in text
        chain = "" if is_answer else text
    steps = chain.strip().split("\n")
    if hidden and not steps[0][:1].isupper():
        steps = steps[1:]
    if any(steps):
        return judge_chain(steps, row, hidden)
    return "correct_label" if scoring.is_right(text, row) else "incorrect_label"
