"""What a training run writes to its folder runs/<name>/, and when: its log, checkpoints and stops.

It goes on where it stopped, bit for bit if OMP_NUM_THREADS is set: see opening.py.

config.json  the settings
log.csv      step,stage,split,metric,value
ckpt.pt      the last state: weights, optimizers, random state
best.pt      the weights to answer with. In place, where the rates fall over the whole run, the
             latest evaluated ones; in the paper's layout the most accurate on valid in their stage
"""

import contextlib
import json
import math
import os
import signal
import threading
import time
from dataclasses import asdict
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from nanococonut import device, log, optim, plots, runs
from nanococonut.batching import Schedule
from nanococonut.cli import UserError
from nanococonut.config import TrainConfig
from nanococonut.curriculum import Plan
from nanococonut.data import Dataset
from nanococonut.files import write_atomically, write_text
from nanococonut.model import GPT
from nanococonut.opening import lock, open_run

# Differs from the paper: in place a stage ends when it is learned. Nats, of words and next words
# together, below which it leaves its other steps to the last stage (ours).
LEARNED = 0.15
STOPS = {signal.SIGINT, signal.SIGTERM}  # Ctrl-C, and what batch systems send
# A closed terminal sends SIGHUP, which Windows lacks. Under nohup it is ignored.
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
    STOPS.add(signal.SIGHUP)


class Due(NamedTuple):
    """What is to be done after a step."""

    logs: bool
    evaluates: bool
    saves: bool
    signal_number: int  # the signal to stop on, or 0


