"""ProntoQA: concepts and their properties in words [Saparov22], and a query that is true or false.

A problem, and the graph that read() finds in its words. A node is a name, and an edge is a fact:

    question    Lempuses are happy. Each rempus is not happy. Max is a lempus.
                True or false: Max is not happy.
    steps       Max is a lempus. Lempuses are happy.    Max is happy.
    answer      False

    names       ["Max", "happy", "lempus", "not happy", "rempus"]    node 0 is the entity
    facts       {(2, 1): "Lempuses are happy.", (4, 3): "Each rempus is not happy.",
                 (0, 2): "Max is a lempus."}
    target      1, the form of the property that the entity reaches; neg_target 3, the other form

draw() makes problems like those of the released generator, here with 3 hops:

    chain        Max -> lempus -> rempus -> impus -> happy
    distractors  lempus -> jompus    rempus -> yumpus    impus -> gorpus and numpus
    astray       Max -> wumpus -> vumpus       the second fact about the entity
    planted      zumpus -> not happy           so that both forms are read

Each concept of the chain, each distractor and wumpus has a property, of a family of its own; the
query is about that of impus.
"""

import itertools
import random
import re
from collections import Counter
from typing import NamedTuple

from nanococonut import prosqa

ENTITIES = "Alex Fae Max Polly Rex Sally Sam Stella Wren".split()
KINDS = """
    brimpus dumpus gorpus grimpus impus jompus lempus lorpus numpus rompus shumpus sterpus tumpus
    vumpus wumpus yumpus zumpus
""".split()
# Families of properties. A problem uses one property of a family.
FAMILIES = """
    large/small bright/dull transparent/opaque slow/fast/moderate hot/cold/temperate
    floral/fruity/earthy red/blue/brown/orange sour/sweet/bitter/spicy loud/muffled
    wooden/metallic/liquid luminous nervous/happy/feisty/shy melodic/discordant
    snowy/overcast/sunny/rainy/windy kind/mean/angry/amenable/aggressive
""".split()
ASKS = " True or false: "  # stands between the facts and the query
# The article, the concept, and the ending of the plural.
CONCEPT = re.compile(r"(an? )?\b([A-Za-z][a-z]*pus)(es)?\b")
# What the fact is about, and what it is: one concept, several, or a form of a property.
FACT = re.compile(
    r"(?:(?:Every|Each) )?(\w+?)(?:es(?= are))? (?:is|are) (?:an? (\w+)|(\w+)es|((?:not )?\w+))\."
)


class Ontology(NamedTuple):
    """The graph of a problem."""

    names: list[str]
    facts: dict[tuple[int, int], str]  # each edge and its sentence, in the order of the question
    target: int  # of the two forms asked about, the one that the entity has
    neg_target: int  # and the other one, which some other concept has
    # The chain and the steps, and what leads to neg_target: its absence would give the answer away.
    needed: set[tuple[int, int]]


# Words


def opposite(form: str) -> str:
    """The other form of a property: "happy" and "not happy"."""
    return form.removeprefix("not ") if form.startswith("not ") else f"not {form}"


def with_article(concept: str) -> str:
    """One of a concept: "a lempus", "an impus"."""
    return f"an {concept}" if concept[0] in "aeiou" else f"a {concept}"


def read(row: dict) -> Ontology | None:
    """The ontology that a row's words tell.

    None if the words are not ProntoQA's, or do not prove the row's answer.
    """
    text, _, query = row["question"].partition(ASKS)
    sentences = re.split(r"(?<=\.) ", text)
    matches = [FACT.fullmatch(sentence) for sentence in sentences]
    asked = FACT.fullmatch(query)
    if not all(matches) or not asked or not asked[4] or not query.startswith(f"{asked[1]} is "):
        return None
    entity, form = asked[1], asked[4]
    links = []  # the two names in each fact
    for match in matches:
        subject = match[1] if match[1] == entity else match[1].lower()
        links.append((subject, match[2] or match[3] or match[4]))
    others = set(itertools.chain.from_iterable(links)) - {entity}
    names = [entity, *sorted(others | {form, opposite(form)})]
    number = {name: v for v, name in enumerate(names)}
    edges = [(number[subject], number[what]) for subject, what in links]
    target, neg_target = number[form], number[opposite(form)]
    if row["answer"] == "False":
        target, neg_target = neg_target, target
    reached = prosqa.distances(edges, 0)
    if target not in reached or neg_target in reached or row["answer"] not in ("True", "False"):
        return None
    facts = dict(zip(edges, sentences, strict=True))
    path = prosqa.shortest_path(edges, reached, target, random.Random(0))
    needed = set(itertools.pairwise(path))
    steps = " ".join(row["steps"])
    for edge, fact in facts.items():
        if fact in steps or edge[1] == neg_target:
            needed.add(edge)
    return Ontology(names, facts, target, neg_target, needed)


# Drawing a problem


