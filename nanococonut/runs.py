"""runs/<name>/ on disk, and the processes that write there: opened once, never overwritten, gone on with exactly.

config.json   the settings                         ckpt.pt   the last state: weights, optimizers, random numbers
log.csv       step,stage,split,metric,value        best.pt   the weights that did best on valid in their stage
"""

import contextlib
import itertools
import json
import math
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from nanococonut import answers, compiling, devices, log, optimizers, pretrained, starts, tokenizer
from nanococonut.config import UserError, written
from nanococonut.curriculum import METHODS, Example, Plan, plan
from nanococonut.data import Dataset, Split, folder_of, write_atomically, write_text
from nanococonut.model import GPT, GPTConfig
from nanococonut.settings import PRESETS, TrainConfig

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
    (state, _), asked = load_state(path), asdict(c) | {"stage_steps": c.schedule}
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


def load_state(path: Path, **changes) -> tuple[dict, GPT]:
    """A checkpoint's tensors and plain values, no code of it is run, and its model with changes. Raises UserError."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model = GPT(GPTConfig(**state["model_config"] | changes))
        model.load_state_dict(state["model"])
        tokenizer.load(state["data"]["tokenizer"], state["data"]["vocabulary"])
        plan(state["config"]["method"], state["stage"], len(state["config"]["stage_steps"]) - 1)
    except UserError:  # GPT-2's vocabulary is missing
        raise
    except Exception as error:  # torch.load raises a dozen kinds for a file that is cut, foreign or malicious
        kind, reason = type(error).__name__, str(error).partition("\n")[0][:80]
        raise UserError(f"{path} is not a checkpoint of nanococonut ({kind}: {reason}); run: python train.py") from None
    return state, model


def starting_model(c: TrainConfig, dataset: Dataset, n_positions: int) -> GPT:
    """The model before its first step, with n_positions at least: random, or from --init_from. Raises UserError."""
    if c.block_size and c.block_size < n_positions:
        raise UserError(f"--block_size={c.block_size} is too short for data/{c.task}: it needs {n_positions}")
    torch.manual_seed(c.seed)
    if c.init_from:
        folder = named(c.init_from)
        if folder:
            state, model = load_state(folder / "best.pt", dropout=c.dropout)
            if any(state["data"][key] != dataset.meta[key] for key in ("tokenizer", "vocabulary")):
                raise UserError(f"{folder} has another vocabulary than {dataset.folder}; train it on the same data")
        else:
            model = pretrained.start(c.init_from, c.n_head, c.dropout, dataset)
        there = model.config.block_size
        if there < n_positions:
            raise UserError(f"{c.init_from} has {there} positions, data/{c.task} needs {n_positions}")
        return model
    block_size = c.block_size or compiling.round_up(n_positions, 64)  # a little room for other files' questions
    shape = (dataset.encoding.n_vocab, block_size, c.n_layer, c.n_head, c.n_embd)
    model = GPT(GPTConfig(*shape, dropout=c.dropout, init=c.init, init_std=c.init_std))
    if c.init == "lookup":
        starts.liken(model, tokenizer.alike(dataset.meta["vocabulary"]))
    return model


def fit_to_data(c: TrainConfig, problems: Split, tokenizer_name: str) -> TrainConfig:
    """The settings for these data: without graphs a preset's options on graphs are off. Raises UserError if typed."""
    options, preset = ("grow", "reask", "taught", "questions"), PRESETS.get(c.preset, {})
    if not any(problems.told):
        off = {name: getattr(TrainConfig, name) for name in options if getattr(c, name) == preset.get(name)}
        if off:
            print(f"the problems have no graphs to tell: the preset's {', '.join(off)} are off")
        c = replace(c, **off)
    for name in options[:3]:
        if getattr(c, name):
            problems.demand_graphs(f"--{name}={getattr(c, name)}")
    if c.questions > 1:
        problems.demand_graphs("--questions", wanted=1, every=True)
    if c.taught and tokenizer_name != "words":
        raise UserError("--taught should be 0: a node is one token in words alone, so prepare with --tokenizer=words")
    return c


class Due(NamedTuple):
    """What is to be done after a step."""

    logs: bool
    evaluates: bool
    saves: bool
    stops: int  # the signal that stops the run; 0: none


