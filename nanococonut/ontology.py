"""ProntoQA problems: the graph that their words tell, and their twins.

Node 0 is the entity. The others are concepts, and properties in two forms, of which the question is about one:

    question    Lempuses are happy. Each rempus is not happy. Max is a lempus. True or false: Max is not happy.
    names       ["Max", "happy", "lempus", "not happy", "rempus"]
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
FACT = re.compile(r"(?:(?:Every|Each) )?(\w+?)(?:es)? (?:is|are) (?:an? (\w+)|(\w+)es|((?:not )?\w+))\.")


class Ontology(NamedTuple):
    """The graph of a problem."""

    names: list[str]
    facts: dict[tuple[int, int], str]  # each edge and its sentence, in the order of the question
    target: int  # of the two forms asked about, the one that the entity has
    neg_target: int  # and the other one, which some other concept has

    def needed(self) -> set[tuple[int, int]]:
        """The edges of the chain to the target, and those to the other form: without these its absence would tell."""
        edges = list(self.facts)
        chain = graph.shortest_path(edges, graph.distances(edges, 0), self.target, random.Random(0))
        return {*itertools.pairwise(chain), *(edge for edge in edges if edge[1] == self.neg_target)}

    def without_search(self) -> float:
        """1 if the more often mentioned one of the concepts that have the two forms gives the answer; 0.5 for a tie."""
        n_facts = Counter(node for edge in self.facts for node in edge)
        right, wrong = ([n_facts[a] for a, b in self.facts if b == form] for form in (self.target, self.neg_target))
        return 0.5 if right == wrong else float(right > wrong)


def opposite(form: str) -> str:
    """The other form of a property: "happy" and "not happy"."""
    return form.removeprefix("not ") if form.startswith("not ") else f"not {form}"


def read(row: dict) -> Ontology | None:
    """The ontology that a row's words tell; None if they are not ProntoQA's, or do not prove the row's answer."""
    text, _, query = row["question"].partition(ASKS)
    sentences = re.split(r"(?<=\.) ", text)
    found = [FACT.fullmatch(sentence) for sentence in [*sentences, query]]
    if not all(found):
        return None
    entity, pairs = found[-1][1], []
    for subject, concept, concepts, form in (match.groups() for match in found):
        pairs.append((subject if subject == entity else subject.lower(), concept or concepts or form))
    asked = pairs[-1][1]
    names = [entity, *sorted({name for pair in pairs for name in pair} - {entity} | {opposite(asked)})]
    *edges, (_, one) = [(names.index(subject), names.index(what)) for subject, what in pairs]
    reached, other = graph.distances(edges, 0), names.index(opposite(asked))
    if (one in reached) == (other in reached) or row["answer"] != str(one in reached):
        return None
    target, neg_target = (one, other) if one in reached else (other, one)
    return Ontology(names, dict(zip(edges, sentences, strict=True)), target, neg_target)


def twin(row: dict) -> dict | None:
    """The row with its query negated, so that the answer flips; facts and steps stay. None for other tasks' rows."""
    facts, asks, query = row["question"].partition(ASKS)
    entity, _, asked = query.partition(" is ")
    if not asks or row["answer"] not in ("True", "False"):
        return None
    other = {"True": "False", "False": "True"}[row["answer"]]
    return row | {"question": f"{facts}{asks}{entity} is {opposite(asked)}", "answer": other}
