"""runs/<name>/ on disk, and the processes that write there: opened once, never overwritten, gone on with exactly.

config.json   the settings                         ckpt.pt   the last state: weights, optimizers, random numbers
log.csv       step,stage,split,metric,value        best.pt   the weights that did best on valid in their stage
"""

import contextlib
import ctypes
import itertools
import os
import re
import signal
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from torch import distributed

from nanococonut import coconut, curriculum, tokenizer
from nanococonut.config import TrainConfig, UserError, written
from nanococonut.curriculum import METHODS, Example, Plan, plan
from nanococonut.data import Dataset, Split, folder_of, write_text
from nanococonut.model import GPT, GPTConfig

HEADER = "step,stage,split,metric,value\n"
FREE = ("preset", "name", "resume", "compile", "log_every", "eval_every", "save_every")  # may differ when a run goes on


def open_run(c: TrainConfig, dataset: Dataset) -> tuple[Path, dict | None]:
    """The run's folder under runs/, and the state it goes on from. Raises UserError: a run is never overwritten."""
    folder = folder_of("runs", c.name or f"{c.task}-{c.method}")
    if c.resume:
        if not (folder / "config.json").exists():
            raise UserError(f"{folder} not found: nothing to resume; leave --resume out, or give the run's --name")
        return folder, load_same(folder / "ckpt.pt", c, dataset) if (folder / "ckpt.pt").exists() else None
    if folder.exists() and not c.name:
        folder = next(f for n in itertools.count(2) if not (f := Path(f"{folder}-{n}")).exists())
    if folder.exists():
        raise UserError(f"{folder} exists; go on with it (--resume=true), choose another --name, or delete it")
    folder.mkdir(parents=True)
    return folder, None


def load_same(path: Path, c: TrainConfig, dataset: Dataset) -> dict:
    """A checkpoint. Raises UserError where its settings (one that it lacks had its default) or data are not these."""
    state, asked = load_state(path), asdict(c) | {"stage_steps": c.schedule}
    before = asdict(TrainConfig()) | state["config"]
    differ = [k for k in asked if k not in FREE and asked[k] != before[k]]
    if differ:
        both = ", ".join(f"--{k}={written(before[k])} and not {written(asked[k])}" for k in differ)
        raise UserError(f"{path.parent} was trained with {both}: it goes on with its own settings only, else delete it")
    dataset.demand_unchanged(str(path.parent), state["data"]["sha256"])
    return state


def named(name: str) -> Path | None:
    """The folder of a run given by name or path, if there is one."""
    return next((folder for folder in (Path("runs") / name, Path(name)) if (folder / "config.json").exists()), None)


def find_run(name: str) -> Path:
    """The folder of a run given by name or path; the newest for "". Raises UserError."""
    there = [path.parent for path in sorted(Path("runs").glob("*/config.json"))]
    folder = named(name) if name else max(there, key=lambda path: path.stat().st_mtime, default=None)
    if not folder:
        known = ", ".join(path.name for path in there) or "none yet; run: python train.py"
        raise UserError(f"runs/{name} not found; there is: {known}")
    return folder


