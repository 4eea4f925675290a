"""ProntoQA problems: the graph that their words tell, other names for its concepts, and twins.

question    Lempuses are happy. Each rempus is not happy. Max is a lempus. True or false: Max is not happy.
names       ["Max", "happy", "lempus", "not happy", "rempus"]        node 0 is the entity
facts       {(2, 1): "Lempuses are happy.", (4, 3): "Each rempus is not happy.", (0, 2): "Max is a lempus."}
target      1, which the entity reaches, and so the answer is False; neg_target 3
"""

import itertools
import random
import re
from collections import Counter
from typing import NamedTuple

from nanococonut import graph

ASKS = " True or false: "  # stands between the facts and the query
CONCEPT = re.compile(r"(an? )?\b([A-Za-z][a-z]*pus)(es)?\b")
FACT = re.compile(r"(?:(?:Every|Each) )?(\w+?)(?:es(?= are))? (?:is|are) (?:an? (\w+)|(\w+)es|((?:not )?\w+))\.")


class Ontology(NamedTuple):
    """The graph of a problem."""

    names: list[str]
    facts: dict[tuple[int, int], str]  # each edge and its sentence, in the order of the question
    target: int  # of the two forms asked about, the one that the entity has
    neg_target: int  # and the other one, which some other concept has
    needed: set[tuple[int, int]]  # the chain and the steps, and what leads to neg_target: its absence would tell


def opposite(form: str) -> str:
    """The other form of a property: "happy" and "not happy"."""
    return form.removeprefix("not ") if form.startswith("not ") else f"not {form}"


def read(row: dict) -> Ontology | None:
    """The ontology that a row's words tell; None if they are not ProntoQA's, or do not prove the row's answer."""
    text, _, query = row["question"].partition(ASKS)
    sentences = re.split(r"(?<=\.) ", text)
    *found, about = (FACT.fullmatch(sentence) for sentence in [*sentences, query])
    if not all(found) or not about or not about[4] or not query.startswith(f"{about[1]} is "):
        return None
    entity, asked = about[1], about[4]
    pairs = [(x[1] if x[1] == entity else x[1].lower(), x[2] or x[3] or x[4]) for x in found]
    names = [entity, *sorted({name for pair in pairs for name in pair} - {entity} | {asked, opposite(asked)})]
    number = {name: v for v, name in enumerate(names)}
    edges = [(number[subject], number[what]) for subject, what in pairs]
    reached, (target, neg_target) = graph.distances(edges, 0), (number[asked], number[opposite(asked)])
    if row["answer"] == "False":
        target, neg_target = neg_target, target
    if target not in reached or neg_target in reached or row["answer"] not in ("True", "False"):
        return None
    facts, steps = dict(zip(edges, sentences, strict=True)), " ".join(row["steps"])
    needed = {*itertools.pairwise(graph.shortest_path(edges, reached, target, random.Random(0)))}
    needed |= {edge for edge, fact in facts.items() if fact in steps or edge[1] == neg_target}
    return Ontology(names, facts, target, neg_target, needed)


def renamed(row: dict, rng: random.Random) -> dict:
    """The row with its concepts' names exchanged at random, in all forms and with the articles that they need."""
    old = sorted({match[2].lower() for match in CONCEPT.finditer(row["question"])})
    new = dict(zip(old, rng.sample(old, len(old)), strict=True))

    def other(match: re.Match) -> str:
        name, (article, word, plural) = new.get(match[2].lower(), match[2]), match.groups(default="")
        article = article and ("an " if name[0] in "aeiou" else "a ")
        return article + (name.capitalize() if word[0].isupper() else name) + plural

    question, *steps = (CONCEPT.sub(other, text) for text in (row["question"], *row["steps"]))
    return row | {"question": question, "steps": steps}


def twin(row: dict) -> dict | None:
    """The row with its query negated, so that the answer flips; facts and steps stay. None if read() gives None."""
    start, _, asked = row["question"].rpartition(" is ")
    turned = {"question": f"{start} is {opposite(asked)}", "answer": str(row["answer"] == "False")}
    return row | turned if read(row) else None


def rule_points(row: dict) -> dict[str, float]:
    """The probability that the best rule without a search is right, like graph.rule_points; {} if read() gives None."""
    found = read(row)
    if not found:
        return {}
    n_facts = Counter(node for edge in found.facts for node in edge)
    holders = ([n_facts[a] for a, b in found.facts if b == form] for form in (found.target, found.neg_target))
    right, wrong = (max(counts, default=0) for counts in holders)
    return {"more often mentioned concept": 0.5 if right == wrong else float(right > wrong)}
