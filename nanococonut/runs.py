"""Writes and reads runs/<name>/, the folder of a training run. A run is never overwritten, and resumes exactly.

config.json   the settings                         ckpt.pt   the last state: weights, optimizers, random state
log.csv       step,stage,split,metric,value        best.pt   the weights with the best accuracy on valid in their stage
"""

import contextlib
import itertools
import json
import math
import os
import signal
import threading
import time
from dataclasses import asdict
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has none: there a run is not locked
    fcntl = None

import torch
from torch import Tensor
from tqdm import tqdm

from nanococonut import answers, compiling, devices, graph, log, optimizers, pretrained, starts, tokenizer
from nanococonut.answers import load_state, named
from nanococonut.batching import Schedule
from nanococonut.config import UserError, written
from nanococonut.curriculum import METHODS, Plan
from nanococonut.data import Dataset, Split, folder_of, write_atomically, write_text
from nanococonut.model import GPT, GPTConfig
from nanococonut.reading import read_json
from nanococonut.settings import TrainConfig

FREE = "preset name resume threads compile log_every eval_every save_every".split()  # may change on resuming
STOPS = {signal.SIGINT, signal.SIGTERM}  # Ctrl-C, and what batch systems send
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # nohup has it ignored
    STOPS.add(signal.SIGHUP)  # the terminal has been closed


def open_run(c: TrainConfig, dataset: Dataset) -> tuple[Path, dict | None]:
    """The folder of the run, and the state to resume from or None. Raises UserError rather than overwrite a run."""
    folder = folder_of("runs", c.name or f"{c.task}-{c.method}")
    if c.resume:
        if not (folder / "config.json").exists():
            missing = "has no config.json" if folder.exists() else "not found"
            raise UserError(f"{folder} {missing}: nothing to resume; leave --resume out, or give the run's --name")
        if (folder / "ckpt.pt").exists():
            return folder, load_same(folder / "ckpt.pt", c, dataset)
        demand_same(folder, asdict(TrainConfig()) | read_json(folder / "config.json"), c)
        first_save = min(next(n for n in c.schedule if n), c.save_every)
        if log.last_step(folder / "log.csv") > first_save:
            about = f"{folder} has lost its ckpt.pt, so it cannot go on"
            raise UserError(f"{about}; its weights can start another run: --init_from={folder.name}")
        return folder, None  # it was stopped before it saved anything, and begins again
    if folder.exists() and not c.name:
        folder = next(f for n in itertools.count(2) if not (f := Path(f"{folder}-{n}")).exists())
    if folder.exists() and (not folder.is_dir() or any(folder.glob("*.json")) or any(folder.glob("*.pt"))):
        raise UserError(f"{folder} exists; resume it (--resume=true), choose another --name, or delete it")
    folder.mkdir(parents=True, exist_ok=True)  # one without a run in it is used
    return folder, None


def lock(folder: Path) -> int | None:
    """Keeps other processes from writing a run for as long as this one lives. Raises UserError if one writes it."""
    if not fcntl:
        return None
    held = os.open(folder, os.O_RDONLY)  # until the process ends, however it does
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(held)
        raise UserError(f"{folder} is being trained by another process; choose another --name, or wait") from None
    return held


def load_same(path: Path, c: TrainConfig, dataset: Dataset) -> dict:
    """A checkpoint. Raises UserError if its settings or data differ; a setting that it lacks had its default."""
    state, _ = load_state(path)
    demand_same(path.parent, asdict(TrainConfig()) | state["config"], c)
    dataset.demand_unchanged(str(path.parent), state["data"])
    if not dataset.has_tokens_of(state["data"]):
        raise UserError(f"{dataset.folder} has other tokens than {path.parent}; {how_to_keep(path)}")
    return state


def demand_same(folder: Path, before: dict, c: TrainConfig) -> None:
    """Raises UserError if a run had other settings than those typed; options that are gone are fine if they were 0."""
    asked = asdict(c) | {"stage_steps": c.schedule}
    differ = [k for k in before if k not in FREE and asked.get(k, 0) != before[k]]
    if differ:
        had = " ".join(f"--{k}={written(before[k])}" for k in differ)
        raise UserError(f"{folder} was trained with {had}: it goes on with its own settings only, else delete it")


