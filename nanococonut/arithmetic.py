"""Arithmetic word problems in the form of GSM8k-Aug: who has how many things, told in words.

    question    Ann has 7 pens. Dan owns 12 cups. Bob has 3 more than Ann.
                Cat has twice as many as Bob. How many pens do Cat and Ann have together?
    steps       <<7+3=10>>    <<10*2=20>>    <<20+7=27>>
    answer      27

There is one fact about each person: a number, or a relation to persons of whom the question has
already told. draw() makes a problem:

    chain        Ann -> Bob -> Cat -> the answer. Each step takes what the step before it found, and
                 a number that is told, so any of them may be replaced by a thought
    distractors  Dan, who has other things: nobody speaks of him, and the question does not need him
    order        the chain's; distractors stand anywhere
    steps        in the order told

No two persons have equally many, so a step's result says which step it is. No number is split: it
is a token, or lies inside one with what stands around it. "7 pens. " is one token too, so a model
finds what begins the chain in one lookup: the number with the things that the question names.
"""

import random
import re
import zlib
from collections import Counter
from typing import NamedTuple

NAMES = """
    Ann Bob Cat Dan Eve Finn Gus Hal Ida Jon Kim Lea Mia Ned Ola Pam Quin Rob Sue Ted Uma Vic Will
    Zoe
""".split()
THINGS = """
    apples balls beads books boxes buttons cards coins cups eggs keys lamps nuts pens plums rings
    shells spoons stamps toys
""".split()
TIMES = {2: "twice", 3: "3 times", 4: "4 times", 5: "5 times"}
PARTS = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth"}
MOST_MORE = 9  # of "3 more than"
MOST_DISTRACTORS = 2
START = 0  # the person with whom the chain begins
MOST_STEPS = 8  # they take up to nine persons, besides the distractors
SYMBOLS = {"more": "+", "fewer": "-", "times": "*", "part": "/", "sum": "+", "difference": "-"}
# The fact about a, which refers to b and c.
FORMS = {
    "own": "{a} {has} {n} {things}.",
    "other": "{a} {has} {n} {other_things}.",
    "more": "{a} {has} {n} more than {b}.",
    "fewer": "{a} {has} {n} fewer than {b}.",
    "times": "{a} {has} {times} as many as {b}.",
    "part": "{a} {has} {part} as many as {b}.",
    "sum": "{a} {has} as many as {b} and {c} together.",
}
HAS = ("has", "owns")
QUESTIONS = {
    "one": "How many {things} does {b} have?",
    "sum": "How many {things} do {b} and {c} have together?",
    "difference": "How many more {things} does {b} have than {c}?",
}
# The words of these sentences besides names, things and numbers.
TEMPLATES = [*FORMS.values(), *QUESTIONS.values(), *HAS, *TIMES.values(), *PARTS.values()]
FUNCTION_WORDS = set(re.findall("[a-z]+", re.sub("{[a-z_]+}", "", " ".join(TEMPLATES).lower())))
# What is one token in these problems. A step's result is the first number of the step after it, and
# "<<10" is one token: how the next step begins. So a thought in the place of a step is asked for
# its result, and <bot> for the number that the chain begins with. The last result is one token with
# what begins the answer.
PATTERN = "|".join(
    [
        # A step: its first number, what it does with it, and its result, the last one with what
        # begins the answer.
        r"<<[0-9]+",
        r"[-+*/][0-9]+=",
        r"[0-9]+>>\n(?:### )?",
        # How the question begins.
        r"How(?: [a-z]+)+ (?=[A-Z])",
        # How a fact begins, and a name elsewhere. What a person has stands right behind the name.
        r"[A-Z][a-z]+(?: has| owns) (?=[0-9a-z])",
        r"[A-Z][a-z]+",
        # A relation with its number.
        r"[0-9]+ (?:more|fewer|times)(?: [a-z]+)+ (?=[A-Z])",
        r"[a-z]+(?: [a-z]+)+ (?=[A-Z])",
        # What a person has: how many, and which things.
        rf"[0-9]+ (?:{'|'.join(THINGS)})[.] ",
        # A number, and what may stand around a step.
        r"[0-9]+",
        r"<<",
        r">>\n",
        r"### ",
        # The words between names and numbers, and the rest.
        r"(?: [a-z]+)+\.?(?: (?=[0-9A-Z]))?",
        r"[.?][ \n]?",
        r"[\s\S]",
    ]
)


