"""ProsQA with --fair=true: who finds no way from the person to an option is right half the time."""

import statistics
from collections import Counter, defaultdict

import pytest

import prepare
from nanococonut import evaluate, prosqa

SIZES = [
    {},  # the released size
    {"n_nodes": 10, "max_hops": 4},
    {"n_nodes": 12, "max_hops": 4},
    {"n_nodes": 14, "max_hops": 5},
    {"n_nodes": 16, "max_hops": 5},  # the quick start's
]


def problems(n, **options):
    c = prepare.PrepareConfig(train=n, valid=1, test=1, seed=1, fair=True, **options)
    return prepare.generate(c)["train"]


def count_walks(parents, v):
    """How many ways lead from any person to v, and how long the longest is."""
    if not parents[v]:
        return 1, 0
    found = [count_walks(parents, a) for a in parents[v]]
    return sum(n for n, _ in found), 1 + max(longest for _, longest in found)


class Look:
    """What can be seen of a problem's nodes without following a way from the person asked."""

    def __init__(self, row):
        self.row, self.names = row, row["idx_to_symbol"]
        self.parents, self.children = defaultdict(set), defaultdict(set)
        for a, b in row["edges"]:
            self.parents[b].add(a)
            self.children[a].add(b)
        self.persons = [v for v, name in enumerate(self.names) if prosqa.is_person(name)]
        self.words = row["question"].rpartition(" Is ")[0].replace(".", "").split()

    def near(self, v):
        """The nodes one and two steps back, and the other children of the parents."""
        grandparents = set().union(*(self.parents[a] for a in self.parents[v]))
        siblings = set().union(*(self.children[a] for a in self.parents[v])) - {v}
        return self.parents[v], grandparents, siblings

    def of_any(self, v):
        """Numbers that any node has, persons too."""
        places = [i for i, word in enumerate(self.words) if word == self.names[v]]
        below = prosqa.distances(self.row["edges"], v)
        grandchildren = {u for child in self.children[v] for u in self.children[child]}
        return {
            "id": v,
            "children": len(self.children[v]),
            "grandchildren": len(grandchildren),
            "descendants": len(below),
            "deepest descendant": max(below.values()),
            "all distances to descendants": sum(below.values()),
            "mentions": len(places),
            "first mention": places[0],
            "last mention": places[-1],
            "mean mention": statistics.mean(places),
            "name": self.names[v],
            "length of the name": len(self.names[v]),
        }

    def of_option(self, v):
        """Numbers that an option has."""
        parents, grandparents, siblings = self.near(v)
        above = self.above(v)
        persons = {p: d for p, d in above.items() if p in self.persons}
        n_walks, longest = count_walks(self.parents, v)
        asked = " ".join(self.row["question"].rpartition(" Is ")[2].rstrip("?").split())
        found = self.of_any(v) | {
            "parents": len(parents),
            "grandparents": len(grandparents),
            "siblings": len(siblings),
            "ancestors": len(above),
            "parents' mentions": sum(self.words.count(self.names[a]) for a in parents),
            "parents' children": sum(len(self.children[a]) for a in parents),
            "grandparents' children": sum(len(self.children[a]) for a in grandparents),
            "parents' first mention": min(self.words.index(self.names[a]) for a in parents),
            "siblings' parents": sum(len(self.parents[u]) for u in siblings),
            "persons above": len(persons),
            "nearest person": min(persons.values()),
            "farthest person": max(persons.values()),
            "mean distance of persons": statistics.mean(persons.values()),
            "walks from persons": n_walks,
            "longest walk": longest,
            "named first": asked.index(self.names[v]),
            "ancestors' children": len({u for a in above for u in self.children[a]}),
            "ancestors' mentions": sum(len(self.children[a]) + len(self.parents[a]) for a in above),
        }
        others = [d for p, d in persons.items() if p != self.row["root"]]
        for k in (1, 2):  # three steps back are as far as the shortest way is long
            found[f"persons within {k} steps back"] = sum(d <= k for d in persons.values())
            found[f"other persons within {k} steps back"] = sum(d <= k for d in others)
            found[f"ancestors within {k} steps back"] = sum(d <= k for d in above.values())
        return found

    def above(self, v):
        return prosqa.distances([[b, a] for a, b in self.row["edges"]], v)


def sign(a, b):
    return (a > b) - (a < b)


def tried(rows):
    """rule -> how often it is right where it takes the option that has more; a tie is a half.

    There are three kinds of rules:
    "more X" looks at the options alone;
    "like the person: X" takes the option whose X is closer to that of the person asked;
    "as the person's X: more Y" takes the option with more Y where the person asked has more X than
    the mean of the other persons, and that with less where less.
    """
    points = Counter()
    for row in rows:
        look = Look(row)
        right, wrong = look.of_option(row["target"]), look.of_option(row["neg_target"])
        asked = look.of_any(row["root"])
        others = [look.of_any(v) for v in look.persons if v != row["root"]]
        more = {y: sign(right[y], wrong[y]) for y in right}
        for y, better in more.items():
            points[f"more {y}"] += better
        for x, mine in asked.items():
            if x == "name":
                person = sign(mine, min(other[x] for other in others))
            else:
                person = sign(mine, statistics.mean(other[x] for other in others))
                points[f"like the person: {x}"] += sign(abs(wrong[x] - mine), abs(right[x] - mine))
            for y, better in more.items():
                points[f"as the person's {x}: more {y}"] += person * better
    return {rule: 0.5 + n / len(rows) / 2 for rule, n in points.items()}


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_no_rule_without_a_path_is_right_more_often_than_a_coin(size):
    rows = problems(2000, **size)
    found = tried(rows)
    far = {rule: share for rule, share in found.items() if abs(share - 0.5) > 0.05}
    assert len(found) > 250 and not far, far
    # Numbers and order are drawn anew, all else is alike on both sides.
    by_chance = ("id", "mention", "name")
    drawn = {rule for rule in found if any(word in rule for word in by_chance)}
    assert {found[rule] for rule in found if rule not in drawn} == {0.5}
    assert set(evaluate.rules([(row,) for row in rows]).values()) == {0.5}


def counterparts(row):
    """One-to-one maps of what is above the target to what is above the other option.

    Each keeps every edge there.
    """
    edges = set(map(tuple, row["edges"]))
    turned, ends = [[b, a] for a, b in edges], (row["target"], row["neg_target"])
    above, copies = (sorted(prosqa.distances(turned, end)) for end in ends)

    def extend(pairs):
        if len(pairs) == len(above):
            yield dict(pairs)
            return
        v = above[len(pairs)]
        for w in set(copies) - {w for _, w in pairs}:
            if (v == row["target"]) != (w == row["neg_target"]):
                continue
            if all(
                ((a, v) in edges) == ((b, w) in edges) and ((v, a) in edges) == ((w, b) in edges)
                for a, b in pairs
            ):
                yield from extend([*pairs, (v, w)])

    yield from extend([])


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_persons_and_options_may_change_places(size):
    """Each graph has a symmetry that swaps the person asked for another, and the options.

    So none of them stands out.
    """
    for row in problems(300, **size):
        edges = set(map(tuple, row["edges"]))
        maps = [pairs | {w: v for v, w in pairs.items()} for pairs in counterparts(row)]
        turned = [{(other.get(a, a), other.get(b, b)) for a, b in edges} for other in maps]
        assert edges in turned, row
        other = maps[turned.index(edges)]
        assert other[row["target"]] == row["neg_target"]
        assert prosqa.is_person(row["idx_to_symbol"][other[row["root"]]])
        assert other[row["root"]] != row["root"]
