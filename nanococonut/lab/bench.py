"""Times a training step for each number K of thoughts.

MFU is a step's share of the machine's own measured rate of matrix products. The paper's loop and
torch.compile are timed too. Times are median seconds on random tokens. The last line printed is
JSON, which is also written to results/bench-<preset>-<device>.json.
"""

import functools
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nanococonut import cli, coconut, compiling, device, files
from nanococonut.model import GPT, GPTConfig

SIZES = {  # examples B (4 or more), prompt length P, suffix length S; the model
    "smoke": ((4, 16, 4), GPTConfig(64, 64, 2, 2, 32, 0.0)),
    "cpu": ((32, 200, 20), GPTConfig(320, 256, 4, 4, 256, 0.0)),
    "gpt2": ((128, 256, 24), GPTConfig(50260, 512, 12, 12, 768, 0.0)),
}


@dataclass(frozen=True)
class BenchConfig:
    """python -m nanococonut.bench [PRESET] [--option=value ...]: times eager and compiled steps."""

    # sizes of the model and the batch
    preset: str = "cpu"
    # largest number K of thoughts; all from 0 on are timed
    max_thoughts: int = 6
    # repetitions of each measurement; the median is reported
    repeats: int = 5
    # device to run on; auto: cuda, else mps, else cpu
    device: str = "auto"
    # precision of the arithmetic; auto: as in train.py
    dtype: str = "auto"


class Bench:
    """A model, its optimizer, and what is timed of them."""

    def __init__(self, c: BenchConfig):
        self.sizes, shape = SIZES[c.preset]
        self.machine = device.pick(c.device, c.dtype, shape.n_embd)
        torch.manual_seed(0)
        self.model = GPT(shape).to(self.machine.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-4, fused=True)

    def seconds(self, repeats: int, work, *args) -> float:
        """Median seconds of work(*args), after one warm-up call."""
        backend = getattr(torch, self.machine.device.type)  # torch.cpu, torch.cuda or torch.mps
        marks = []
        for _ in range(1 + repeats):
            work(*args)
            backend.synchronize()  # until all work queued on the device has finished
            marks.append(time.perf_counter())
        return float(np.median(np.diff(marks)))

    def rate(self) -> float:
        """Floating-point operations per second of large matrix products."""
        machine = self.machine
        n = 8192 if machine.device.type == "cuda" else 2048
        a, b = torch.randn(2, n, n, device=machine.device, dtype=machine.dtype)
        return 2 * n**3 / self.seconds(10, torch.mm, a, b)

    def batch(self, n_examples: int, n_thoughts: int) -> coconut.Batch:
        """A batch of random tokens, with prompts of different lengths."""
        _, P, S = self.sizes
        V = self.model.config.vocab_size
        prompt = torch.randint(V, (n_examples, P))
        suffix = torch.randint(V, (n_examples, S))
        targets = torch.randint(V, (n_examples, S))
        length = torch.randint(P * 4 // 5, P + 1, (n_examples,))
        return coconut.Batch(prompt, length, suffix, targets, n_thoughts)

    def step(self, learn, batch: coconut.Batch) -> None:
        """A step of training, as train.py takes it."""
        learn(batch)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def learner(self, forward):
        """A function of a batch that fills .grad.

        forward  coconut.forward or one like it; recorded on a GPU as in train.py
        """
        if not self.machine.replays:
            return lambda batch: self.loss(forward, self.to_device(batch)).backward()

        def losses(batch: coconut.Batch, weights: torch.Tensor):
            loss = self.loss(forward, batch)
            return loss, loss.detach() * weights

        replay = compiling.Replay(losses, self.model)
        weights = self.machine.to_device(torch.ones(3))
        return lambda batch: replay(self.to_device(batch), weights)

    def to_device(self, batch: coconut.Batch) -> coconut.Batch:
        """The batch on the device."""
        return coconut.Batch(*map(self.machine.to_device, batch))

    def loss(self, forward, batch: coconut.Batch) -> torch.Tensor:
        """The loss of a batch, by a function like coconut.forward."""
        with self.machine.autocast():
            return forward(self.model, batch).loss

    def backward(self, forward, batch: coconut.Batch) -> None:
        """One forward and one backward pass, never recorded."""
        self.loss(forward, self.to_device(batch)).backward()
        self.optimizer.zero_grad()

    def flops(self, batch: coconut.Batch) -> int:
        """Floating-point operations of one step's matrix products, as executed.

        Attention counts full squares.
        """
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self.backward(coconut.forward, batch)
        return counter.get_total_flops()


def conditions(bench: Bench, preset: str, rate: float) -> dict:
    """What the times depend on: the machine, the versions and the sizes."""
    machine = bench.machine
    if machine.device.type == "cuda":
        name = torch.cuda.get_device_name()
    else:
        name = f"{torch.get_num_threads()} threads of {machine.device}"
    B, P, S = bench.sizes
    return {
        "preset": preset,
        "device": name,
        "torch": torch.__version__,
        "dtype": str(machine.dtype),
        "B": B,
        "P": P,
        "S": S,
        "matmul_gflops": round(rate / 1e9),
    }


def time_steps(bench: Bench, batches: list[coconut.Batch], repeats: int, rate: float) -> list[dict]:
    """Seconds and MFU of a step on each batch, which it prints."""
    learn = bench.learner(coconut.forward)
    rows = []
    for batch in batches:
        seconds = bench.seconds(repeats, bench.step, learn, batch)
        mfu = bench.flops(batch) / seconds / rate
        rows.append({"thoughts": batch.n_thoughts, "step": seconds, "mfu": mfu})
        print(", ".join(f"{name} {value:.4f}" for name, value in rows[-1].items()))
    return rows


def time_reference(bench: Bench, n_thoughts: int) -> float:
    """Seconds of a batch by the paper's definition, from those of four examples."""
    n_examples = bench.sizes[0]
    few = bench.batch(4, n_thoughts)
    return n_examples / 4 * bench.seconds(1, bench.backward, coconut.forward_reference, few)


def main(c: BenchConfig) -> None:
    """Prints the times of a step, and writes them."""
    cli.demand(c, "repeats max_thoughts", lambda n: n >= 1, "at least 1")
    bench = Bench(c)
    bench.machine.compiles("true")  # or says what is missing, before anything is timed
    rate = bench.rate()
    found = conditions(bench, c.preset, rate)
    batches = [bench.batch(bench.sizes[0], K) for K in range(c.max_thoughts + 1)]
    rows = time_steps(bench, batches, c.repeats, rate)
    found["rows"] = rows
    found["last_over_first"] = rows[-1]["step"] / rows[0]["step"]
    found["reference_step"] = time_reference(bench, c.max_thoughts)
    learn = bench.learner(functools.partial(compiling.forward, phases=compiling.compiled()))
    found["compiled_first"] = bench.seconds(c.repeats, bench.step, learn, batches[0])
    found["compiled_last"] = bench.seconds(c.repeats, bench.step, learn, batches[-1])
    path = Path("results") / f"bench-{c.preset}-{bench.machine.device.type}.json"
    files.write_text(path, json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    choices = {"preset": tuple(SIZES), "dtype": ("auto", "float32", "bfloat16")}
    cli.run(main, BenchConfig, choices=choices)