def draw(rng: random.Random, hops: int, fair: bool) -> tuple[dict, str]:
    """One problem [Saparov22] like those of the released generator with 5 hops, and its question.

    Each concept of the chain has two parents: the next concept and a distractor. The query is about
    a property of the last concept, whose opposite is planted elsewhere. The second fact about the
    entity leads to two other concepts.
    """
    concepts = iter(rng.sample(KINDS, len(KINDS)))
    chain = [next(concepts) for _ in range(hops)]
    distractors = [next(concepts) for _ in range(hops)]
    last, other, others_parent, planted = (next(concepts) for _ in range(4))
    links = [
        *zip(chain, [*chain[1:], last], strict=True),
        *zip(chain, distractors, strict=True),
        (other, others_parent),
    ]
    if fair:
        # The planted concept gets a child and two parents, like the last concept of the chain.
        links += [(next(concepts), planted), (planted, next(concepts)), (planted, next(concepts))]
    form_of = draw_forms([*chain, *distractors, other], rng)
    proved = form_of[chain[-1]]

    facts = {}
    for concept, parent in links:
        facts[concept, parent] = in_words(concept, with_article(parent), f"{parent}es", rng)
    for concept, form in [*form_of.items(), (planted, opposite(proved))]:
        facts[concept, form] = in_words(concept, form, form, rng)
    entity = rng.choice(ENTITIES)
    queried = proved.removeprefix("not ")
    if rng.random() < 0.5:
        queried = f"not {queried}"
    about_entity = [f"{entity} is {with_article(concept)}." for concept in (chain[0], other)]
    about_entity = rng.sample(about_entity, 2)
    shuffled = rng.sample(list(facts.values()), len(facts))
    question = " ".join([*shuffled, *about_entity]) + f"{ASKS}{entity} is {queried}."

    steps = []
    for concept, reason in zip(chain, [*chain[1:], proved], strict=True):
        steps.append(f"{entity} is {with_article(concept)}. {facts[concept, reason]}")
    steps.append(f"{entity} is {proved}.")
    return {"question": question, "answer": str(queried == proved), "steps": steps}, question


def draw_forms(concepts: list[str], rng: random.Random) -> dict[str, str]:
    """A form of a property for each concept, each of another family: "happy" or "not cold"."""
    forms = {}
    families = rng.sample(FAMILIES, len(concepts))
    for concept, family in zip(concepts, families, strict=True):
        name = rng.choice(family.split("/"))
        forms[concept] = name if rng.random() < 2 / 3 else f"not {name}"
    return forms


def in_words(concept: str, one: str, many: str, rng: random.Random) -> str:
    """A fact in a random form: "Xes are Ys." (1/2), "Every X is a Y." or "Each X is a Y." (1/4)."""
    form = rng.choice(["many", "many", "Every", "Each"])
    if form == "many":
        return f"{concept.capitalize()}es are {many}."
    return f"{form} {concept} is {one}."


# Augmentation: other names, another order, fewer facts


def renamed(row: dict, rng: random.Random) -> dict:
    """The row with its concepts' names exchanged at random.

    They are exchanged in all their forms, and get the articles that they need.
    """
    old = sorted({match[2].lower() for match in CONCEPT.finditer(row["question"])})
    new = dict(zip(old, rng.sample(old, len(old)), strict=True))

    def exchanged(match: re.Match) -> str:
        article, concept, plural = match.groups(default="")
        name = new.get(concept.lower(), concept)
        if article:
            article = "an " if name[0] in "aeiou" else "a "
        if concept[0].isupper():
            name = name.capitalize()
        return article + name + plural

    return row | {
        "question": CONCEPT.sub(exchanged, row["question"]),
        "steps": [CONCEPT.sub(exchanged, step) for step in row["steps"]],
    }


def reordered(row: dict, rng: random.Random, keep: float) -> dict:
    """The row with its facts in another order, the entity's last.

    keep is the probability that a fact off the chain is told.
    """
    found = read(row)
    edges = []
    for edge in rng.sample(list(found.facts), len(found.facts)):
        if keep == 1 or edge in found.needed or rng.random() < keep:
            edges.append(edge)
    about_concepts = [edge for edge in edges if edge[0] != 0]
    about_entity = [edge for edge in edges if edge[0] == 0]
    facts = [found.facts[edge] for edge in about_concepts + about_entity]
    _, asks, query = row["question"].partition(ASKS)
    return row | {"question": " ".join(facts) + asks + query}


# Twins: the same facts with the other answer


def twin(row: dict) -> dict | None:
    """The row with its query negated, so that the answer flips; facts and steps stay.

    None if read() gives None.
    """
    if not read(row):
        return None
    start, _, form = row["question"].rpartition(" is ")
    answer = "True" if row["answer"] == "False" else "False"
    return row | {"question": f"{start} is {opposite(form)}", "answer": answer}


# Rules without a search: what a model could answer by instead of following a chain


def rule_points(row: dict) -> dict[str, float]:
    """The probability that the best such rule is right, like prosqa.rule_points().

    It takes the form that the more often mentioned concept has. {} if read() gives None.
    """
    found = read(row)
    if not found:
        return {}
    n_facts = Counter(itertools.chain.from_iterable(found.facts))  # about each node
    right = most_facts(found, found.target, n_facts)
    wrong = most_facts(found, found.neg_target, n_facts)
    return {"more often mentioned concept": prosqa.chance_to_pick(right, wrong)}


def most_facts(found: Ontology, form: int, n_facts: Counter) -> int:
    """How many facts mention the concept that has a form; of several, the most often mentioned."""
    return max((n_facts[a] for a, b in found.facts if b == form), default=0)
