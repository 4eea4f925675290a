"""How fast the loop is, and against what: a table, results/bench-<preset>-<device>.{json,png}, last line JSON.

A training step for K = 0, 1, 2, ... thoughts, whole and by phase, and its share of the machine's own rate of matrix
products (MFU); beside it the paper's loop, torch.compile, answers without a cache. Median seconds, random tokens.
"""

import json
import resource
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nanococonut import coconut, compiling, config, data, devices, plots
from nanococonut.coconut import Batch
from nanococonut.model import GPT, GPTConfig

SIZES = {  # examples B (4 or more), prompt P, suffix S, new tokens of an answer; the model
    "smoke": ((4, 16, 4, 2), GPTConfig(64, 64, 2, 2, 32, 0.0)),
    "cpu": ((32, 200, 20, 8), GPTConfig(320, 256, 4, 4, 256, 0.0)),
    "gpt2": ((128, 256, 24, 8), GPTConfig(50260, 512, 12, 12, 768, 0.0)),
}
PHASES = ("prefill", "think", "decode", "backward", "optimizer")
EOT, NEVER = 0, -1  # the id that ends the thoughts, and an <eos> that no answer holds


@dataclass(frozen=True)
class BenchConfig:
    """python -m nanococonut.bench [PRESET] [--option=value ...]: times training steps, answers and their rivals."""

    preset: str = "cpu"  # sizes of model and batch
    max_thoughts: int = 6  # K goes from 0 to this
    repeats: int = 5  # of each measurement; the median counts
    questions: int = 500  # answered in batches of 250
    device: str = "auto"  # where to run; auto: cuda, else mps, else cpu
    dtype: str = "auto"  # of the arithmetic; auto: bfloat16 on cuda, float32 elsewhere


