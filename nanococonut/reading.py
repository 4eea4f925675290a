"""Reads files of problems in several formats and converts them to one schema.

The schema is that of the field's files: {"question": text, "steps": [text], "answer": text}. Other fields are
kept, but a graph is read from the words: graph.py. The formats, in UTF-8 with or without a byte order mark:

    [row, row]    {"data": [row, row]}    row, newline, row         JSON and JSON lines
    {"question": text, "cot": "<<4-2=2>> <<12/4=3>>", "answer": 3}  GSM8k-Aug on Hugging Face: steps as one text
    question||<<4-2=2>> <<12/4=3>> #### 3                           GSM8k-Aug's own lines [Deng23]
    {"question": text, "answer": "48/2 = <<48/2=24>>24 ... #### 72"}   GSM8k itself: its calculations are the steps
    {"context": facts, "question": text, ...}                       facts, passage or context: joined, facts first
    {"example1": {"test_example": {"question", "query", "chain_of_thought", "answer"}}}     ProntoQA's generator
"""

import json
import math
import re
import reprlib
from pathlib import Path

from nanococonut import graph
from nanococonut.config import UserError

MOST_CHARACTERS = 10**5  # of a text; more than any model has positions for, and than the tokenizer can split
SHORT = reprlib.Repr()  # shortens wrong values in error messages
SHORT.maxstring = SHORT.maxother = 60
CONTEXTS = ("facts", "passage", "context")  # fields of other files that hold what a question is about
PACKED = {  # how a file begins that is no text, and what to do with it
    b"PAR1": "a Parquet file; make JSON lines of it, as by pandas' to_json(..., orient='records', lines=True)",
    b"\x1f\x8b": "compressed; unpack it with gunzip",
    b"BZh": "compressed; unpack it with bunzip2",
    b"\xfd7zXZ": "compressed; unpack it with unxz",
    b"\x28\xb5\x2f\xfd": "compressed; unpack it with unzstd",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"ARROW1": "an Arrow file; convert it to JSON lines",
}
BLANKS = re.compile(r"\s*")


def read_text(path: Path) -> str:
    """The content of a text file, with line feeds as the only line ends. Raises UserError."""
    try:
        content = path.read_bytes()
        packed = next((name for mark, name in PACKED.items() if content.startswith(mark)), "")
        packed = "a file of tokens; the problems are in the .json beside it" if path.suffix == ".npz" else packed
        if packed:
            raise ValueError(f"it is {packed}")
        if content[:2] in (b"\xff\xfe", b"\xfe\xff") or content[:2].count(0) == 1:
            raise ValueError("it is in UTF-16; save it as UTF-8")
        text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except (ValueError, OSError) as error:  # ValueError: not UTF-8, or not a path
        raise UserError(f"cannot read {path} as text in utf-8 ({error})") from None
    if text.startswith("version https://git-lfs"):
        raise UserError(f"{path} is a Git-LFS pointer, not the data; fetch the file itself (git lfs pull)")
    if text[:100].lstrip().lower().startswith(("<!doctype html", "<html")):
        raise UserError(f"{path} is a web page, not the data; its address may need a login")
    return text


def read_json(path: Path):
    """The content of a JSON file; several values, as in JSON lines, become a list. Raises UserError."""
    text, values, at = read_text(path).strip(), [], 0
    try:
        while at < len(text) or not values:
            value, end = json.JSONDecoder().raw_decode(text, at)
            values.append(value)
            at = BLANKS.match(text, end).end()
        value = values[0] if len(values) == 1 else values
        if "\\ud" in text.lower():  # a lone surrogate is not a character and becomes U+FFFD
            value = json.loads(re.sub("[\ud800-\udfff]", "\ufffd", json.dumps(value, ensure_ascii=False)))
    except (ValueError, RecursionError) as error:
        table = ": a table has to become JSON lines first" if path.suffix.lower() in (".csv", ".tsv") else ""
        raise UserError(f"{path} is not a JSON file{table} ({error})") from None
    return value


def read_rows(path: Path) -> list[dict]:
    """The problems of a file in any of the formats above. Raises UserError with the number of the row and its fault."""
    text = read_text(path)
    if path.suffix.lower() == ".txt" and not text.lstrip().startswith(("[", "{")):
        unit, first = "line {}: expected question||<<step>> <<step>> #### answer; ", 1
        lines = text.rstrip().split("\n")
        for number, line in enumerate(lines, start=first):
            n_bars, has_mark = line.count("||"), "####" in line.partition("||")[2]
            if n_bars != 1 or not has_mark:  # else a question's words would become steps, or steps an answer
                raise UserError(f"{path}: {unit.format(number)}it has {n_bars} || and {'a' if has_mark else 'no'} ####")
        rows = list(map(gsm8k_row, lines))
    else:
        unit, first = "row {}: ", 0
        rows = [problem(row) for row in rows_in(read_json(path), path)]
        if all(map(lacks_steps_alone, rows)):  # prepare says what they are good for
            rows = [row | {"steps": []} for row in rows]
    for number, row in enumerate(rows, start=first):
        if wrong := fault(row):
            raise UserError(f"{path}: {unit.format(number)}{wrong}")
    return list(map(graph.read, rows))


