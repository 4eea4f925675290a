"""The device and the precision of the arithmetic.

That is float32, or bfloat16 under autocast for wide models on CUDA. Parameters and optimizers stay
in float32: a model cast to bfloat16 as a whole does not train here.
"""

import contextlib
import ctypes
import multiprocessing
import os
import shutil
import statistics
import sys
import time
import timeit
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor, distributed
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils._triton import has_triton
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from nanococonut.cli import UserError

# What torchrun sets; the first three are numbers.
TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Pace:
    """Watches how long steps take, and says when the number of CPU threads should be tried again.

    Programs that start beside a run can make many threads ten times slower than one: they wait for
    each other, and the one that got no core makes all of them wait. When the programs have gone,
    more threads are faster again.
    """

    # Steps whose median is the pace of now: one with an evaluation behind it changes nothing.
    LATELY = 8
    # Times what a step took before. Graphs that grow double it in a run, a busy core at once or
    # more.
    SLOWER = 1.5
    # Seconds after a try in which slower steps lead to no other one.
    SOON = 10.0
    # Seconds, at least, after which fewer threads than there could be lead to another try.
    AGAIN = 30.0
    # The share of the time, at most, that those tries may take.
    SHARE = 0.02

    def __init__(self, clock=time.perf_counter):
        self.clock = clock
        self.start()

    def start(self, spent: float = 0.0) -> None:
        """Begins to watch, after tries that took `spent` seconds."""
        self.tried = self.clock()
        self.wait = spent / self.SHARE
        self.last = self.tried
        self.steps = deque(maxlen=self.LATELY)
        self.usual = None  # seconds of a step since the last try, at its fastest

    def is_due(self, has_fewer: bool) -> bool:
        """Whether to try; called after each step.

        has_fewer  whether fewer threads are used than there could be
        """
        now = self.clock()
        self.steps.append(now - self.last)
        self.last = now
        if len(self.steps) < self.LATELY:
            return False
        lately = statistics.median(self.steps)
        self.usual = min(self.usual or lately, lately)
        since = now - self.tried
        if lately > self.SLOWER * self.usual:
            return since > self.SOON
        return has_fewer and since > max(self.wait, self.AGAIN)


class Computed(Dataset):
    """The data set whose item i is work(numbers[i]), computed when it is asked for."""

    def __init__(self, work, numbers: range):
        self.work = work
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int):
        return self.work(self.numbers[i])


def leave_process_group(worker: int) -> None:
    """Called in a worker. A Ctrl-C is for the main process alone, which then saves."""
    os.setsid()


@dataclass(frozen=True)
class Machine:
    """A device, the dtype of its arithmetic, and the rank of this process among those that train.

    Several processes train together if torchrun started them, see join().
    """

    device: torch.device
    dtype: torch.dtype
    rank: int = 0
    n_processes: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints, evaluates and writes."""
        return self.rank == 0

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context in which a forward pass runs."""
        is_bfloat16 = self.dtype == torch.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=is_bfloat16)

    def to_device(self, x):
        """A tensor on the device; anything else as it is.

        To CUDA it is copied asynchronously, which needs pinned memory.
        """
        if not isinstance(x, Tensor):
            return x
        if self.device.type == "cuda":
            x = x.pin_memory()
        return x.to(self.device, non_blocking=True)

    def ahead(self, work, numbers: range):
        """An iterator over work(n) for each number, in order.

        On CUDA forked processes work ahead, because to draw a batch takes as long as a step on it.
        """
        can_fork = "fork" in multiprocessing.get_all_start_methods()
        n_workers = 0  # this process does it, when asked for the next one
        if self.device.type == "cuda" and can_fork:
            n_workers = min(4, os.cpu_count() or 1)
        loader = DataLoader(
            Computed(work, numbers),
            batch_size=None,  # an item is a whole batch already
            num_workers=n_workers,
            multiprocessing_context="fork" if n_workers else None,
            worker_init_fn=leave_process_group,
            # Without its own, it would draw from the random state of the training.
            generator=torch.Generator(),
        )
        return iter(loader)

    def compiles(self, wanted: str) -> bool:
        """Whether to compile. Raises UserError if that is wanted but impossible.

        wanted  true, false or auto: where bfloat16 is used on CUDA, with a working Triton
        """
        if wanted == "true":
            compiler = os.environ.get("CXX", "g++")
            if self.device.type == "cpu" and not shutil.which(compiler):
                advice = "install g++, or use --compile=false"
                raise UserError(f"--compile=true needs a C++ compiler: {advice}")
            return True
        uses_bfloat16 = self.device.type == "cuda" and self.dtype == torch.bfloat16
        return wanted == "auto" and uses_bfloat16 and has_triton()

    def tries_threads(self, max_threads: int) -> bool:
        """Whether there is a number of CPU threads to choose: the user may have set it."""
        return (
            max_threads > 1
            and "OMP_NUM_THREADS" not in os.environ
            and self.device.type == "cpu"
            and self.n_processes == 1
        )

    def fastest_threads(self, work, max_threads: int) -> int:
        """The number of CPU threads with which work() is fastest.

        That is fewer than max_threads if other processes need the cores too.
        """
        if not self.tries_threads(max_threads):
            return max_threads
        torch.set_num_threads(max_threads)
        if timeit.timeit(work, number=1) > 2:
            return max_threads  # a large model gains from each, and trying fewer takes too long
        return self.timed_threads(work, max_threads)

    def timed_threads(self, work, max_threads: int, before: int = 0) -> int:
        """The fastest of 1, 2, 4, ... and max_threads threads.

        Each is timed over five calls of work(). Prints the seconds, unless the fastest number is
        that of before.
        """
        numbers = [n for n in (1, 2, 4, 8, 16) if n < max_threads]
        numbers.append(max_threads)
        seconds = {}
        for n in numbers:
            torch.set_num_threads(n)
            seconds[n] = timeit.timeit(work, number=1)
            if seconds[n] <= 2 * min(seconds.values()):  # else it is out of the question
                seconds[n] = timeit.timeit(work, number=4) / 4
        fastest = min(seconds, key=seconds.get)
        if fastest != before:
            timings = ", ".join(f"{n}: {s:.3f}" for n, s in seconds.items())
            tqdm.write(f"seconds per step by CPU threads: {timings}")
        return fastest

    @property
    def replays(self) -> bool:
        """Whether training steps are recorded as CUDA graphs: on one GPU, by one process."""
        return self.device.type == "cuda" and self.n_processes == 1

    def add_up_gradients(self, model: torch.nn.Module) -> None:
        """Replaces each gradient by its sum over all processes.

        Each process has one for every parameter.
        """
        if self.n_processes > 1:
            gradients = [p.grad for p in model.parameters()]
            total = self.add_up(parameters_to_vector(gradients))
            vector_to_parameters(total, gradients)

    def add_up(self, x: Tensor) -> Tensor:
        """The sum of x over all processes."""
        if self.n_processes > 1:
            x = x.to(self.device)
            distributed.all_reduce(x)
        return x

    def leave(self) -> None:
        """Ends what join() began, after all processes have arrived here.

        None may exit while the first one writes.
        """
        if self.n_processes > 1:
            distributed.barrier()
            distributed.destroy_process_group()


