"""The device and the precision of the arithmetic: float32, or bfloat16 under autocast for wide models on CUDA.

Parameters and optimizers stay in float32: a model cast to bfloat16 as a whole does not train here.
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
from torch.utils.data import DataLoader
from tqdm import tqdm

from nanococonut.config import UserError


class Pace:
    """Watches how long steps take, and says when the number of CPU threads should be tried again.

    Programs that start beside a run can make many threads ten times slower than one: they wait for each other, and the
    one that got no core makes all of them wait. When the programs have gone, more threads are faster again.
    """

    LATELY = 8  # steps whose median is the pace of now, so that one with an evaluation behind it changes nothing
    SLOWER = 1.5  # times what a step took before: graphs that grow double it in a run, a busy core at once or more
    SOON = 10.0  # seconds after a try in which slower steps lead to no other one
    AGAIN = 30.0  # seconds after which fewer threads than there could be lead to another try, at least
    SHARE = 0.02  # of the time, at most, that those tries may take

    def __init__(self, clock=time.perf_counter):
        self.clock = clock
        self.start()

    def start(self, spent: float = 0.0) -> None:
        """Begins to watch, after tries that took `spent` seconds."""
        self.tried, self.wait = self.clock(), spent / self.SHARE
        self.last = self.tried
        self.steps = deque(maxlen=self.LATELY)
        self.usual = None  # seconds of a step since the last try, at its fastest

    def is_due(self, has_fewer: bool) -> bool:
        """Called after each step: whether to try; has_fewer: whether fewer threads are used than there could be."""
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


@dataclass(frozen=True)
class Machine:
    """A device, the dtype of its arithmetic, and the rank of this process among those that train together."""

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
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def to_device(self, x):
        """A tensor on the device; anything else as it is. On CUDA it is copied asynchronously from pinned memory."""
        if not isinstance(x, Tensor):
            return x
        return (x.pin_memory() if self.device.type == "cuda" else x).to(self.device, non_blocking=True)

    def ahead(self, work, numbers: range):
        """work(n) for each number, in order. On CUDA, forks do it ahead: a batch takes as long as a step."""
        fork = "fork" if self.device.type == "cuda" and "fork" in multiprocessing.get_all_start_methods() else None
        how = dict(num_workers=min(4, os.cpu_count() or 1) if fork else 0, multiprocessing_context=fork)
        how |= dict(worker_init_fn=lambda _: os.setsid())  # a Ctrl-C is for this process alone, which saves then
        how |= dict(generator=torch.Generator())  # without it, the random state of the training would be drawn from
        return iter(DataLoader(numbers, batch_size=None, collate_fn=work, **how))

    def compiles(self, wanted: str) -> bool:
        """Whether to compile. wanted is true, false or auto: where bfloat16 is used on CUDA, with a working Triton."""
        if wanted == "true" and self.device.type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
            raise UserError("--compile=true needs a C++ compiler: install g++, or use --compile=false")
        is_wide = self.device.type == "cuda" and self.dtype == torch.bfloat16
        return wanted == "true" or (wanted == "auto" and is_wide and has_triton())

    def tries_threads(self, most: int) -> bool:
        """Whether there is a number of CPU threads to choose, of `most` at most: the user may have set it."""
        return most > 1 and "OMP_NUM_THREADS" not in os.environ and self.device.type == "cpu" and self.n_processes == 1

    def fastest_threads(self, work, most: int) -> int:
        """The number of CPU threads with which work() is fastest: fewer than most, if other processes need them too."""
        if not self.tries_threads(most):
            return most
        torch.set_num_threads(most)
        if timeit.timeit(work, number=1) > 2:
            return most  # a large model gains from every thread, and trying fewer takes too long
        return self.timed_threads(work, most)

    def timed_threads(self, work, most: int, before: int = 0) -> int:
        """The fastest of 1, 2, 4, ... and most threads, each timed over five calls of work().

        Prints the seconds, unless the number is that of before.
        """
        seconds = {}
        for n in [*(n for n in (1, 2, 4, 8, 16) if n < most), most]:
            torch.set_num_threads(n)
            seconds[n] = timeit.timeit(work, number=1)
            if seconds[n] <= 2 * min(seconds.values()):  # else it is out of the question
                seconds[n] = timeit.timeit(work, number=4) / 4
        fastest = min(seconds, key=seconds.get)
        if fastest != before:
            tqdm.write("seconds per step by CPU threads: " + ", ".join(f"{n}: {s:.3f}" for n, s in seconds.items()))
        return fastest

    @property
    def replays(self) -> bool:
        """Whether training steps are recorded as CUDA graphs: on one GPU, by one process."""
        return self.device.type == "cuda" and self.n_processes == 1

    def add_up_gradients(self, model: torch.nn.Module) -> None:
        """Replaces each gradient by its sum over all processes, each of which has one for every parameter."""
        if self.n_processes > 1:
            gradients = [p.grad for p in model.parameters()]
            vector_to_parameters(self.add_up(parameters_to_vector(gradients)), gradients)

    def add_up(self, x: Tensor) -> Tensor:
        """The sum of x over all processes."""
        if self.n_processes > 1:
            x = x.to(self.device)
            distributed.all_reduce(x)
        return x

    def leave(self) -> None:
        """Ends what join() began, after all processes have arrived here: none may exit while the first one writes."""
        if self.n_processes > 1:
            distributed.barrier()
            distributed.destroy_process_group()


def pick(device: str = "auto", dtype: str = "auto", n_embd: int = 768) -> Machine:
    """The machine for a model of n_embd channels; auto: CUDA, else Apple's MPS, else the CPU. Raises UserError."""
    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    there = [name for name, is_usable in usable.items() if is_usable]
    if device not in ("auto", *there):
        raise UserError(f"--device={device}: choose from auto, {', '.join(there)}, which this machine has")
    chosen = torch.device(there[0] if device == "auto" else device)
    if dtype == "auto":  # arithmetic is not what takes the time in narrow models
        dtype = "bfloat16" if chosen.type == "cuda" and n_embd >= 512 else "float32"
    uses_tf32 = chosen.type == "cuda" and dtype == "bfloat16"  # for matrix products that stay in float32
    torch.set_float32_matmul_precision("high" if uses_tf32 else "highest")
    with contextlib.suppress(AttributeError, TypeError):  # only glibc has mallopt
        libc = ctypes.CDLL(None)  # keeps memory freed by a step for the next one, without page faults
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never
        libc.mallopt(-4, 0)  # M_MMAP_MAX: none
    return Machine(chosen, getattr(torch, dtype))


def join(*wanted) -> Machine:
    """pick(), and the rank of this process if torchrun started several."""
    machine = pick(*wanted)
    theirs = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # torchrun sets all of them
    missing = [name for name in theirs if name not in os.environ]
    if os.environ.get("WORLD_SIZE", "1") == "1" and missing:
        return machine
    wrong = [name for name in theirs[:3] if name not in missing and not os.environ[name].isdecimal()]
    if missing or wrong:
        about = f"{', '.join(missing)} is missing" if missing else f"{wrong[0]}={os.environ[wrong[0]]} is no number"
        raise UserError(f"WORLD_SIZE={os.environ['WORLD_SIZE']}, but {about}: start several processes with torchrun")
    on_cuda, chosen = machine.device.type == "cuda", machine.device
    distributed.init_process_group("nccl" if on_cuda else "gloo")
    if distributed.get_rank():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the end: only the first process prints
    if on_cuda:
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(chosen)
    return Machine(chosen, machine.dtype, distributed.get_rank(), distributed.get_world_size())