class Fact(NamedTuple):
    """How many a person has, or what the question asks for."""

    kind: str  # a key of FORMS, or of QUESTIONS
    others: tuple[int, ...] = ()  # the persons whom it refers to
    n: int = 0  # the number that it tells; 0: it tells none


class Draft(NamedTuple):
    """The persons drawn so far. A person is a number: their place in both lists."""

    facts: list[Fact]
    values: list[int]  # how many each person has


class UnfitError(Exception):
    """A draft has come to a number that is too small or too large, or that another person has."""


# Numbers


def operands(fact: Fact, values: list[int]) -> tuple[int, ...]:
    """The two numbers of a fact's step; only one if the fact takes no step."""
    found = tuple(values[i] for i in fact.others)
    return (*found, fact.n) if fact.n else found


def value_of(fact: Fact, values: list[int]) -> int:
    """The number that a fact leads to."""
    numbers = operands(fact, values)
    if len(numbers) == 1:
        return numbers[0]
    first, second = numbers
    results = {
        "+": first + second,
        "-": first - second,
        "*": first * second,
        "/": first // second,
    }
    return results[SYMBOLS[fact.kind]]


def steps_of(draft: Draft, asked: Fact) -> list[str]:
    """The steps that lead to the answer: persons are drawn in the chain's order."""
    steps = []
    for fact in [*draft.facts, asked]:
        numbers = operands(fact, draft.values)
        if len(numbers) == 2:
            first, second = numbers
            result = value_of(fact, draft.values)
            steps.append(f"<<{first}{SYMBOLS[fact.kind]}{second}={result}>>")
    return steps


# Drawing a problem


def draw(rng: random.Random, n_steps: int, max_number: int) -> tuple[dict, str] | None:
    """One problem of n_steps steps, and its identity; None if what was drawn does not fit.

    No number in it is larger than max_number, neither told nor found.
    """
    draft = Draft([], [])
    try:
        asked = draw_question(draft, n_steps, max_number, rng)
        add_distractors(draft, max_number, rng)
    except UnfitError:
        return None
    answer = value_of(asked, draft.values)
    if answer > max_number or (asked.kind != "one" and answer in draft.values):
        return None
    order = draw_order(draft.facts, rng)
    question = tell(draft, asked, order, rng)
    row = {"question": question, "steps": steps_of(draft, asked), "answer": str(answer)}
    return row, identity(draft, asked)


def draw_question(draft: Draft, n_steps: int, max_number: int, rng: random.Random) -> Fact:
    """A random question of n_steps steps. Adds the persons that it needs; raises UnfitError.

    The first person, START, is the only one of whom the number of things is told.
    """
    kinds = ["one", "one", "sum", "difference"]
    # With one step a sum would be about one person; with two the difference may be the 3 told.
    kind = rng.choice(kinds[: n_steps + 1])
    last = add_with_number("own", draft, max_number, rng)
    for _ in range(n_steps if kind == "one" else n_steps - 1):
        if last != START and rng.random() < 0.25:
            fact = Fact("sum", (last, START))
        else:
            fact = draw_relation(draft, last, max_number, rng)
        last = add(draft, fact, max_number)
    if kind == "one":
        return Fact(kind, (last,))
    if kind == "difference" and draft.values[last] < draft.values[START]:
        raise UnfitError  # the step would not begin with what the chain found
    return Fact(kind, (last, START))


def add(draft: Draft, fact: Fact, max_number: int) -> int:
    """Adds the person whom a fact is about, and returns this person. Raises UnfitError."""
    value = value_of(fact, draft.values)
    if not 1 <= value <= max_number or value in draft.values:
        raise UnfitError
    draft.facts.append(fact)
    draft.values.append(value)
    return len(draft.facts) - 1


def add_with_number(kind: str, draft: Draft, max_number: int, rng: random.Random) -> int:
    """Adds a person of whom a random number is told, like add()."""
    return add(draft, Fact(kind, n=rng.randint(2, max_number)), max_number)


