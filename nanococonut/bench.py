"""Times a training step for each number K of thoughts, and writes results/bench-<preset>-<device>.json.

A step is timed as a whole and by phase. MFU is its share of the machine's own measured rate of matrix products. The
paper's loop and torch.compile are timed too. Times are median seconds on random tokens. The last line printed is JSON.
"""

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
PHASES = ("prefill", "think", "decode", "backward", "optimizer")


@dataclass(frozen=True)
class BenchConfig:
    """python -m nanococonut.bench [PRESET] [--option=value ...]: times steps of training, eager and compiled."""

    preset: str = "cpu"  # sizes of the model and the batch
    max_thoughts: int = 6  # largest number K of thoughts; all from 0 on are timed
    repeats: int = 5  # repetitions of each measurement; the median is reported
    device: str = "auto"  # device to run on; auto: cuda, else mps, else cpu
    dtype: str = "auto"  # precision of the arithmetic; auto: bfloat16 on cuda, float32 elsewhere


class Bench:
    """A model and its optimizer, with a clock that synchronizes with the device."""

    def __init__(self, c: BenchConfig):
        self.machine = devices.pick(c.device, c.dtype)
        self.device, self.phases = self.machine.device, compiling.EAGER
        self.sizes, shape = SIZES[c.preset]
        torch.manual_seed(0)
        self.model = GPT(shape).to(self.device)
        self.n_slots = 0  # cache slots for thoughts; 0: as many as there are thoughts
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-4, fused=True)

    def clock(self) -> float:
        """The time in seconds, after all work queued on the device has finished."""
        getattr(torch, self.device.type).synchronize()
        return time.perf_counter()

    def seconds(self, repeats: int, work, *args) -> float:
        """Median seconds of work(*args), after one warm-up call."""
        marks = []
        for _ in range(1 + repeats):
            work(*args)
            marks.append(self.clock())
        return float(np.median(np.diff(marks)))

    def batch(self, n_examples: int, n_thoughts: int) -> coconut.Batch:
        """A batch of random tokens, with prompts of different lengths."""
        (_, P, S), V = self.sizes, self.model.config.vocab_size
        prompt, suffix, targets = (torch.randint(V, (n_examples, n), device=self.device) for n in (P, S, S))
        length = torch.randint(P * 4 // 5, P + 1, (n_examples,), device=self.device)
        return coconut.Batch(prompt, length, suffix, targets, n_thoughts)

    def step(self, batch: coconut.Batch, clock=lambda: None) -> list:
        """Runs a training step; returns clock() before it, between its PHASES and after it."""
        (prefill, think), marks = self.phases, [clock()]
        with self.machine.autocast():
            hidden, prompt_kv = prefill(self.model, batch.prompt, batch.prompt_len)
            marks.append(clock())
            cache = coconut.open_cache(prompt_kv, batch.prompt_len, self.n_slots or batch.n_thoughts)
            _, cache = coconut.think(self.model, hidden, cache, batch.n_thoughts, think)
            marks.append(clock())
            hidden, _ = think(self.model, batch.suffix, coconut.make_room(cache, batch.suffix.size(1)))
            loss = coconut.cross_entropy(self.model.logits(hidden), batch.targets)
        marks.append(clock())
        loss.backward()
        marks.append(clock())
        self.optimizer.step()
        self.optimizer.zero_grad()
        return [*marks, clock()]

    def flops(self, batch: coconut.Batch) -> int:
        """Floating-point operations of one step's matrix products, as executed; attention counts full squares."""
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self.step(batch)
        return counter.get_total_flops()


def main(c: BenchConfig) -> None:
    config.demand(c, "repeats max_thoughts", lambda n: n >= 1, "at least 1")
    bench = Bench(c)
    (B, P, S), device, cuda = bench.sizes, bench.device, bench.device.type == "cuda"
    n = 8192 if cuda else 2048
    rate = 2 * n**3 / bench.seconds(10, torch.mm, *torch.randn(2, n, n, device=device, dtype=bench.machine.dtype))
    where = torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} threads of {device}"
    found = dict(preset=c.preset, device=where, torch=torch.__version__, dtype=str(bench.machine.dtype))
    found |= dict(B=B, P=P, S=S, matmul_gflops=round(rate / 1e9))
    batches, rows = [bench.batch(B, K) for K in range(c.max_thoughts + 1)], []
    for K, batch in enumerate(batches):
        step = bench.seconds(c.repeats, bench.step, batch)
        marks = [bench.step(batch, bench.clock) for _ in range(c.repeats)]
        phases = dict(zip(PHASES, np.median(np.diff(marks), axis=0).tolist(), strict=True))
        rows.append({"thoughts": K, "step": step, **phases, "mfu": bench.flops(batch) / step / rate})
        print(", ".join(f"{name} {value:.4f}" for name, value in rows[-1].items()))
    few = bench.batch(4, c.max_thoughts)
    reference = B / 4 * bench.seconds(1, lambda: coconut.forward_reference(bench.model, few).loss.backward())
    found |= dict(rows=rows, last_over_first=step / rows[0]["step"], reference_step=reference)
    bench.phases, bench.n_slots = compiling.compiled(), compiling.round_up(c.max_thoughts, compiling.THOUGHT_BUCKET)
    found["compiled_first"] = bench.seconds(c.repeats, bench.step, batches[0])
    found["compiled_last"] = bench.seconds(c.repeats, bench.step, batches[-1])
    data.write_text(Path("results") / f"bench-{c.preset}-{device.type}.json", json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    config.run(main, BenchConfig, choices={"preset": tuple(SIZES), "dtype": ("auto", "float32", "bfloat16")})
