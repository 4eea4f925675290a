"""Files of problems as people have them, read into one form.

What comes out is the schema of the field's files, {"question": text, "steps": [text], "answer": text}, and whatever
else a row holds, a graph for example. What may go in, as UTF-8 with or without a byte order mark:

    [row, row]    row, newline, row                                 JSON and JSON lines
    {"question": text, "cot": "<<4-2=2>> <<12/4=3>>", "answer": 3}  GSM8k-Aug on Hugging Face: steps in one text
    question||<<4-2=2>> <<12/4=3>> #### 3                           GSM8k-Aug's own lines [Deng23]
"""

import json
import math
import re
import reprlib
from pathlib import Path

from nanococonut import graph
from nanococonut.config import UserError

SHORT = reprlib.Repr()  # how a wrong value is shown
SHORT.maxstring = SHORT.maxother = 60
BLANKS = re.compile(r"\s*")
FACT = re.compile(r"(?:(?:every|each) )?(\S+) is an? (\S+)\.", re.IGNORECASE)  # "Every lempus is a rempus."


def read_text(path: Path) -> str:
    """What a text file holds, its lines ended by a line feed alone. Raises UserError."""
    try:
        content = path.read_bytes()
        if content[:2] in (b"\xff\xfe", b"\xfe\xff") or content[:2].count(0) == 1:
            raise ValueError("it is in UTF-16; save it as UTF-8")
        text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except (ValueError, OSError) as error:  # ValueError: not utf-8, no path
        raise UserError(f"cannot read {path} as text in utf-8 ({error})") from None
    if text.startswith("version https://git-lfs"):
        raise UserError(f"{path} is a Git-LFS pointer, not the data; fetch the file itself (git lfs pull)")
    if text[:100].lstrip().lower().startswith(("<!doctype html", "<html")):
        raise UserError(f"{path} is a web page, not the data; its address may want a login")
    return text


def read_json(path: Path):
    """What a JSON file holds; where that is several values, as in JSON lines, the list of them. Raises UserError."""
    text, values, at = read_text(path).strip(), [], 0
    try:
        while at < len(text) or not values:
            value, end = json.JSONDecoder().raw_decode(text, at)
            values.append(value)
            at = BLANKS.match(text, end).end()
        value = values[0] if len(values) == 1 else values
        if "\\ud" in text.lower():  # half a surrogate pair, which is no character, becomes U+FFFD
            value = json.loads(re.sub("[\ud800-\udfff]", "\ufffd", json.dumps(value, ensure_ascii=False)))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON file ({error})") from None
    return value


def read_rows(path: Path) -> list[dict]:
    """The problems of a file in any of the forms above. Raises UserError with the row's number and what is wrong."""
    text = read_text(path)
    if path.suffix == ".txt" and not text.lstrip().startswith(("[", "{")):
        unit, first = "line {}: expected question||<<step>> <<step>> #### answer; ", 1
        rows = [gsm8k_row(line) for line in text.rstrip().split("\n")]
    else:
        unit, first = "row {}: ", 0
        value = read_json(path)
        rows = [value] if isinstance(value, dict) and "question" in value else value  # JSON lines of one line
        if not isinstance(rows, list) or not rows:
            raise UserError(f"{path} should hold a list of problems like {{question, steps, answer}}, at least one")
        rows = list(map(problem, rows))
    for number, row in enumerate(rows, start=first):
        wrong = fault(row)
        if wrong:
            raise UserError(f"{path}: {unit.format(number)}{wrong}")
    return rows


def problem(row):
    """A row in the field's schema. What is in none of the forms stays as it is, for fault() to name.

    >>> problem({"question": "How many?", "cot": "<<4-2=2>> <<12/4=3>>", "answer": 3})
    {'question': 'How many?', 'answer': '3', 'steps': ['<<4-2=2>>', '<<12/4=3>>']}
    """
    if not isinstance(row, dict):
        return row
    row = dict(row)
    if "steps" not in row and "cot" in row:
        row["steps"] = row.pop("cot")
    if isinstance(row.get("steps"), str):  # a step ends with its line, or where the next calculation begins
        row["steps"] = re.split(r"\s*\n\s*|(?<=>>)\s*(?=<<)", row["steps"].strip())
    if "answer" in row:
        row["answer"] = as_text(row["answer"])
    if isinstance(row.get("answer"), str) and "####" in row["answer"]:
        row["answer"] = row["answer"].rpartition("####")[2].strip()
    if isinstance(row.get("idx_to_symbol"), list):
        row["idx_to_symbol"] = [as_text(name) for name in row["idx_to_symbol"]]
    return row