def how_to_keep(file: Path) -> str:
    """What to type for data in the tokens of a checkpoint."""
    return f"prepare it again with --vocabulary_of={file}"


def starting_model(c: TrainConfig, dataset: Dataset, n_positions: int) -> GPT:
    """The untrained model, with at least n_positions: random, or with weights from --init_from. Raises UserError."""
    if c.block_size and c.block_size < n_positions:
        raise UserError(f"--block_size={c.block_size} is too short for data/{c.task}: it needs {n_positions}")
    torch.manual_seed(c.seed)
    if c.init_from:
        file = named(c.init_from)
        if not file and c.init_from != "gpt2":
            raise UserError(f"--init_from={c.init_from} not found; expected gpt2, a run or a file")
        if not file and dataset.meta["tokenizer"] != "gpt2":  # asked before anything is fetched
            raise UserError("--init_from=gpt2 needs data in GPT-2's tokens; prepare it with --tokenizer=gpt2")
        state, model = load_state(file or pretrained.released(), dropout=c.dropout)
        if not dataset.has_tokens_of(state["data"]):
            raise UserError(f"{file} has another vocabulary than {dataset.folder}; {how_to_keep(file)}")
        if model.config.block_size < n_positions:
            raise UserError(f"{c.init_from} has fewer positions than the {n_positions} that data/{c.task} needs")
        return model
    block_size = c.block_size or compiling.round_up(n_positions, 64)  # some room for other files' longer questions
    shape = (dataset.encoding.n_vocab, block_size, c.n_layer, c.n_head, c.n_embd)
    model = GPT(GPTConfig(*shape, dropout=c.dropout, init=c.init, init_std=c.init_std))
    if c.init == "lookup":
        starts.liken(model, tokenizer.alike(dataset.meta["vocabulary"]))
    return model


def demand_graphs(c: TrainConfig, problems: Split) -> None:
    """Raises UserError for options that need a graph, if the words of the problems do not tell it."""
    graphs = list(map(graph.is_prosqa, problems.rows))  # ProsQA's; of ProntoQA one question per graph is asked
    fits = {"grow": any(problems.told), "reask": any(graphs), "questions": all(graphs)}
    unfit = [name for name, is_fit in fits.items() if not is_fit and getattr(c, name) != getattr(TrainConfig, name)]
    if unfit:
        off = " ".join(f"--{name}={getattr(TrainConfig, name):g}" for name in unfit)
        raise UserError(f"row {graphs.index(False)} of data/{c.task} tells no graph that they could use: add {off}")