def pick(device: str = "auto", dtype: str = "auto", n_embd: int = 768) -> Machine:
    """The machine for a model of n_embd channels. Raises UserError.

    auto is CUDA, else Apple's MPS, else the CPU.
    """
    usable = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    names = [name for name, is_usable in usable.items() if is_usable]
    if device not in ("auto", *names):
        choices = f"auto, {', '.join(names)}"
        raise UserError(f"--device={device}: choose from {choices}, which this machine has")
    chosen = torch.device(names[0] if device == "auto" else device)
    if dtype == "auto":
        # In narrow models arithmetic is not what takes the time.
        dtype = "bfloat16" if chosen.type == "cuda" and n_embd >= 512 else "float32"
    # TF32 for matrix products that stay in float32.
    uses_tf32 = chosen.type == "cuda" and dtype == "bfloat16"
    torch.set_float32_matmul_precision("high" if uses_tf32 else "highest")
    keep_freed_memory()
    return Machine(chosen, getattr(torch, dtype))


def keep_freed_memory() -> None:
    """Keeps memory freed by a step for the next one, which saves page faults."""
    with contextlib.suppress(AttributeError, TypeError):  # only glibc has mallopt
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never
        libc.mallopt(-4, 0)  # M_MMAP_MAX: none


def join(device: str = "auto", dtype: str = "auto", n_embd: int = 768) -> Machine:
    """pick(), with the rank of this process if torchrun started several. Raises UserError."""
    machine = pick(device, dtype, n_embd)
    if not is_started_by_torchrun():
        return machine
    is_on_cuda = machine.device.type == "cuda"
    chosen = machine.device
    distributed.init_process_group("nccl" if is_on_cuda else "gloo")
    rank = distributed.get_rank()
    if rank > 0:
        # Until the end: only the first process prints.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if is_on_cuda:
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(chosen)
    return Machine(chosen, machine.dtype, rank, distributed.get_world_size())


def is_started_by_torchrun() -> bool:
    """Whether torchrun started this process. Raises UserError if its variables are incomplete.

    Batch systems set WORLD_SIZE=1, and perhaps RANK, for a process alone.
    """
    missing = [name for name in TORCHRUN if name not in os.environ]
    if missing and os.environ.get("WORLD_SIZE", "1") == "1":
        return False
    if missing:
        fault = f"{', '.join(missing)} is missing"
    else:
        wrong = [name for name in TORCHRUN[:3] if not os.environ[name].isdecimal()]
        fault = f"{wrong[0]}={os.environ[wrong[0]]} is no number" if wrong else ""
    if fault:
        found = f"WORLD_SIZE={os.environ['WORLD_SIZE']}, but {fault}"
        raise UserError(f"{found}: start several processes with torchrun")
    return True