def as_text(value):
    """A finite number or a truth value as one writes it, 4.0 as 4; anything else as it is."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    is_finite = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return str(value) if is_finite else value


def gsm8k_row(line: str) -> dict:
    """A line of GSM8k-Aug, cut as the paper's code cuts it: an empty chain becomes one empty step.

    >>> gsm8k_row("How much?||<<4-2=2>> <<2/.5=4>> #### 1,200")
    {'question': 'How much?', 'steps': ['<<4-2=2>>', '<<2/.5=4>>'], 'answer': '1200'}
    """
    question, _, rest = line.partition("||")
    chain, _, answer = rest.rpartition("####")
    return {"question": question, "steps": chain.strip().split(" "), "answer": answer.strip().replace(",", "")}


def fault(row) -> str:
    """Which field of a row is not as the schema or its graph wants it, and what it holds; empty where all is well."""
    if not isinstance(row, dict):
        return f"it is {SHORT.repr(row)}, not a problem like {{question, steps, answer}}"
    for field in ("question", "steps", "answer"):
        if field not in row:
            return f"it has no {field}; its fields are {SHORT.repr(list(row))}"
        if field != "steps" and (not isinstance(row[field], str) or not row[field]):
            return f"{field} is {SHORT.repr(row[field])}, not a text"
    if not isinstance(row["steps"], list):
        return f"steps is {SHORT.repr(row['steps'])}, not a list of texts"
    for number, step in enumerate(row["steps"], start=1):
        if not isinstance(step, str):
            return f"step {number} is {SHORT.repr(step)}, not a text"
    if re.fullmatch(r"[\s,]*", row["answer"].rpartition("#")[2]):
        return f"answer is {SHORT.repr(row['answer'])}, but what is scored stands after the last #, and nothing does"
    if graph.has_graph(row):
        return graph_fault(row) or told_fault(row)
    return ""


def graph_fault(row: dict) -> str:
    """What is wrong with a row's graph itself; empty where all is well."""
    names, edges = row["idx_to_symbol"], row["edges"]
    if not isinstance(names, list):
        return f"idx_to_symbol is {SHORT.repr(names)}, not a list of names"
    for v, name in enumerate(names):
        if not isinstance(name, str) or not name or name in names[:v]:
            return f"idx_to_symbol names node {v} {SHORT.repr(name)}, which is not a name of its own"
    nodes = f"0 to {len(names) - 1}"
    for field in ("root", "target", "neg_target"):
        if not is_node(row[field], names):
            return f"{field} is {SHORT.repr(row[field])}, not a node from {nodes}"
    for edge in edges if isinstance(edges, list) else [edges]:
        if not isinstance(edge, list) or len(edge) != 2 or not all(is_node(v, names) for v in edge):
            return f"edges has {SHORT.repr(edge)}, not a pair of nodes from {nodes}"
    reached = graph.distances(edges, row["root"])
    for field, wanted, does in (("target", True, "does not reach"), ("neg_target", False, "reaches too")):
        if (row[field] in reached) != wanted:
            return f"{field} is {row[field]} ({names[row[field]]}), which the root, {names[row['root']]}, {does}"
    return ""


def is_node(value, names: list[str]) -> bool:
    """Whether a value is the number of a name."""
    return type(value) is int and 0 <= value < len(names)


def told_fault(row: dict) -> str:
    """What the words of a row say that its graph does not; empty where all is well. Other sentences are let pass."""
    names, edges, steps = row["idx_to_symbol"], row["edges"], row["steps"]
    known = {name.casefold() for name in names}
    pairs = {(names[a].casefold(), names[b].casefold()) for a, b in edges}
    for sentence in re.split(r"(?<=\.)\s+", row["question"]):
        says = FACT.fullmatch(sentence.casefold())
        if says and says.groups() not in pairs and not known.isdisjoint(says.groups()):
            return f"the question says {SHORT.repr(sentence)}, but edges has no such edge"
    a = row["root"]
    for number, step in enumerate(steps, start=1):
        words = step.rstrip(".").split()
        if not words or words[-1] not in names:
            return f"step {number} is {SHORT.repr(step)}, which ends in no name of idx_to_symbol"
        b = names.index(words[-1])
        if FACT.fullmatch(step) and [a, b] not in edges:
            return f"step {number} is {SHORT.repr(step)}, but edges has no edge from {names[a]} to {names[b]}"
        a = b
    if all(map(FACT.fullmatch, steps)) and a != row["target"]:
        return f"the steps end in {names[a]}, not in target, {names[row['target']]}"
    return ""
