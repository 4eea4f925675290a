"""Reads files of problems in several formats, and writes and fetches files safely.

All problems are converted to the schema of the field's files: {"question": text, "steps": [text],
"answer": text}. Other fields are kept, but a graph is read from the words, by prosqa.read(). The
formats, in UTF-8 with or without a byte order mark:

    JSON, JSON lines       [row, row]    {"data": [row, row]}    row, newline, row
    GSM8k-Aug [Deng23]     question||<<4-2=2>> <<12/4=3>> #### 3          one problem a line
    on Hugging Face        {"question": text, "cot": "<<4-2=2>> <<12/4=3>>", "answer": 3}
    GSM8k                  {"question": text, "answer": "48/2 = <<48/2=24>>24 ... #### 72"}
                           its calculations are the steps
    facts apart            {"facts": text, "question": text, ...}, or passage, or context
                           they are read before the question
    ProntoQA's generator   {"example1": {"test_example": {"question", "query",
                           "chain_of_thought", "answer"}}}
"""

import hashlib
import http.client
import json
import math
import os
import re
import reprlib
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np

from nanococonut import prosqa
from nanococonut.cli import UserError

# Of a text: more than any model has positions for, and than the tokenizer can split.
MOST_CHARACTERS = 10**5
MAX_DOWNLOAD = 2 * 10**9  # bytes; a download is held in memory while it is checked
# http: only this machine
ALLOWED = re.compile(r"https://|http://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?(/|$)")
SHORT = reprlib.Repr()  # shortens wrong values in error messages
SHORT.maxstring = SHORT.maxother = 60
CONTEXTS = ("facts", "passage", "context")  # fields that hold what a question is about
AS_JSON_LINES = "pandas' to_json(..., orient='records', lines=True)"
PACKED = {  # how a file begins that is no text, and what to do with it
    b"PAR1": f"a Parquet file; make JSON lines of it, as by {AS_JSON_LINES}",
    b"\x1f\x8b": "compressed; unpack it with gunzip",
    b"BZh": "compressed; unpack it with bunzip2",
    b"\xfd7zXZ": "compressed; unpack it with unxz",
    b"\x28\xb5\x2f\xfd": "compressed; unpack it with unzstd",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"ARROW1": "an Arrow file; convert it to JSON lines",
}
BLANKS = re.compile(r"\s*")
LINE_FAULT = "line {}: expected question||<<step>> <<step>> #### answer; {}"
ROW_FAULT = "row {}: {}"


# Reading


def read_rows(path: Path) -> list[dict]:
    """The problems of a file in any of the formats above.

    Raises UserError with the number of the row and its fault.
    """
    text = read_text(path)
    if path.suffix.lower() == ".txt" and not text.lstrip().startswith(("[", "{")):
        rows = gsm8k_rows(text, path)
        message, first = LINE_FAULT, 1
    else:
        rows = [problem(row) for row in rows_in(read_json(path), path)]
        if all(lacks_steps_alone(row) for row in rows):  # prepare says what they are good for
            rows = [row | {"steps": []} for row in rows]
        message, first = ROW_FAULT, 0
    for number, row in enumerate(rows, start=first):
        wrong = fault(row)
        if wrong:
            raise UserError(f"{path}: {message.format(number, wrong)}")
    return [prosqa.read(row) for row in rows]


def read_text(path: Path) -> str:
    """The content of a text file, with line feeds as the only line ends. Raises UserError."""
    try:
        content = path.read_bytes()
        demand_unpacked(path, content)
        text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except (ValueError, OSError) as error:  # ValueError: not UTF-8, or not a path
        raise UserError(f"cannot read {path} as text in utf-8 ({error})") from None
    if text.startswith("version https://git-lfs"):
        advice = "fetch the file itself (git lfs pull)"
        raise UserError(f"{path} is a Git-LFS pointer, not the data; {advice}")
    if text[:100].lstrip().lower().startswith(("<!doctype html", "<html")):
        raise UserError(f"{path} is a web page, not the data; its address may need a login")
    return text


def demand_unpacked(path: Path, content: bytes) -> None:
    """Raises ValueError if the content of a file is no text in UTF-8 by how it begins."""
    if path.suffix == ".npz":
        raise ValueError("it is a file of tokens; the problems are in the .json beside it")
    for mark, packed in PACKED.items():
        if content.startswith(mark):
            raise ValueError(f"it is {packed}")
    has_mark_of_utf16 = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    if has_mark_of_utf16 or content[:2].count(0) == 1:
        raise ValueError("it is in UTF-16; save it as UTF-8")