def unread(rows: list[dict]) -> list[str]:
    """The fields of rows that hold text which no model gets to read."""
    known = {"question", "steps", "answer", *graph.FIELDS}
    found = {field for row in rows for field, value in row.items() if field not in known and any(texts_in(value))}
    return sorted(found)


def lacks_steps_alone(row) -> bool:
    """Whether steps are all that a row lacks."""
    return isinstance(row, dict) and "steps" not in row and "question" in row and "answer" in row


def texts_in(value) -> list[str]:
    """The texts in a value of JSON that are not blank, however deep."""
    if isinstance(value, str):
        return [value] if value.strip() else []
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for one in inside for text in texts_in(one)]


def only_texts(value) -> bool:
    """Whether a value is a text, or a list of such values."""
    return isinstance(value, str) or (isinstance(value, list) and all(map(only_texts, value)))


def rows_in(value, path: Path) -> list:
    """The rows in the content of a JSON file, not yet converted. Raises UserError."""
    if isinstance(value, dict) and "data" in value and "question" not in value:
        value = value["data"]
    if isinstance(value, dict) and "question" in value:
        value = [value]  # JSON lines with a single line
    elif isinstance(value, dict) and all(isinstance(row, dict) and "test_example" in row for row in value.values()):
        value = [row["test_example"] for row in value.values()]
    if not isinstance(value, list) or not value:
        raise UserError(f"{path} should hold a list of problems like {{question, steps, answer}}, and at least one")
    return value


def problem(row):
    """A row converted to the schema. Anything in another form is left as it is, and fault() reports it.

    >>> problem({"question": "How many?", "cot": "<<4-2=2>> <<12/4=3>>", "answer": 3})
    {'question': 'How many?', 'answer': '3', 'steps': ['<<4-2=2>>', '<<12/4=3>>']}
    """
    if not isinstance(row, dict):
        return row
    row = dict(row)
    for field in CONTEXTS:  # facts beside the question are read before it
        facts, question = row.get(field), row.get("question")
        facts = " ".join(texts_in(facts)) if only_texts(facts) else facts
        if isinstance(facts, str) and isinstance(question, str):
            row["question"] = question if facts in question else f"{facts.strip()} {question}"
            del row[field]
    if "steps" not in row and "cot" in row:
        row["steps"] = row.pop("cot")
    if "steps" not in row and isinstance(row.get("answer"), str) and "####" in row["answer"]:
        row["steps"] = re.findall(r"<<[^<>]*>>", row["answer"]) or row["answer"].partition("####")[0]
    if "steps" not in row and isinstance(row.get("chain_of_thought"), list):  # two sentences a step, the last alone
        chain = row["chain_of_thought"]
        if all(isinstance(text, str) for text in [row.get("question"), row.get("query"), *chain]):
            row["question"] += " " + row.pop("query")
            row["steps"] = [" ".join(chain[i : i + 2]) for i in range(0, len(chain), 2)]
            del row["chain_of_thought"]
    if isinstance(row.get("steps"), str):  # a step ends at a line break, or where the next calculation begins
        row["steps"] = re.split(r"\s*\n\s*|(?<=>>)\s*(?=<<)", row["steps"].strip())
    if "answer" in row:
        row["answer"] = as_text(row["answer"])
    if isinstance(row.get("answer"), str) and "####" in row["answer"]:
        row["answer"] = row["answer"].rpartition("####")[2].strip()
    return row


def as_text(value):
    """A finite number or a truth value as text, 4.0 as "4"; any other value unchanged."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    is_finite = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return str(value) if is_finite else value


def gsm8k_row(line: str) -> dict:
    """A line of GSM8k-Aug, split as the paper's code splits it: an empty chain becomes one empty step.

    >>> gsm8k_row("How much?||<<4-2=2>> <<2/.5=4>> #### 1,200")
    {'question': 'How much?', 'steps': ['<<4-2=2>>', '<<2/.5=4>>'], 'answer': '1200'}
    """
    question, _, rest = line.partition("||")
    chain, _, answer = rest.rpartition("####")
    return {"question": question, "steps": chain.strip().split(" "), "answer": answer.strip().replace(",", "")}


def fault(row) -> str:
    """The first field of a row that violates the schema, and its value; empty if none does."""
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
    texts = {"question": row["question"], "answer": row["answer"]}
    texts |= {f"step {number}": step for number, step in enumerate(row["steps"], start=1)}
    for field, text in texts.items():
        if len(text) > MOST_CHARACTERS:
            return f"{field} has {len(text)} characters; {MOST_CHARACTERS} are the most"
    if re.fullmatch(r"[\s,]*", row["answer"].rpartition("#")[2]):
        return f"answer is {SHORT.repr(row['answer'])}, but only the text after the last # is scored: it is empty"
    return ""
