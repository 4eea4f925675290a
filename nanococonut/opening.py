"""What a training run begins with: its folder, new or gone on with, and its model.

A run is never overwritten. It goes on with its own settings, problems and tokens only.
"""

import itertools
import os
from dataclasses import asdict
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has none: there a run is not locked
    fcntl = None

import torch

from nanococonut import compiling, log, pretrained, prosqa, starts, tokenizer
from nanococonut.cli import UserError, written
from nanococonut.config import TrainConfig
from nanococonut.data import Dataset, Split
from nanococonut.files import folder_of, read_json
from nanococonut.model import GPT, GPTConfig
from nanococonut.runs import load_state, named

# What may change on resuming.
FREE = "preset name resume threads compile log_every eval_every save_every".split()

# The folder


def open_run(c: TrainConfig, dataset: Dataset) -> tuple[Path, dict | None]:
    """The folder of the run, and the state to resume from or None.

    Raises UserError rather than overwrite a run.
    """
    folder = folder_of("runs", c.name or f"{c.task}-{c.method}")
    if c.resume:
        return folder, state_to_resume(folder, c, dataset)
    if folder.exists() and not c.name:
        folder = with_first_free_number(folder)
    if folder.exists() and holds_run(folder):
        advice = "resume it (--resume=true), choose another --name, or delete it"
        raise UserError(f"{folder} exists; {advice}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder, None


def with_first_free_number(folder: Path) -> Path:
    """The first of runs/name-2, runs/name-3, ... that does not exist."""
    for number in itertools.count(2):
        numbered = Path(f"{folder}-{number}")
        if not numbered.exists():
            return numbered


def holds_run(path: Path) -> bool:
    """Whether a folder has a run in it. One with other files is free to use; a file is not."""
    if not path.is_dir():
        return True
    return any(path.glob("*.json")) or any(path.glob("*.pt"))


def state_to_resume(folder: Path, c: TrainConfig, dataset: Dataset) -> dict | None:
    """The last state of a run, or None if it was stopped before it saved one. Raises UserError."""
    if not (folder / "config.json").exists():
        missing = "has no config.json" if folder.exists() else "not found"
        advice = "leave --resume out, or give the run's --name"
        raise UserError(f"{folder} {missing}: nothing to resume; {advice}")
    if (folder / "ckpt.pt").exists():
        return load_same(folder / "ckpt.pt", c, dataset)
    demand_same(folder, read_json(folder / "config.json"), c)
    end_of_first_stage = next(n for n in c.schedule if n)
    if log.last_step(folder / "log.csv") > min(end_of_first_stage, c.save_every):
        advice = f"its weights can start another run: --init_from={folder.name}"
        raise UserError(f"{folder} has lost its ckpt.pt, so it cannot go on; {advice}")
    return None


def lock(folder: Path) -> int | None:
    """Keeps other processes from writing a run for as long as this one lives.

    Returns the descriptor to close, if there are locks here. Raises UserError if another process
    writes the run.
    """
    if not fcntl:
        return None
    descriptor = os.open(folder, os.O_RDONLY)  # the lock goes with it, however the process ends
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        advice = "choose another --name, or wait"
        raise UserError(f"{folder} is being trained by another process; {advice}") from None
    return descriptor


def load_same(path: Path, c: TrainConfig, dataset: Dataset) -> dict:
    """A checkpoint. Raises UserError if its settings or data differ."""
    state, _ = load_state(path)
    demand_same(path.parent, state["config"], c)
    dataset.demand_unchanged(str(path.parent), state["data"])
    if not dataset.has_tokens_of(state["data"]):
        advice = how_to_keep_tokens(path)
        raise UserError(f"{dataset.folder} has other tokens than {path.parent}; {advice}")
    return state


def demand_same(folder: Path, stored: dict, c: TrainConfig) -> None:
    """Raises UserError if a run was stored with other settings than those typed.

    A setting that it lacks had its default. Options that are gone are fine if they were 0.
    """
    before = asdict(TrainConfig()) | stored
    typed = asdict(c) | {"stage_steps": c.schedule}
    differ, gone = [], []
    for key, value in before.items():
        if key in FREE or written(typed.get(key, 0)) == written(value):  # JSON has lists for tuples
            continue
        if key in typed:
            differ.append(f"--{key}={written(value)}")
        elif value:
            gone.append(f"--{key}={written(value)}")
    if gone:
        advice = f"its weights can start another run: --init_from={folder.name}"
        raise UserError(f"{folder} is of an earlier version, with {' '.join(gone)}; {advice}")
    if differ:
        advice = "it goes on with its own settings only, else delete it"
        raise UserError(f"{folder} was trained with {' '.join(differ)}: {advice}")


def how_to_keep_tokens(file: Path) -> str:
    """What to type for data in the tokens of a checkpoint."""
    return f"prepare it again with --vocabulary_of={file}"


# The model


def starting_model(c: TrainConfig, dataset: Dataset, n_positions: int) -> GPT:
    """The untrained model, with at least n_positions. Raises UserError.

    Its weights are random, or those of --init_from.
    """
    if c.block_size and c.block_size < n_positions:
        needed = f"data/{c.task}: it needs {n_positions}"
        raise UserError(f"--block_size={c.block_size} is too short for {needed}")
    torch.manual_seed(c.seed)
    if c.init_from not in ("", "lookup"):
        return loaded_model(c, dataset, n_positions)
    sizes = {
        "vocab_size": dataset.encoding.n_vocab,
        # Rounded up, which leaves some room for other files' longer questions.
        "block_size": c.block_size or compiling.round_up(n_positions, 64),
        "n_layer": c.n_layer,
        "n_head": c.n_head,
        "n_embd": c.n_embd,
        "dropout": c.dropout,
    }
    if not c.init_from:
        return GPT(GPTConfig(**sizes))
    model = GPT(GPTConfig(**sizes, init="lookup", init_std=starts.LOOKUP_STD))
    starts.correlate_embeddings(model, tokenizer.alike(dataset.meta["vocabulary"]))
    return model


def loaded_model(c: TrainConfig, dataset: Dataset, n_positions: int) -> GPT:
    """The model of --init_from, with at least n_positions. Raises UserError."""
    file = named(c.init_from)
    if not file and c.init_from != "gpt2":
        expected = "expected lookup, gpt2, a run or a file"
        raise UserError(f"--init_from={c.init_from} not found; {expected}")
    if not file and dataset.meta["tokenizer"] != "gpt2":  # asked before anything is fetched
        advice = "prepare it with --tokenizer=gpt2"
        raise UserError(f"--init_from=gpt2 needs data in GPT-2's tokens; {advice}")
    state, model = load_state(file or pretrained.released(), dropout=c.dropout)
    if not dataset.has_tokens_of(state["data"]):
        advice = how_to_keep_tokens(file)
        raise UserError(f"{file} has another vocabulary than {dataset.folder}; {advice}")
    if model.config.block_size < n_positions:
        needed = f"the {n_positions} that data/{c.task} needs"
        raise UserError(f"{c.init_from} has fewer positions than {needed}")
    return model


def demand_graphs(c: TrainConfig, problems: Split) -> None:
    """Raises UserError for options that need a graph, if the problems' words do not tell it."""
    have_graphs = [prosqa.is_prosqa(row) for row in problems.rows]
    changes = []
    if c.grow[0] and not any(problems.told):
        changes.append("--grow=0")
    if c.augment > 1 and not all(have_graphs):  # of ProntoQA one question per graph is asked
        changes.append("--augment=1")
    if changes:
        row = f"row {have_graphs.index(False)} of data/{c.task}"
        advice = f"add {' '.join(changes)}"
        raise UserError(f"{row} tells no graph that they could use: {advice}")
