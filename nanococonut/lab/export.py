"""Writes a trained run as one script, model.js, for the page docs/demo/index.html.

The page works without a server. A page on a disk may load a script, but may not fetch a file: so
the weights are text in a script, float16 in base64, in the order of `tensors`.
"""

import base64
import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nanococonut import cli, files, prosqa, runs, tokenizer
from nanococonut.cli import UserError

N_EXAMPLES = 10
WIDTH = 80  # characters of a long text in a line of the script
WORD = r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]"  # what tiktoken's \w is outside ASCII


@dataclass(frozen=True)
class ExportConfig:
    """python -m nanococonut.lab.export [RUN] [--option=value ...]: writes a run for the page."""

    # name or path of the run
    run: str = "models/prosqa.pt"
    # file to write
    out: str = "docs/demo/model.js"


def for_javascript(pattern: str) -> str:
    r"""A pattern of the tokenizer in JavaScript's words, for its flag u.

    There \w and \b know ASCII alone, and a character is written in another way:

    >>> print(for_javascript(r"[\U0001f600-\U0001f64f]"))
    [\u{0001f600}-\u{0001f64f}]
    """
    pattern = re.sub(r"\\U([0-9a-f]{8})", r"\\u{\1}", pattern)
    pattern = pattern.replace(r"\b", r"(?:(?<=\w)(?!\w)|(?<!\w)(?=\w))")
    return pattern.replace(r"[\w-]", rf"[{WORD[1:-1]}-]").replace(r"\w", WORD)


def in_lines(text: str) -> str:
    """A long text as a JavaScript expression, in short lines.

    >>> print(in_lines("lempus"))
    [
    "lempus",
    ].join("")
    """
    parts = [text[i : i + WIDTH] for i in range(0, len(text), WIDTH)]
    return "\n".join(["[", *(f"{json.dumps(part)}," for part in parts), '].join("")'])


def listed(values: list) -> str:
    """A list as a JavaScript expression, a value in each line."""
    return "\n".join(["[", *(f"{json.dumps(value)}," for value in values), "]"])


def in_base64(weights: dict[str, Tensor]) -> str:
    """All weights as float16, one after the other, the lowest byte first."""
    flat = torch.cat([tensor.detach().float().cpu().flatten() for tensor in weights.values()])
    return base64.b64encode(flat.numpy().astype("<f2").tobytes()).decode()


def names_known(run: runs.Run) -> list[str]:
    """The names for which the run has tokens: those of persons, and those of concepts."""
    words = {name for piece in run.data["vocabulary"] for name in tokenizer.names_in(piece)}
    return sorted(name for name in words if tokenizer.node_tokens(run.encoding, name))


def demand_fit(run: runs.Run) -> None:
    """Raises UserError for a run whose answers the page cannot compute."""
    plan, name = run.plan, run.folder.name
    if not (plan.in_place and plan.n_thoughts and run.config["c_thought"] == 1):
        raise UserError(f"{name}: the page shows runs of method coconut with --layout=in_place")
    if run.data["tokenizer"] != "words" or not run.data["task"].startswith("prosqa"):
        raise UserError(f"{name}: the page shows runs on ProsQA with --tokenizer=words")


def questions_of(run: runs.Run) -> list[str]:
    """Ten test problems: the first that are kept beside a model, or of the run's own data."""
    kept = Path(f"{run.folder}.json")
    rows = files.read_rows(kept) if kept.exists() else run.split("test").rows
    return [row["question"] for row in rows if prosqa.is_prosqa(row)][:N_EXAMPLES]


def script(run: runs.Run) -> str:
    """The text of model.js."""
    weights, names = run.model.state_dict(), names_known(run)
    sizes = run.model.config
    fields = {
        "name": json.dumps(run.folder.name),
        "about": in_lines(run.about),
        "n_layer": sizes.n_layer,
        "n_head": sizes.n_head,
        "n_embd": sizes.n_embd,
        "vocab_size": sizes.vocab_size,
        "block_size": sizes.block_size,
        "n_thoughts": run.plan.n_thoughts,
        "max_new_tokens": run.data["max_new_tokens"],
        "special": json.dumps(run.special),
        "vocabulary": listed(run.data["vocabulary"]),
        "pattern": in_lines(for_javascript(run.data["pattern"])),
        "name_pattern": in_lines(for_javascript(prosqa.NAME)),
        "persons": listed(list(filter(prosqa.is_person, names))),
        "concepts": listed([name for name in names if not prosqa.is_person(name)]),
        "questions": "[\n" + "".join(f"{in_lines(q)},\n" for q in questions_of(run)) + "]",
        "tensors": listed([[name, *tensor.shape] for name, tensor in weights.items()]),
        "weights": in_lines(in_base64(weights)),
    }
    lines = [f"// {run.folder.name}, by python -m nanococonut.lab.export. Do not edit."]
    lines += ['"use strict";', "const MODEL = {"]
    lines += [f"{name}: {value}," for name, value in fields.items()]
    return "\n".join([*lines, "};", ""])


def main(c: ExportConfig) -> None:
    run = runs.Run(c.run, device="cpu")
    demand_fit(run)
    path = Path(c.out)
    files.write_text(path, script(run))
    n_weights = sum(tensor.numel() for tensor in run.model.state_dict().values())
    print(f"{path}: {run.folder.name}, {n_weights} weights, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    cli.run(main, ExportConfig)