def read_json(path: Path):
    """The content of a JSON file; several values, as in JSON lines, become a list.

    Raises UserError.
    """
    text = read_text(path).strip()
    try:
        values = json_values(text)
        value = values[0] if len(values) == 1 else values
        if "\\ud" in text.lower():  # a lone surrogate is not a character and becomes U+FFFD
            written = json.dumps(value, ensure_ascii=False)
            value = json.loads(re.sub("[\ud800-\udfff]", "\ufffd", written))
    except (ValueError, RecursionError) as error:
        is_table = path.suffix.lower() in (".csv", ".tsv")
        advice = ": a table has to become JSON lines first" if is_table else ""
        raise UserError(f"{path} is not a JSON file{advice} ({error})") from None
    return value


def json_values(text: str) -> list:
    """The values that stand one after another in a text, at least one. Raises ValueError."""
    decoder = json.JSONDecoder()
    values = []
    at = 0
    while at < len(text) or not values:
        value, end = decoder.raw_decode(text, at)
        values.append(value)
        at = BLANKS.match(text, end).end()
    return values


# Conversion to the schema


def rows_in(value, path: Path) -> list:
    """The rows in the content of a JSON file, not yet converted. Raises UserError."""
    if isinstance(value, dict) and "data" in value and "question" not in value:
        value = value["data"]
    if isinstance(value, dict) and "question" in value:
        value = [value]  # JSON lines with a single line
    elif isinstance(value, dict) and all(is_of_generator(row) for row in value.values()):
        value = [row["test_example"] for row in value.values()]
    if not isinstance(value, list) or not value:
        wanted = "a list of problems like {question, steps, answer}, and at least one"
        raise UserError(f"{path} should hold {wanted}")
    return value


def is_of_generator(row) -> bool:
    """Whether a row has the form that ProntoQA's generator writes."""
    return isinstance(row, dict) and "test_example" in row


def gsm8k_rows(text: str, path: Path) -> list[dict]:
    """The problems in GSM8k-Aug's own lines. Raises UserError."""
    lines = text.rstrip().split("\n")
    for number, line in enumerate(lines, start=1):
        n_bars = line.count("||")
        has_mark = "####" in line.partition("||")[2]
        # Otherwise a question's words would become steps, or steps an answer.
        if n_bars != 1 or not has_mark:
            wrong = f"it has {n_bars} || and {'a' if has_mark else 'no'} ####"
            raise UserError(f"{path}: {LINE_FAULT.format(number, wrong)}")
    return [gsm8k_row(line) for line in lines]


def gsm8k_row(line: str) -> dict:
    """A line of GSM8k-Aug, split as the paper's code does: an empty chain becomes one empty step.

    >>> gsm8k_row("How much?||<<4-2=2>> <<2/.5=4>> #### 1,200")
    {'question': 'How much?', 'steps': ['<<4-2=2>>', '<<2/.5=4>>'], 'answer': '1200'}
    """
    question, _, rest = line.partition("||")
    chain, _, answer = rest.rpartition("####")
    return {
        "question": question,
        "steps": chain.strip().split(" "),
        "answer": answer.strip().replace(",", ""),
    }


def problem(row):
    """A row converted to the schema. What has another form is left as it is; fault() reports it.

    >>> problem({"question": "How many?", "cot": "<<4-2=2>> <<12/4=3>>", "answer": 3})
    {'question': 'How many?', 'answer': '3', 'steps': ['<<4-2=2>>', '<<12/4=3>>']}
    """
    if not isinstance(row, dict):
        return row
    row = dict(row)
    join_contexts(row)
    if "steps" not in row:
        find_steps(row)
    steps, answer = row.get("steps"), row.get("answer")
    if isinstance(steps, str):
        # A step ends at a line break, or where the next calculation begins.
        row["steps"] = re.split(r"\s*\n\s*|(?<=>>)\s*(?=<<)", steps.strip())
    if "answer" in row:
        row["answer"] = as_text(answer)
    if isinstance(answer, str) and "####" in answer:
        row["answer"] = answer.rpartition("####")[2].strip()
    return row


def join_contexts(row: dict) -> None:
    """Puts the facts beside a question before it, unless the question holds them."""
    for field in CONTEXTS:
        context, question = row.get(field), row.get("question")
        if only_texts(context) and isinstance(question, str):
            facts = " ".join(texts_in(context))
            if facts not in question:
                row["question"] = f"{facts.strip()} {question}"
            del row[field]


def find_steps(row: dict) -> None:
    """Makes the steps of a row that has none out of another field, if it has one for them."""
    answer = row.get("answer")
    if "cot" in row:
        row["steps"] = row.pop("cot")
    elif isinstance(answer, str) and "####" in answer:
        calculations = re.findall(r"<<[^<>]*>>", answer)
        row["steps"] = calculations or answer.partition("####")[0]
    elif isinstance(row.get("chain_of_thought"), list):
        sentences = row["chain_of_thought"]
        texts = [row.get("question"), row.get("query"), *sentences]
        if all(isinstance(text, str) for text in texts):
            row["question"] += " " + row.pop("query")
            # Two sentences a step; the last one is a step alone.
            row["steps"] = [" ".join(sentences[i : i + 2]) for i in range(0, len(sentences), 2)]
            del row["chain_of_thought"]