class Writer:
    """Writes the files of a training run.

    With several processes, only the first one writes; all keep in step.
    """

    def __init__(
        self,
        c: TrainConfig,
        dataset: Dataset,
        machine: device.Machine,
        model: GPT,
        max_new_tokens: int,
    ):
        self.c, self.machine, self.model = c, machine, model
        self.valid, self.special = dataset.split("valid"), dataset.special
        self.settings = asdict(c) | {"stage_steps": c.schedule}
        keys = ("task", "tokenizer", "vocabulary", "pattern", "sha256")
        self.about_data = {key: dataset.meta[key] for key in keys}
        self.about_data["max_new_tokens"] = max_new_tokens
        self.folder = None
        self.state = None  # to resume from
        if machine.is_first or c.resume:
            self.folder, self.state = open_run(c, dataset)
            self.log = self.folder / "log.csv"
        self.lock = lock(self.folder) if machine.is_first else None
        self.max_threads = torch.get_num_threads()
        self.pace = device.Pace()
        self.began = time.time()  # of a resumed run: less the seconds before
        self.best = -1.0  # accuracy on valid of the weights in best.pt
        self.last_loss = math.nan
        self.last_saved = "There is no checkpoint yet"
        # (4,) of each step since the last log entry, on the device: the numbers of
        # train.accumulate, and the gradient norm.
        self.recent = []
        self.fetched = torch.zeros(0, 4)  # the same numbers on the CPU
        # The running mean of the stage's loss, this process's part.
        self.level = torch.zeros((), device=machine.device)

    def keep(self, n_behind: int, numbers: Tensor) -> None:
        """Keeps the numbers (4,) of a step for the next log entry; they stay on the device."""
        if n_behind == 0:
            self.best = -1.0  # a stage is compared with itself alone
        self.recent.append(numbers)

    def resume(self, schedule: Schedule) -> tuple[int, list]:
        """The step to resume from, and the optimizers ([] in a new run).

        Removes later steps from log.csv.
        """
        step = 0
        optimizers = []
        if self.state:
            step = self.state["step"]
            optimizers = self.restore(self.state, schedule)
            print(f"{self.folder} goes on from step {step}")
        if self.machine.is_first:
            for half_a_file in self.folder.glob("*.tmp"):  # of a process that was killed
                half_a_file.unlink()
            self.write_settings()
            log.cut(self.log, step)
        return step, optimizers

    def restore(self, state: dict, schedule: Schedule) -> list[torch.optim.Optimizer]:
        """Sets the model, the schedule, the random state and the counts to those of a checkpoint.

        Returns its optimizers.
        """
        optimizers = optim.make(self.model, self.c)
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.model.load_state_dict(state["model"])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda_rng"])
        schedule.set_steps(state.get("n_steps", schedule.n_steps))
        self.best = state["best"]
        self.began -= state["seconds"]
        self.last_saved = f"{self.folder}/ckpt.pt holds step {state['step']}"
        # A checkpoint holds sums over all processes; only gradient norms are the same in each.
        n = self.machine.n_processes
        level = state.get("level", self.level)
        self.level = level.to(self.machine.device) / n
        recent = state["recent"] / torch.tensor([n, n, n, 1])
        self.recent = list(recent.to(self.machine.device))
        return optimizers

    def write_settings(self) -> None:
        """Writes config.json."""
        write_text(self.folder / "config.json", json.dumps(self.settings, indent=1) + "\n")

    def settle_threads(self, work) -> None:
        """Sets the number of CPU threads to that with which work() is fastest.

        A resumed run keeps its number, because another one rounds differently.
        """
        threads = 0
        if self.state and "OMP_NUM_THREADS" not in os.environ:
            threads = self.state["config"].get("threads", 0)
        if not threads:
            with self.trial():
                threads = self.machine.fastest_threads(work, self.max_threads)
        self.use_threads(threads)

    @contextlib.contextmanager
    def trial(self):
        """A context that may train for a moment: random state and gradients stay as they are."""
        with torch.random.fork_rng(devices=[]):
            yield
        self.model.zero_grad()

    def keep_pace(self, work) -> None:
        """Called after each step: tries numbers of threads again.

        That is done if steps have become slower, and now and then later. So a run is bit for bit
        repeatable only if OMP_NUM_THREADS sets their number.
        """
        if not self.machine.tries_threads(self.max_threads):
            return
        before = self.settings["threads"]
        if not self.pace.is_due(has_fewer=before < self.max_threads):
            return
        began = time.perf_counter()
        with self.trial():
            threads = self.machine.timed_threads(work, self.max_threads, before)
        self.use_threads(threads)
        self.pace.start(spent=time.perf_counter() - began)

    def use_threads(self, threads: int) -> None:
        """Sets the number of CPU threads, and keeps it for a run that resumes this one."""
        torch.set_num_threads(threads)
        self.settings["threads"] = threads
        if self.machine.is_first:
            self.write_settings()

    def is_learned(self, is_last: bool, n_behind: int, numbers: Tensor) -> bool:
        """Whether a stage is learned: the running mean of its loss is below LEARNED.

        The last stage never is, nor is any in the paper's layout.
        """
        if is_last or self.c.layout == "paper":
            return False
        loss = numbers[0] + numbers[1]
        self.level = loss if n_behind == 0 else self.level.lerp(loss, 0.05)  # over some 20 steps
        if n_behind % 20 != 19:
            return False
        return float(self.machine.add_up(self.level.clone())) < LEARNED

    def due(self, step: int, begins: bool, ends: bool, stop: list[int]) -> Due:
        """What is due after a step.

        begins, ends  whether it is the first or the last step of its stage
        stop          the signals received so far
        """
        logs = begins or ends or step % self.c.log_every == 0
        evaluates = ends or (self.c.eval_every > 0 and step % self.c.eval_every == 0)
        signal_number = 0
        # Several processes have to communicate for it, which takes time.
        if logs or self.machine.n_processes == 1:
            signal_number = self.signal_to_stop_on(stop)
        saves = ends or signal_number > 0 or step % self.c.save_every == 0
        return Due(logs, evaluates, saves, signal_number)

    def signal_to_stop_on(self, received: list[int]) -> int:
        """A signal received, or 0. All processes stop if one of them is asked to."""
        n_received = int(self.machine.add_up(torch.tensor(len(received))))
        if n_received == 0:
            return 0
        return received[0] if received else signal.SIGTERM

    def fetch(self, step: int, stage: int, optimizers: list[torch.optim.Optimizer]) -> None:
        """Fetches the latest steps' numbers, which waits for the device.

        Raises UserError if one is not finite.
        """
        if self.recent:
            numbers = self.machine.add_up(torch.stack(self.recent))
            # Gradient norms are the same in all processes; the others are parts of a sum.
            numbers[:, 3:] /= self.machine.n_processes
            self.fetched = numbers.cpu()
        else:
            self.fetched = self.fetched[:0]
        lr = optimizers[0].param_groups[0]["lr"]
        first_step = step - len(self.fetched) + 1
        for number, (loss, _, _, norm) in enumerate(self.fetched.tolist(), start=first_step):
            if not math.isfinite(loss + norm):
                found = f"the loss is {loss:g} and the gradient norm {norm:g} at step {number}"
                raise UserError(f"{found}, stage {stage}, lr {lr:g}; lower --lr. {self.last_saved}")

    def log_training(self, step: int, stage: int, factor: float) -> None:
        """Logs the means over the latest steps.

        Batches without thoughts have nan as their norm, which is ignored.
        """
        means = self.fetched.nanmean(dim=0).tolist()
        self.last_loss, next_loss, thought_norm, gradient_norm = means
        self.recent = []
        self.fetched = self.fetched[:0]
        if not self.machine.is_first:
            return
        metrics = {"loss": self.last_loss, "gradient_norm": gradient_norm, "lr_factor": factor}
        metrics["embedding_norm"] = float(self.model.wte.weight.detach().norm(dim=1).mean())
        if not math.isnan(thought_norm):
            metrics["thought_norm"] = thought_norm
        if self.c.layout == "in_place":
            metrics["next_word_loss"] = next_loss
        metrics["seconds"] = time.time() - self.began
        log.append(self.log, step, stage, "train", metrics)

    def evaluate(self, step: int, stage: int, plan: Plan) -> None:
        """Logs the accuracy on valid.

        Saves best.pt; in the paper's layout only if it is at least as high as any before in this
        stage. In place losses fall to the end of the run, so the highest of several accuracies is
        high by chance.
        """
        if not self.machine.is_first:
            return
        max_new_tokens = self.about_data["max_new_tokens"]
        at_once = self.c.micro_batch_size or runs.AT_ONCE
        how = (plan, self.special, max_new_tokens, at_once)
        with self.machine.autocast():
            accuracy = runs.accuracy(self.model, self.valid, *how)
        log.append(self.log, step, stage, "valid", {"accuracy": accuracy})
        with contextlib.suppress(OSError):  # the terminal may be closed
            tqdm.write(f"step {step}, stage {stage}: accuracy {accuracy:.1%}")
        if self.c.layout == "in_place" or accuracy >= self.best:
            self.best = accuracy
            self.save("best.pt", step, stage)

    def save(self, file: str, step: int, stage: int, **more) -> None:
        """Writes a checkpoint of tensors and plain values.

        more  what resuming needs besides the weights
        """
        state = {
            "model": self.model.state_dict(),
            "model_config": asdict(self.model.config),
            "config": self.settings,
            "data": self.about_data,
            "step": step,
            "stage": stage,
            "best": self.best,
            **more,
        }
        write_atomically(self.folder / file, lambda opened: torch.save(state, opened))

    def save_last(
        self, step: int, stage: int, optimizers: list[torch.optim.Optimizer], schedule: Schedule
    ) -> None:
        """Writes ckpt.pt: all that is needed to resume as if the run had not stopped."""
        level = self.machine.add_up(self.level.clone()).cpu()
        if not self.machine.is_first:
            return
        is_on_cuda = self.machine.device.type == "cuda"
        self.save(
            "ckpt.pt",
            step,
            stage,
            optimizers=[optimizer.state_dict() for optimizer in optimizers],
            rng=torch.get_rng_state(),
            cuda_rng=torch.cuda.get_rng_state() if is_on_cuda else None,
            n_steps=schedule.n_steps,
            seconds=time.time() - self.began,
            # Summed over all processes, and not logged yet.
            level=level,
            recent=self.fetched,
        )
        self.last_saved = f"{self.folder}/ckpt.pt holds step {step}"

    def say_how_to_go_on(self, step: int) -> None:
        """Prints how to resume a run that was stopped."""
        self.machine.leave()
        if self.machine.is_first:
            command = f"the same command with --name={self.folder.name} --resume=true"
            print(f"stopped at step {step}; to go on: {command}")

    def close(self) -> None:
        """Leaves the run to other processes."""
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def finish(self) -> None:
        """Draws the curves, and prints the result and the next command."""
        if self.machine.is_first:
            plots.curves(log.read(self.log), self.folder / "curves.png")
            result = f"{self.best:.1%} of valid right. Next: python sample.py {self.folder.name}"
            print(f"{self.folder} after {time.time() - self.began:.0f} s: {result}")


@contextlib.contextmanager
def stop_signals():
    """A list that receives the signals of STOPS, so that the loop can save.

    A second Ctrl-C kills the process.
    """
    received = []
    # Elsewhere, as in a notebook's or a web server's worker, Python refuses handlers.
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number, frame):
        received.append(number)
        # Signals but Ctrl-C are often sent twice, as when a terminal is closed.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with contextlib.ExitStack() as after:  # whatever happens, the handlers from before come back
        for number in STOPS:
            before = signal.signal(number, note)
            after.callback(signal.signal, number, before)
        yield received