class Writer:
    """What a training run leaves in its folder. Of several processes the first one writes, and the others keep step."""

    def __init__(self, c: TrainConfig, dataset: Dataset, machine: devices.Machine, model: GPT, max_new_tokens: int):
        self.c, self.machine, self.model = c, machine, model
        self.about_data = {key: dataset.meta[key] for key in ("task", "tokenizer", "vocabulary", "sha256")}
        self.about_data["max_new_tokens"] = max_new_tokens
        self.folder, self.state = None, None
        if machine.is_first or c.resume:
            self.folder, self.state = open_run(c, dataset)
            self.log = self.folder / "log.csv"
        self.settings = asdict(c) | {"stage_steps": c.schedule}
        self.began = time.time()
        self.best = -1.0  # accuracy on valid of the stage's best weights
        self.recent = []  # numbers of the steps since the last log line, on the device
        self.seen = torch.zeros(0, 5)  # the same, looked at
        self.last_loss, self.last_saved = math.nan, "There is no checkpoint yet"

    def resume(self) -> tuple[int, list]:
        """The step to go on from, and the optimizers, none in a new run. What log.csv has of later steps is removed."""
        step, held, state = 0, [], self.state
        if state:
            held = optimizers.make(self.model, self.c)
            for optimizer, saved in zip(held, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.model.load_state_dict(state["model"])
            torch.set_rng_state(state["rng"])
            if state["cuda_rng"] is not None and torch.cuda.is_available():
                torch.cuda.set_rng_state(state["cuda_rng"])
            step, self.best = state["step"], state["best"]
            self.began -= state["seconds"]
            n = self.machine.n_processes  # which share loss and thoughts' length, and have gradient and flag in common
            self.recent = list((state["recent"] / torch.tensor([n, n, n, 1, 1])).to(self.machine.device))
            self.last_saved = f"{self.folder}/ckpt.pt holds step {step}"
            print(f"{self.folder} goes on from step {step}")
        if self.machine.is_first:
            write_text(self.folder / "config.json", json.dumps(self.settings, indent=1) + "\n")
            log.cut(self.log, step)
        return step, held

    def note(self, found: torch.Tensor, gradient_norm: torch.Tensor, is_scheduled: bool) -> None:
        """Keeps a step's numbers on the device: found (3,) is what train.accumulate returns."""
        self.recent.append(torch.stack([*found, gradient_norm, torch.full_like(gradient_norm, is_scheduled)]))

    def due(self, step: int, begins: bool, ends: bool, stop: list[int]) -> Due:
        """What is to be done after a step with which a stage begins or ends, or neither; stop: signals received."""
        logs = begins or ends or step % self.c.log_every == 0
        asks = logs or self.machine.n_processes == 1  # several processes have to ask each other, which takes time
        stops = self.machine.agree(stop) if asks else 0
        evaluates = ends or (self.c.eval_every > 0 and step % self.c.eval_every == 0)
        return Due(logs, evaluates, ends or step % self.c.save_every == 0 or stops > 0, stops)

    def look(self, step: int, stage: int, held: list[torch.optim.Optimizer]) -> None:
        """Fetches the latest steps' numbers: the device is waited for. Raises UserError where one is not finite."""
        seen = self.machine.add_up(torch.stack(self.recent)) if self.recent else self.seen[:0]
        seen[:, 3:] /= self.machine.n_processes  # equal everywhere; of the others each process has its share
        self.seen = seen.cpu()
        lr = held[0].param_groups[0]["lr"]
        for number, (loss, _, _, gradient, _) in enumerate(self.seen.tolist(), start=step - len(self.seen) + 1):
            if not math.isfinite(loss + gradient):
                found = f"the loss is {loss:g} and its gradient {gradient:g} long at step {number}"
                raise UserError(f"{found}, stage {stage}, lr {lr:g}; lower --lr. {self.last_saved}")

    def log_training(self, step: int, stage: int, factor: float, plan: Plan) -> None:
        """Logs the means over the latest steps of the stage that was scheduled, if there are any."""
        scheduled = self.seen[self.seen[:, 4] > 0]
        if not len(scheduled):
            return
        self.last_loss, teaching_loss, thought_norm, gradient_norm, _ = scheduled.mean(dim=0).tolist()
        self.recent, self.seen = [], self.seen[:0]
        if not self.machine.is_first:
            return
        metrics = {"loss": self.last_loss, "gradient_norm": gradient_norm, "lr_factor": factor}
        metrics["embedding_norm"] = float(self.model.wte.weight.detach().norm(dim=1).mean())
        if plan.n_thoughts:
            metrics["thought_norm"] = thought_norm
        if self.c.taught:
            metrics["teaching_loss"] = teaching_loss
        log.append(self.log, step, stage, "train", metrics | {"seconds": time.time() - self.began})

    def evaluate(self, step: int, stage: int, valid: Split, plan: Plan, special: dict[str, int]) -> None:
        """Logs the accuracy on valid, and saves best.pt where it is as good as any before in this stage."""
        if not self.machine.is_first:
            return
        with self.machine.autocast():
            metrics = answers.accuracy(self.model, valid, plan, special, self.about_data["max_new_tokens"])
        log.append(self.log, step, stage, "valid", metrics)
        tqdm.write(f"step {step}, stage {stage}: " + ", ".join(f"{name} {x:.1%}" for name, x in metrics.items()))
        if metrics["accuracy"] >= self.best:
            self.best = metrics["accuracy"]
            self.save("best.pt", step, stage)

    def save(self, file: str, step: int, stage: int, **more) -> None:
        """Writes a checkpoint: tensors and plain values; `more` is what resuming needs beside the weights."""
        more |= dict(model=self.model.state_dict(), model_config=asdict(self.model.config), config=self.settings)
        more |= dict(data=self.about_data, step=step, stage=stage, best=self.best)
        write_atomically(self.folder / file, lambda f: torch.save(more, f))

    def save_last(self, step: int, stage: int, held: list[torch.optim.Optimizer]) -> None:
        """Writes ckpt.pt: all that it takes to go on as if nothing had been."""
        if not self.machine.is_first:
            return
        on_cuda = self.machine.device.type == "cuda"
        rngs = dict(rng=torch.get_rng_state(), cuda_rng=torch.cuda.get_rng_state() if on_cuda else None)
        moments, seconds = [optimizer.state_dict() for optimizer in held], time.time() - self.began
        # recent: of all processes together, and not logged yet
        self.save("ckpt.pt", step, stage, optimizers=moments, recent=self.seen, seconds=seconds, **rngs)
        self.last_saved = f"{self.folder}/ckpt.pt holds step {step}"

    def say_how_to_go_on(self, step: int) -> None:
        """The last words of a run that was stopped."""
        self.machine.leave()
        if self.machine.is_first:
            print(f"stopped at step {step}; to go on: the same command with --name={self.folder.name} --resume=true")

    def finish(self) -> None:
        """Draws the curves and says what comes next."""
        if self.machine.is_first:
            log.draw_curves(self.log, self.folder / "curves.png")
            result = f"{self.best:.1%} of valid right. Next: python sample.py {self.folder.name}"
            print(f"{self.folder} after {time.time() - self.began:.0f} s: {result}")


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


class Run:
    """A trained run, ready to answer."""

    def __init__(self, name: str, device: str = "auto"):
        """A run given by name or path; the newest for "". Raises UserError."""
        there = [path.parent for path in sorted(Path("runs").glob("*/config.json"))]
        newest = max(there, key=lambda path: path.stat().st_mtime, default=None)
        self.folder, self.machine = named(name) if name else newest, devices.pick(device)
        if not self.folder:
            known = ", ".join(path.name for path in there) or "none yet; run: python train.py"
            raise UserError(f"runs/{name} not found; there is: {known}")
        file = self.folder / "best.pt"
        if not file.exists() and (self.folder / "ckpt.pt").exists():
            file = self.folder / "ckpt.pt"
            print(f"{self.folder.name} was stopped before its first evaluation: this is its ckpt.pt")
        state, model = load_state(file)
        self.stage, self.data = state["stage"], state["data"]
        self.config = c = asdict(TrainConfig()) | state["config"]  # an option that it lacks had its default
        self.model = model.to(self.machine.device).eval()
        self.encoding = tokenizer.load(self.data["tokenizer"], self.data["vocabulary"])
        self.special = tokenizer.special_ids(self.encoding)
        last = len(c["stage_steps"]) - 1
        self.plan = plan(c["method"], self.stage, last, c["c_thought"], c["extra_stage"], c["aligned"])

    def split(self, name: str) -> Split:
        """A split of the data the run was trained on. Raises UserError where that has changed since."""
        dataset = Dataset(self.config["task"])
        dataset.demand_unchanged(f"runs/{self.folder.name}", self.data["sha256"])
        return dataset.split(name)

    def plan_for(self, n_thoughts: int | None) -> Plan:
        """The run's own plan, or the same with another number of thoughts. Raises UserError."""
        if n_thoughts in (None, self.plan.n_thoughts):
            return self.plan
        method = self.config["method"]
        if n_thoughts < 0 or METHODS[method].filler != "thought":
            about = f"{self.folder.name} was trained with method {method}"
            raise UserError(f"--latent={n_thoughts}: expected 0 or more, and a run with thoughts; {about}")
        return self.plan._replace(n_thoughts=n_thoughts)

    def answer(self, examples: list[Example], p: Plan, batch_size: int = 250, change=None) -> list[list[int]]:
        """What the run writes, ids without eos, one list an example; change as in coconut.generate."""
        # Chains may be longer than any in training: there is room for them as far as the model has positions.
        due = [len(example.rests[min(p.n_removed, len(example.rests) - 1)]) for example in examples]
        asked = max(len(example.question) for example in examples) + p.n_thoughts + p.n_pauses + 2  # two markers
        most = max(self.data["max_new_tokens"], min(max(due) + 1, self.model.config.block_size - asked))
        n_cut = sum(n > most for n in due)
        if n_cut:
            print(f"{n_cut} of {len(due)} answers are cut: their chains are longer than the model has positions for")
        with self.machine.autocast():
            return answers.answer(self.model, examples, p, self.special, most, batch_size, change)