def draw_relation(draft: Draft, other: int, max_number: int, rng: random.Random) -> Fact:
    """A random relation to another person. Each kind that fits is equally likely."""
    has = draft.values[other]
    numbers = {
        "more": range(2, min(MOST_MORE, max_number - has) + 1),
        "fewer": range(2, min(MOST_MORE, has - 1) + 1),
        "times": [n for n in TIMES if n * has <= max_number],
        "part": [n for n in PARTS if has % n == 0],
    }
    kind = rng.choice([kind for kind in numbers if numbers[kind]])
    return Fact(kind, (other,), rng.choice(numbers[kind]))


def add_distractors(draft: Draft, max_number: int, rng: random.Random) -> None:
    """Adds persons who have other things and of whom nobody speaks. Raises UnfitError."""
    for _ in range(rng.randint(0, MOST_DISTRACTORS)):
        add_with_number("other", draft, max_number, rng)


def draw_order(facts: list[Fact], rng: random.Random) -> list[int]:
    """A random order of the persons, in which each comes after those whom their fact refers to."""
    order = []
    left = list(range(len(facts)))
    while left:
        ready = [i for i in left if not set(facts[i].others) & set(left)]
        order.append(rng.choice(ready))
        left.remove(order[-1])
    return order


def identity(draft: Draft, asked: Fact) -> str:
    """What two problems have in common if they differ in names, things, words and order alone.

    What stands before the semicolon is the chain, without distractors.
    """
    others = sorted(formula(draft, fact) for fact in draft.facts)
    return f"{formula(draft, asked)}; {', '.join(others)}"


def split_of(identity: str) -> str:
    """The split that a problem belongs to, by its chain: one in ten is valid's, one is test's.

    So no chain of test was seen in training, not even with other distractors.
    """
    chain = identity.partition(";")[0]
    number = zlib.crc32(chain.encode()) % 10
    return {0: "valid", 1: "test"}.get(number, "train")


def formula(draft: Draft, fact: Fact) -> str:
    """A fact in terms of the numbers told, whatever the names and the order."""
    parts = [formula(draft, draft.facts[i]) for i in fact.others]
    return f"{fact.kind}({', '.join([*parts, str(fact.n)])})"


# Words


def tell(draft: Draft, asked: Fact, order: list[int], rng: random.Random) -> str:
    """The facts in this order and the question, with names and things drawn at random."""
    names = rng.sample(NAMES, len(draft.facts))
    things, *others = rng.sample(THINGS, 1 + len(order))
    sentences = []
    for i in order:
        fact = draft.facts[i]
        form = FORMS[fact.kind]
        about = dict(a=names[i], has=rng.choice(HAS), other_things=others[i])
        sentences.append(in_words(form, fact, names, things, **about))
    sentences.append(in_words(QUESTIONS[asked.kind], asked, names, things))
    return " ".join(sentences)


def in_words(form: str, fact: Fact, names: list[str], things: str, **words: str) -> str:
    """A sentence of FORMS or QUESTIONS; words are those that the fact does not tell."""
    for letter, other in zip("bc", fact.others, strict=False):
        words[letter] = names[other]
    times, part = TIMES.get(fact.n), PARTS.get(fact.n)
    return form.format(n=fact.n, times=times, part=part, things=things, **words)


def texts_to_know(max_number: int) -> list[str]:
    """Each number in each place where it can stand, so that it is one token whatever was drawn."""
    texts = []
    for n in range(1, max_number + 1):
        told = [f"{n} {things}. " for things in THINGS]
        steps = [f"<<{n}{symbol}{n}={n}>>\n" for symbol in "+-*/"]
        texts.append(f"{''.join(told)}{n} {''.join(steps)}### {n}")
    return texts


# Baselines: what a model could answer by instead of taking the steps


def baselines(rows: list[dict], train: list[dict]) -> dict[str, float]:
    """The accuracy of three such answers in rows; the most frequent answer is that of train."""
    (most_frequent, _), *_ = Counter(row["answer"] for row in train).most_common(1)
    n_right = {"most frequent answer": 0, "last number": 0, "sum of all numbers": 0}
    for row in rows:
        numbers = [int(number) for number in re.findall("[0-9]+", row["question"])]
        answers = {
            "most frequent answer": most_frequent,
            "last number": str(numbers[-1]) if numbers else "",
            "sum of all numbers": str(sum(numbers)),
        }
        for name, answer in answers.items():
            if answer == row["answer"]:
                n_right[name] += 1
    return {name: n / len(rows) for name, n in n_right.items()}