class Writer:
    """Writes the files of a training run. With several processes, only the first one writes; all keep in step."""

    def __init__(self, c: TrainConfig, dataset: Dataset, machine: devices.Machine, model: GPT, max_new_tokens: int):
        self.c, self.machine, self.model = c, machine, model
        self.about_data = {key: dataset.meta[key] for key in ("task", "tokenizer", "vocabulary", "pattern", "sha256")}
        self.about_data["max_new_tokens"] = max_new_tokens
        self.folder, self.state = None, None
        if machine.is_first or c.resume:
            self.folder, self.state = open_run(c, dataset)
            self.log = self.folder / "log.csv"
        self.lock = lock(self.folder) if machine.is_first else None
        self.settings = asdict(c) | {"stage_steps": c.schedule}
        self.most_threads, self.pace = torch.get_num_threads(), devices.Pace()
        self.began = time.time()
        self.best = -1.0  # accuracy on valid of the stage's best weights
        self.recent = []  # (4,) of each step since the last log entry, on the device: train.accumulate's, gradient norm
        self.seen = torch.zeros(0, 4)  # the same numbers on the CPU
        self.level = torch.zeros((), device=machine.device)  # running mean of the stage's loss, this process's part
        self.last_loss, self.last_saved = math.nan, "There is no checkpoint yet"

    def resume(self, schedule: Schedule) -> tuple[int, list]:
        """The step to resume from, and the optimizers ([] in a new run). Removes later steps from log.csv."""
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
            schedule.set_steps(state.get("n_steps", schedule.n_steps))
            self.level = state.get("level", self.level).to(self.machine.device) / self.machine.n_processes
            self.began -= state["seconds"]
            n = self.machine.n_processes  # losses and thought norms are sums over these, gradient norms are not
            self.recent = list((state["recent"] / torch.tensor([n, n, n, 1])).to(self.machine.device))
            self.last_saved = f"{self.folder}/ckpt.pt holds step {step}"
            print(f"{self.folder} goes on from step {step}")
        if self.machine.is_first:
            for left in self.folder.glob("*.tmp"):  # half a file of a process that was killed
                left.unlink()
            write_text(self.folder / "config.json", json.dumps(self.settings, indent=1) + "\n")
            log.cut(self.log, step)
        return step, held

    def settle_threads(self, work) -> None:
        """Sets the number of CPU threads: as typed, as before resuming, which rounds alike, or fastest for work()."""
        threads = self.c.threads
        if self.state and "OMP_NUM_THREADS" not in os.environ:
            threads = threads or self.state["config"].get("threads", 0)
        if not threads:
            threads = self.try_threads(lambda: self.machine.fastest_threads(work, self.most_threads))
        self.use_threads(threads)

    def try_threads(self, trial) -> int:
        """What trial() returns; it may train for a moment, but changes neither the random state nor gradients."""
        with torch.random.fork_rng(devices=[]):
            threads = trial()
        self.model.zero_grad()
        return threads

    def keep_pace(self, work) -> None:
        """Called after each step: tries numbers of threads again if steps have become slower, and now and then later.

        So a run is bit for bit repeatable only with a number of threads that is set.
        """
        if self.c.threads or not self.machine.tries_threads(self.most_threads):
            return
        now = self.settings["threads"]
        if self.pace.is_due(has_fewer=now < self.most_threads):
            began = time.perf_counter()
            self.use_threads(self.try_threads(lambda: self.machine.timed_threads(work, self.most_threads, now)))
            self.pace.start(spent=time.perf_counter() - began)

    def use_threads(self, threads: int) -> None:
        """Sets the number of CPU threads, and keeps it for a run that resumes this one."""
        torch.set_num_threads(threads)
        self.settings["threads"] = threads
        if self.machine.is_first:
            write_text(self.folder / "config.json", json.dumps(self.settings, indent=1) + "\n")

    def passes(self, is_last: bool, n_behind: int, numbers: Tensor) -> bool:
        """Whether a stage is learned: the running mean of its loss is below --pass_loss. The last stage never is."""
        if not self.c.pass_loss or is_last:
            return False
        loss = numbers[0] + numbers[1]
        self.level = loss if n_behind == 0 else self.level.lerp(loss, 0.05)  # over some 20 steps
        return n_behind % 20 == 19 and float(self.machine.add_up(self.level.clone())) < self.c.pass_loss

    def due(self, step: int, begins: bool, ends: bool, stop: list[int]) -> tuple:
        """Whether to log, to evaluate and to save, and the received signal to stop on, or 0."""
        logs = begins or ends or step % self.c.log_every == 0
        asks = logs or self.machine.n_processes == 1  # several processes have to communicate, which takes time
        n_signals = self.machine.add_up(torch.tensor(len(stop))) if asks else 0
        stops = (stop or [signal.SIGTERM])[0] if n_signals else 0  # all processes stop if one is asked to
        evaluates = ends or (self.c.eval_every > 0 and step % self.c.eval_every == 0)
        return logs, evaluates, ends or step % self.c.save_every == 0 or stops > 0, stops

    def look(self, step: int, stage: int, held: list[torch.optim.Optimizer]) -> None:
        """Fetches the latest steps' numbers, which waits for the device. Raises UserError if one is not finite."""
        seen = self.machine.add_up(torch.stack(self.recent)) if self.recent else self.seen[:0]
        seen[:, 3:] /= self.machine.n_processes  # the same in all processes; the others are parts of a sum
        self.seen = seen.cpu()
        lr = held[0].param_groups[0]["lr"]
        for number, (loss, _, _, gradient) in enumerate(self.seen.tolist(), start=step - len(self.seen) + 1):
            if not math.isfinite(loss + gradient):
                found = f"the loss is {loss:g} and the gradient norm {gradient:g} at step {number}"
                raise UserError(f"{found}, stage {stage}, lr {lr:g}; lower --lr. {self.last_saved}")

    def log_training(self, step: int, stage: int, factor: float) -> None:
        """Logs the means over the latest steps. Batches without thoughts have nan as their norm, which is ignored."""
        self.last_loss, next_loss, thought_norm, gradient_norm = self.seen.nanmean(dim=0).tolist()
        self.recent, self.seen = [], self.seen[:0]
        if not self.machine.is_first:
            return
        metrics = {"loss": self.last_loss, "gradient_norm": gradient_norm, "lr_factor": factor}
        metrics["embedding_norm"] = float(self.model.wte.weight.detach().norm(dim=1).mean())
        if not math.isnan(thought_norm):
            metrics["thought_norm"] = thought_norm
        if self.c.layout == "in_place" and METHODS[self.c.method].filler:
            metrics["next_word_loss"] = next_loss
        log.append(self.log, step, stage, "train", metrics | {"seconds": time.time() - self.began})

    def evaluate(self, step: int, stage: int, valid: Split, plan: Plan, special: dict[str, int]) -> None:
        """Logs the accuracy on valid, and saves best.pt if it is at least as high as any before in this stage."""
        if not self.machine.is_first:
            return
        with self.machine.autocast():
            at_once = self.c.micro_batch_size or answers.AT_ONCE
            accuracy = answers.accuracy(self.model, valid, plan, special, self.about_data["max_new_tokens"], at_once)
        log.append(self.log, step, stage, "valid", {"accuracy": accuracy})
        with contextlib.suppress(OSError):  # the terminal may be closed
            tqdm.write(f"step {step}, stage {stage}: accuracy {accuracy:.1%}")
        if accuracy >= self.best:
            self.best = accuracy
            self.save("best.pt", step, stage)

    def save(self, file: str, step: int, stage: int, **more) -> None:
        """Writes a checkpoint of tensors and plain values; `more` is what resuming needs besides the weights."""
        more |= dict(model=self.model.state_dict(), model_config=asdict(self.model.config), config=self.settings)
        more |= dict(data=self.about_data, step=step, stage=stage, best=self.best)
        write_atomically(self.folder / file, lambda f: torch.save(more, f))

    def save_last(self, step: int, stage: int, held: list[torch.optim.Optimizer], schedule: Schedule) -> None:
        """Writes ckpt.pt, which holds all that is needed to resume as if the run had not stopped."""
        level = self.machine.add_up(self.level.clone()).cpu()
        if not self.machine.is_first:
            return
        on_cuda = self.machine.device.type == "cuda"
        rngs = dict(rng=torch.get_rng_state(), cuda_rng=torch.cuda.get_rng_state() if on_cuda else None)
        moments, seconds = [optimizer.state_dict() for optimizer in held], time.time() - self.began
        rngs |= dict(n_steps=schedule.n_steps, level=level)
        # recent: summed over all processes, and not logged yet
        self.save("ckpt.pt", step, stage, optimizers=moments, recent=self.seen, seconds=seconds, **rngs)
        self.last_saved = f"{self.folder}/ckpt.pt holds step {step}"

    def say_how_to_go_on(self, step: int) -> None:
        """Prints how to resume a run that was stopped."""
        self.machine.leave()
        if self.machine.is_first:
            print(f"stopped at step {step}; to go on: the same command with --name={self.folder.name} --resume=true")

    def close(self) -> None:
        """Leaves the run to other processes."""
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def finish(self) -> None:
        """Draws the curves, and prints the result and the next command."""
        if self.machine.is_first:
            log.curves(log.read(self.log), self.folder / "curves.png")
            result = f"{self.best:.1%} of valid right. Next: python sample.py {self.folder.name}"
            print(f"{self.folder} after {time.time() - self.began:.0f} s: {result}")


@contextlib.contextmanager
def stop_signals():
    """A list that receives the signals of STOPS, so that the loop can save. A second Ctrl-C kills the process."""
    seen = []
    if threading.current_thread() is not threading.main_thread():  # as in a notebook's or a web server's worker
        yield seen  # Python handles signals in the main thread alone
        return

    def note(number, frame):
        seen.append(number)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # others are often sent twice, as when a terminal is closed

    with contextlib.ExitStack() as after:  # whatever happens, the handlers from before come back
        for number in STOPS:
            after.callback(signal.signal, number, signal.signal(number, note))
        yield seen