def as_text(value):
    """A finite number or a truth value as text, 4.0 as "4"; any other value unchanged."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    is_finite = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return str(value) if is_finite else value


def texts_in(value) -> list[str]:
    """The texts in a value of JSON that are not blank, however deep."""
    if isinstance(value, str):
        return [value] if value.strip() else []
    inside = []
    if isinstance(value, dict):
        inside = value.values()
    elif isinstance(value, list):
        inside = value
    texts = []
    for part in inside:
        texts += texts_in(part)
    return texts


def only_texts(value) -> bool:
    """Whether a value is a text, or a list of such values."""
    if isinstance(value, list):
        return all(only_texts(part) for part in value)
    return isinstance(value, str)


# Checks


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
    texts = {"question": row["question"], "answer": row["answer"]}
    for number, step in enumerate(row["steps"], start=1):
        if not isinstance(step, str):
            return f"step {number} is {SHORT.repr(step)}, not a text"
        texts[f"step {number}"] = step
    for field, text in texts.items():
        if len(text) > MOST_CHARACTERS:
            return f"{field} has {len(text)} characters; {MOST_CHARACTERS} are the most"
    if re.fullmatch(r"[\s,]*", row["answer"].rpartition("#")[2]):
        why = "but only the text after the last # is scored: it is empty"
        return f"answer is {SHORT.repr(row['answer'])}, {why}"
    return ""


def lacks_steps_alone(row) -> bool:
    """Whether steps are all that a row lacks."""
    return isinstance(row, dict) and "steps" not in row and "question" in row and "answer" in row


def unread(rows: list[dict]) -> list[str]:
    """The fields of rows that hold text which no model gets to read."""
    known = {"question", "steps", "answer", *prosqa.FIELDS}
    found = set()
    for row in rows:
        for field, value in row.items():
            if field not in known and any(texts_in(value)):
                found.add(field)
    return sorted(found)


def sha256(path: Path) -> str:
    """The checksum of a file. A missing or damaged file raises what numpy does.

    Of an .npz it is that of the arrays, because Python's versions pack them differently.
    """
    if path.suffix != ".npz":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    digest = hashlib.sha256()
    with open(path, "rb") as packed, np.load(packed, allow_pickle=False) as file:
        for name in sorted(file):
            array = file[name]
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


# Writing and fetching


def write_atomically(path: Path, write) -> None:
    """Calls write(file) on a temporary file, flushes it to disk and renames it to path.

    Raises UserError.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # other processes have their own
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # torch.save makes a RuntimeError of the OSError of a full disk.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise UserError(f"cannot write {path}: {cause.strerror}") from None
    finally:
        if temporary.exists():
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes a text as UTF-8. A lone surrogate, as in a file name not in UTF-8, becomes "?"."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8", errors="replace")))


def fetch(url: str, path: Path, option: str, digest: str | None = None) -> Path:
    """Downloads a URL to path, checks its size and digest, and returns path.

    Raises UserError that names the option, or FileNotFoundError if the server has no such file.
    """
    try:
        content = download(url, digest)
    except (OSError, http.client.HTTPException, ValueError) as error:
        message = f"cannot fetch {url} ({error}); download it and give its path as --{option}"
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        if getattr(error, "code", None) == 404:
            raise FileNotFoundError(message) from None
        raise UserError(message) from None
    write_atomically(path, lambda file: file.write(content))
    return path


def download(url: str, digest: str | None) -> bytes:
    """What a URL holds. Raises ValueError for an address, a size or a digest that is not right."""
    if not ALLOWED.match(url):
        raise ValueError("only https addresses are fetched")
    print(f"fetching {url}")
    with urllib.request.urlopen(url, timeout=30) as reply:
        if not ALLOWED.match(reply.url):
            raise ValueError(f"it redirects to {reply.url}; only https addresses are fetched")
        n_bytes = int(reply.headers["Content-Length"] or 0)
        content = reply.read(MAX_DOWNLOAD + 1)
    if not n_bytes <= len(content) <= MAX_DOWNLOAD:
        received = f"received {len(content)} bytes of {n_bytes}"
        raise ValueError(f"{received}; the limit is {MAX_DOWNLOAD}")
    if digest not in (None, hashlib.sha256(content).hexdigest()):
        raise ValueError(f"invalid hash value, expected {digest}")
    return content


def folder_of(parent: str, name: str) -> Path:
    """The path parent/name. Raises UserError for a name that could lead out of parent."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        allowed = "letters, digits, '.', '_' and '-', like prosqa-small"
        raise UserError(f"{name!r} is not a name for {parent}/: {allowed}")
    return Path(parent) / name
