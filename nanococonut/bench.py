"""Times a training step for each number K of thoughts, and writes results/bench-<preset>-<device>.json.

MFU is a step's share of the machine's own measured rate of matrix products. The paper's loop and torch.compile are
timed too. Times are median seconds on random tokens. The last line printed is JSON.
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

from nanococonut import coconut, compiling, config, data, devices
from nanococonut.model import GPT, GPTConfig

SIZES = {  # examples B (4 or more), prompt length P, suffix length S; the model
    "smoke": ((4, 16, 4), GPTConfig(64, 64, 2, 2, 32, 0.0)),
    "cpu": ((32, 200, 20), GPTConfig(320, 256, 4, 4, 256, 0.0)),
    "gpt2": ((128, 256, 24), GPTConfig(50260, 512, 12, 12, 768, 0.0)),
}


@dataclass(frozen=True)
class BenchConfig:
    """python -m nanococonut.bench [PRESET] [--option=value ...]: times steps of training, eager and compiled."""

    preset: str = "cpu"  # sizes of the model and the batch
    max_thoughts: int = 6  # largest number K of thoughts; all from 0 on are timed
    repeats: int = 5  # repetitions of each measurement; the median is reported
    device: str = "auto"  # device to run on; auto: cuda, else mps, else cpu
    dtype: str = "auto"  # precision of the arithmetic; auto: as in train.py


class Bench:
    """A model, its optimizer, and what is timed of them."""

    def __init__(self, c: BenchConfig):
        self.sizes, shape = SIZES[c.preset]
        self.machine = devices.pick(c.device, c.dtype, shape.n_embd)
        torch.manual_seed(0)
        self.model = GPT(shape).to(self.machine.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-4, fused=True)

    def seconds(self, repeats: int, work, *args) -> float:
        """Median seconds of work(*args), after one warm-up call."""
        marks = []
        for _ in range(1 + repeats):
            work(*args)
            getattr(torch, self.machine.device.type).synchronize()  # until all work queued on the device has finished
            marks.append(time.perf_counter())
        return float(np.median(np.diff(marks)))

    def batch(self, n_examples: int, n_thoughts: int) -> coconut.Batch:
        """A batch of random tokens, with prompts of different lengths."""
        (_, P, S), V = self.sizes, self.model.config.vocab_size
        prompt, suffix, targets = (torch.randint(V, (n_examples, n)) for n in (P, S, S))
        length = torch.randint(P * 4 // 5, P + 1, (n_examples,))
        return coconut.Batch(prompt, length, suffix, targets, n_thoughts)

    def step(self, learn, batch: coconut.Batch) -> None:
        """A step of training, as train.py takes it."""
        learn(batch)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def learner(self, forward):
        """A function of a batch that fills .grad by one like coconut.forward, recorded on a GPU as in train.py."""
        if not self.machine.replays:
            return lambda batch: self.loss(forward, self.to_device(batch)).backward()

        def losses(batch: coconut.Batch, shares: torch.Tensor):
            loss = self.loss(forward, batch)
            return loss, loss.detach() * shares

        replay, shares = compiling.Replay(losses, self.model), self.machine.to_device(torch.ones(3))
        return lambda batch: replay(self.to_device(batch), shares)

    def to_device(self, batch: coconut.Batch) -> coconut.Batch:
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
        """Floating-point operations of one step's matrix products, as executed; attention counts full squares."""
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self.backward(coconut.forward, batch)
        return counter.get_total_flops()


def main(c: BenchConfig) -> None:
    config.demand(c, "repeats max_thoughts", lambda n: n >= 1, "at least 1")
    bench = Bench(c)
    bench.machine.compiles("true")  # or says what is missing, before anything is timed
    (B, P, S), device, cuda = bench.sizes, bench.machine.device, bench.machine.device.type == "cuda"
    n = 8192 if cuda else 2048
    rate = 2 * n**3 / bench.seconds(10, torch.mm, *torch.randn(2, n, n, device=device, dtype=bench.machine.dtype))
    where = torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} threads of {device}"
    found = dict(preset=c.preset, device=where, torch=torch.__version__, dtype=str(bench.machine.dtype))
    found |= dict(B=B, P=P, S=S, matmul_gflops=round(rate / 1e9))
    learn = bench.learner(coconut.forward)
    batches, rows = [bench.batch(B, K) for K in range(c.max_thoughts + 1)], []
    for K, batch in enumerate(batches):
        step = bench.seconds(c.repeats, bench.step, learn, batch)
        rows.append({"thoughts": K, "step": step, "mfu": bench.flops(batch) / step / rate})
        print(", ".join(f"{name} {value:.4f}" for name, value in rows[-1].items()))
    reference = B / 4 * bench.seconds(1, bench.backward, coconut.forward_reference, bench.batch(4, c.max_thoughts))
    found |= dict(rows=rows, last_over_first=step / rows[0]["step"], reference_step=reference)
    learn = bench.learner(functools.partial(compiling.forward, phases=compiling.compiled()))
    found["compiled_first"] = bench.seconds(c.repeats, bench.step, learn, batches[0])
    found["compiled_last"] = bench.seconds(c.repeats, bench.step, learn, batches[-1])
    data.write_text(Path("results") / f"bench-{c.preset}-{device.type}.json", json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    config.run(main, BenchConfig, choices={"preset": tuple(SIZES), "dtype": ("auto", "float32", "bfloat16")})