class Bench:
    """A model, its optimizer, and a clock that waits for the device."""

    def __init__(self, c: BenchConfig):
        self.machine = devices.pick(c.device, c.dtype)
        self.device, self.phases = self.machine.device, coconut.EAGER
        self.sizes, shape = SIZES[c.preset]
        torch.manual_seed(0)
        self.model = GPT(shape).to(self.device)
        self.room = 0  # slots for thoughts; 0: as many as there are thoughts
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-4, fused=True)

    def clock(self) -> float:
        """Seconds, once everything that was asked of the device is done."""
        getattr(torch, self.device.type).synchronize()
        return time.perf_counter()

    def seconds(self, repeats: int, work, *args) -> float:
        """Median seconds of work(*args), after one call that does not count."""
        marks = []
        for _ in range(1 + repeats):
            work(*args)
            marks.append(self.clock())
        return float(np.median(np.diff(marks)))

    def batch(self, n_thoughts: int, n_examples: int = 0) -> Batch:
        """Random tokens; n_examples 0: as many as a training step has."""
        (B, P, S, _), V = self.sizes, self.model.config.vocab_size
        B = n_examples or B
        prompt, suffix, targets = (torch.randint(V, (B, n), device=self.device) for n in (P, S, S))
        return Batch(prompt, torch.randint(P * 4 // 5, P + 1, (B,), device=self.device), suffix, targets, n_thoughts)

    def step(self, batch: Batch, clock=lambda: None) -> list:
        """A training step: what clock() says before it, between its PHASES and after it."""
        marks = [clock()]
        with self.machine.autocast():
            hidden, prompt_kv = self.phases.prefill(self.model, batch.prompt, batch.prompt_len)
            marks.append(clock())
            cache = coconut.open_cache(prompt_kv, batch.prompt_len, self.room or batch.n_thoughts)
            _, cache = coconut.think(self.model, hidden, cache, batch.n_thoughts, self.phases.step)
            marks.append(clock())
            hidden, _ = self.phases.step(self.model, batch.suffix, coconut.make_room(cache, batch.suffix.size(1)))
            loss = coconut.cross_entropy(self.model.logits(hidden), batch.targets)
        marks.append(clock())
        loss.backward()
        marks.append(clock())
        self.optimizer.step()
        self.optimizer.zero_grad()
        return [*marks, clock()]

    def flops(self, batch: Batch) -> int:
        """Of the matrix products of one step, as they are done; attention counts whole squares."""
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self.step(batch)
        return counter.get_total_flops()

    def generate(self, batch: Batch) -> list[list[int]]:
        """Answers, batched and cached, all equally long."""
        return coconut.generate(self.model, *batch[:2], batch.n_thoughts, EOT, NEVER, self.sizes[3])

    @torch.no_grad()
    def one_by_one(self, batch: Batch) -> list[list[int]]:
        """The same without a cache, as the paper's code evaluates: a whole pass for each thought and each token."""
        rows, last = [], lambda x: self.model(x, torch.arange(x.size(1), device=x.device))[0][:, -1:]
        for prompt, length in zip(batch.prompt, batch.prompt_len, strict=True):
            x, tokens = self.model.wte(prompt[:length])[None], [torch.tensor([[EOT]], device=self.device)]
            for _ in range(batch.n_thoughts):
                x = torch.cat([x, last(x)], dim=1)  # (1, T, C)
            for _ in range(self.sizes[3]):
                x = torch.cat([x, self.model.wte(tokens[-1])], dim=1)
                tokens.append(self.model.logits(last(x)).argmax(dim=-1))
            rows.append(torch.cat(tokens[1:], dim=1)[0].tolist())
        return rows


def main(c: BenchConfig) -> None:
    config.demand(c, "repeats questions", lambda n: n >= 1, "at least 1")
    config.demand(c, "max_thoughts", lambda n: n >= 0, "0 or more")
    bench = Bench(c)
    (B, P, S, _), device, cuda = bench.sizes, bench.device, bench.device.type == "cuda"
    n = 8192 if cuda else 2048
    rate = 2 * n**3 / bench.seconds(10, torch.mm, *torch.randn(2, n, n, device=device, dtype=bench.machine.dtype))
    where = torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} threads of {device}"
    found = dict(preset=c.preset, device=where, torch=torch.__version__, dtype=str(bench.machine.dtype))
    found |= dict(B=B, P=P, S=S, matmul_gflops=round(rate / 1e9))
    print(", ".join(f"{key} {value}" for key, value in found.items()) + "; milliseconds:")
    print("".join(f"{name:>10}" for name in ("K", "step", *PHASES, "examples/s", "tokens/s", "MFU")))
    batches, rows = [bench.batch(K) for K in range(c.max_thoughts + 1)], []
    for K, batch in enumerate(batches):
        step = bench.seconds(c.repeats, bench.step, batch)
        marks = [bench.step(batch, bench.clock) for _ in range(c.repeats)]
        times = {"step": step} | dict(zip(PHASES, np.median(np.diff(marks), axis=0).tolist(), strict=True))
        examples, tokens, mfu = B / step, B * (P + K + S) / step, bench.flops(batch) / step / rate
        cells = "".join(f"{1e3 * t:10.1f}" for t in times.values())
        print(f"{K:10}{cells}{examples:10.0f}{tokens:10.0f}{mfu:10.1%}")
        rows.append(dict(thoughts=K, **times, examples_per_second=examples, tokens_per_second=tokens, mfu=mfu))
    few, alone = bench.batch(c.max_thoughts, 4), bench.batch(c.max_thoughts, 1)
    many = [bench.batch(c.max_thoughts, min(250, c.questions - i)) for i in range(0, c.questions, 250)]
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    measured = dict(
        memory_mib=torch.cuda.max_memory_allocated() / 2**20 if cuda else kib / 2**10,
        reference_step=B / 4 * bench.seconds(1, lambda: coconut.forward_reference(bench.model, few).loss.backward()),
        answer_one_by_one=bench.seconds(20, bench.one_by_one, alone),
        answer_batched=bench.seconds(3, lambda: [bench.generate(part) for part in many]) / c.questions,
        answer_alone_cached=bench.seconds(20, bench.generate, alone),
    )
    bench.phases, bench.room = compiling.phases(), compiling.round_up(c.max_thoughts, compiling.THOUGHT_BUCKET)
    marks = np.ravel([bench.step(batch, bench.clock) for batch in batches])
    measured |= dict(
        compile=marks[-1] - marks[0] - sum(row["step"] for row in rows),
        compiled_first=bench.seconds(c.repeats, bench.step, batches[0]),
        compiled_last=bench.seconds(c.repeats, bench.step, batches[-1]),
        last_over_first=step / rows[0]["step"],  # step: the last one's
        times_faster_than_reference=measured["reference_step"] / step,
        times_faster_than_one_by_one=measured["answer_one_by_one"] / measured["answer_batched"],
    )
    print("\n".join(f"{key.replace('_', ' ')}: {value:.4g}" for key, value in measured.items()))
    stem = Path("results") / f"bench-{c.preset}-{device.type}"
    bars = {phase: [(row["thoughts"], 1e3 * row[phase]) for row in rows] for phase in PHASES}
    plots.lines([("thoughts", "milliseconds a step", bars, True)], stem.with_suffix(".png"))
    found |= measured | {"rows": rows}
    data.write_text(stem.with_suffix(".json"), json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    config.run(main, BenchConfig, choices={"preset": tuple(SIZES), "dtype": ("auto", "float32", "bfloat16")})