def load_state(path: Path) -> dict:
    """What a checkpoint holds, tensors and plain values alone: no code of its file is run. Raises UserError."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        GPT(GPTConfig(**state["model_config"])).load_state_dict(state["model"])
        tokenizer.load(state["data"]["tokenizer"], state["data"]["vocabulary"])
        plan(state["config"]["method"], state["stage"], len(state["config"]["stage_steps"]) - 1)
    except Exception as error:  # torch.load raises a dozen kinds for a file that is cut, foreign or malicious
        kind, reason = type(error).__name__, str(error).partition("\n")[0][:80]
        raise UserError(f"{path} is not a checkpoint of nanococonut ({kind}: {reason}); run: python train.py") from None
    return state


def restore(state: dict, model: GPT, optimizers: list[torch.optim.Optimizer]) -> None:
    """Puts a checkpoint's weights, moments and random numbers back."""
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    torch.set_rng_state(state["rng"])
    if state["cuda_rng"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda_rng"])


def log(path: Path, step: int, stage: int, split: str, **metrics: float) -> None:
    """Appends to log.csv one line a number: step,stage,split,metric,value."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(HEADER * (file.tell() == 0))
        file.writelines(f"{step},{stage},{split},{metric},{value:.6g}\n" for metric, value in metrics.items())


def cut_log(path: Path, step: int) -> None:
    """Removes from log.csv what was written after a step, for it will be written again, and lines that are damaged."""
    if path.exists():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        whole = [re.fullmatch(r"(\d{1,9}),\d{1,9},\w+,\w+,-?[\d.]+(e[-+]\d+)?\n", line) for line in lines]
        kept = [line[0] for line in whole if line and int(line[1]) <= step]
        write_text(path, "".join([HEADER, *kept]))


@contextlib.contextmanager
def stop_signals():
    """A list that receives the first Ctrl-C or SIGTERM, for the loop to end well; the second one ends at once."""
    seen, numbers = [], (signal.SIGINT, signal.SIGTERM)

    def note(number, frame):
        seen.append(number)
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)

    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def pick_device(name: str) -> torch.device:
    """auto: CUDA, else Apple's MPS, else the CPU. Raises UserError for what this machine lacks."""
    there = ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    if name not in ("auto", *there):
        raise UserError(f"--device={name}: choose from auto, {', '.join(there)}, which this machine has")
    with contextlib.suppress(AttributeError, TypeError):  # glibc alone has mallopt
        # What a step frees the next one needs: kept, not handed back to the system and fetched again page by page.
        ctypes.CDLL(None).mallopt(-1, -1)  # M_TRIM_THRESHOLD: never
        ctypes.CDLL(None).mallopt(-4, 0)  # M_MMAP_MAX: none
    return torch.device(there[0] if name == "auto" else name)


def join(name: str) -> tuple[torch.device, int, int]:
    """The device of this process, its rank and the number of processes: (..., 0, 1) unless torchrun started it."""
    device = pick_device(name)
    if "RANK" not in os.environ:
        return device, 0, 1
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if distributed.get_rank():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - to the end: the first process speaks for all
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    return device, distributed.get_rank(), distributed.get_world_size()


def agree(stop: list[int], device) -> list[int]:
    """The signal that some process has received, for all to stop at the same step."""
    number = torch.tensor(stop[0] if stop else 0, device=device)
    distributed.all_reduce(number, distributed.ReduceOp.MAX)
    return [int(number)] if number else []


class Run:
    """A trained run, ready to answer."""

    def __init__(self, name: str, device: str = "auto"):
        self.folder = find_run(name)
        state = load_state(self.folder / "best.pt")
        self.stage, self.data = state["stage"], state["data"]
        self.config = c = asdict(TrainConfig()) | state["config"]  # an option that it lacks had its default
        self.device = pick_device(device)
        self.model = GPT(GPTConfig(**state["model_config"])).to(self.device).eval()
        self.model.load_state_dict(state["model"])
        self.encoding = tokenizer.load(self.data["tokenizer"], self.data["vocabulary"])
        self.special = tokenizer.special_ids(self.encoding)
        last, extras = len(c["stage_steps"]) - 1, dict(extra=c["extra_stage"], aligned=c["aligned"])
        self.plan = plan(c["method"], self.stage, last, c["c_thought"], **extras)

    def split(self, name: str) -> Split:
        """A split of the data the run was trained on. Raises UserError where that has changed since."""
        dataset = Dataset(self.config["task"])
        dataset.demand_unchanged(f"runs/{self.folder.name}", self.data["sha256"])
        return dataset.split(name)

    def plan_for(self, n_thoughts: int | None) -> Plan:
        """The run's own plan, or the same with another number of thoughts. Raises UserError."""
        if n_thoughts in (None, self.plan.n_thoughts):
            return self.plan
        if n_thoughts < 0 or METHODS[self.config["method"]].filler != "thought":
            about = f"{self.folder.name} was trained with method {self.config['method']}"
            raise UserError(f"--latent={n_thoughts}: expected 0 or more, and a run with thoughts; {about}")
        return self.plan._replace(n_thoughts=n_thoughts)

    def answer(self, examples: list[Example], p: Plan, batch_size=250, change=None) -> list[list[int]]:
        """What the run writes, ids without eos, one list an example; change as in coconut.generate."""
        prompts, eot = curriculum.prompts(examples, p, self.special)
        room = self.data["max_new_tokens"]
        return coconut.answer(self.model, prompts, p.n_thoughts, eot, self.special["eos"], room, batch_size, change)
