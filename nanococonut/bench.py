"""How fast the loop is, and against what: a table, results/bench-<preset>-<device>.{json,png}, last line JSON.

A training step for K = 0, 1, 2, ... thoughts, whole and cut into its phases, and the share of the machine's own rate of
matrix products that it reaches (MFU); beside it the paper's loop, torch.compile, and answers without a cache.
Weights and tokens are random: nothing here depends on what they say. Times are medians in seconds, memory is the peak.
"""

import contextlib
import json
import resource
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nanococonut import coconut, config, data, plots, runs
from nanococonut.curriculum import Batch
from nanococonut.model import GPT, GPTConfig

SIZES = {  # examples B, prompt P, suffix S, new tokens of an answer; the model
    "smoke": ((4, 16, 4, 2), GPTConfig(64, 64, 2, 2, 32, 0.0)),
    "laptop": ((64, 28, 8, 3), GPTConfig(520, 64, 2, 4, 128, 0.0)),
    "cpu": ((32, 200, 20, 8), GPTConfig(320, 256, 4, 4, 256, 0.0)),
    "gpt2": ((128, 256, 24, 8), GPTConfig(50260, 512, 12, 12, 768, 0.0)),
}
PHASES = ("prefill", "think", "decode", "backward", "optimizer")
EOT, NEVER = 0, -1  # the id that ends the thoughts, and an <eos> that no answer holds: all are equally long


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
        self.repeats, self.device = c.repeats, runs.pick_device(c.device)
        self.cuda = self.device.type == "cuda"
        self.dtype = torch.bfloat16 if c.dtype == "bfloat16" or (c.dtype == "auto" and self.cuda) else torch.float32
        self.sizes, shape = SIZES[c.preset]
        torch.manual_seed(0)
        self.model = GPT(shape).to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-4, fused=True)

    def clock(self) -> float:
        """Seconds, once everything that was asked of the device is done."""
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def seconds(self, work, repeats: int = 0) -> float:
        """Median seconds of work(), after one call that does not count."""
        work()
        marks = [self.clock()]
        for _ in range(repeats or self.repeats):
            work()
            marks.append(self.clock())
        return statistics.median(b - a for a, b in zip(marks, marks[1:], strict=False))

    def batch(self, n_thoughts: int) -> Batch:
        (B, P, S, _), V = self.sizes, self.model.config.vocab_size
        prompt, suffix, targets = (torch.randint(V, (B, n), device=self.device) for n in (P, S, S))
        return Batch(prompt, torch.randint(P * 4 // 5, P + 1, (B,), device=self.device), suffix, targets, n_thoughts)

    def step(self, batch: Batch, mark=lambda: None) -> None:
        """A training step that calls mark() before and between its PHASES, and at its end.

        On CUDA in bfloat16 the prompt must go through the flash kernel, or this fails.
        """
        mark()
        half, flash = self.dtype == torch.bfloat16, sdpa_kernel(SDPBackend.FLASH_ATTENTION)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            with flash if half and self.cuda else contextlib.nullcontext():
                hidden, cache = coconut.prefill(self.model, batch.prompt, batch.prompt_len)
            mark()
            _, cache = coconut.think(self.model, hidden, batch.prompt_len, cache, batch.n_thoughts)
            mark()
            logits, _ = coconut.decode(self.model, batch.suffix, batch.prompt_len + batch.n_thoughts, cache)
            loss = coconut.cross_entropy(logits, batch.targets)
        mark()
        loss.backward()
        mark()
        self.optimizer.step()
        self.optimizer.zero_grad()
        mark()

    def phases(self, batch: Batch) -> list[float]:
        """Median seconds of each phase."""
        steps = [[] for _ in range(self.repeats)]
        for marks in steps:
            self.step(batch, lambda marks=marks: marks.append(self.clock()))
        return [statistics.median(marks[i + 1] - marks[i] for marks in steps) for i in range(len(PHASES))]

    def matmul_rate(self) -> float:
        """FLOP/s of a large square matrix product in the dtype of the arithmetic: what this machine can do."""
        n = 8192 if self.cuda else 2048
        a = torch.randn(n, n, device=self.device, dtype=self.dtype)
        return 2 * n**3 / self.seconds(lambda: a @ a, 10)

    def flops(self, batch: Batch) -> int:
        """Of the matrix products of one step, as they are done; attention counts whole squares."""
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self.step(batch)
        return counter.get_total_flops()

    def generate(self, batch: Batch) -> list[list[int]]:
        """Answers, batched and cached."""
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
    (B, P, S, _), rate = bench.sizes, bench.matmul_rate()
    where = torch.cuda.get_device_name() if bench.cuda else f"{torch.get_num_threads()} threads of {bench.device}"
    found = dict(preset=c.preset, device=where, torch=torch.__version__, dtype=str(bench.dtype))
    found |= dict(B=B, P=P, S=S, matmul_gflops=round(rate / 1e9))
    print(", ".join(f"{key} {value}" for key, value in found.items()) + "; milliseconds:")
    print("".join(f"{name:>10}" for name in ("K", "step", *PHASES, "examples/s", "tokens/s", "MFU")))
    batches, rows = [bench.batch(K) for K in range(c.max_thoughts + 1)], []
    for K, batch in enumerate(batches):
        step = bench.seconds(lambda batch=batch: bench.step(batch))
        row = dict(thoughts=K, step=step) | dict(zip(PHASES, bench.phases(batch), strict=True))
        row |= dict(examples_per_s=B / step, tokens_per_s=B * (P + K + S) / step)
        rows.append(row | dict(mfu=bench.flops(batch) / step / rate))
        _, *times, examples, tokens, mfu = rows[-1].values()
        print(f"{K:10}" + "".join(f"{1e3 * t:10.1f}" for t in times) + f"{examples:10.0f}{tokens:10.0f}{mfu:10.1%}")
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found |= dict(memory_mib=torch.cuda.max_memory_allocated() / 2**20 if bench.cuda else kib / 2**10)
    first, last, n = batches[0], batches[-1], min(B, 4)
    few, alone = (last._replace(**{f: getattr(last, f)[:n] for f in Batch._fields[:-1]}) for n in (n, 1))
    reference = bench.seconds(lambda: coconut.forward_reference(bench.model, few).loss.backward(), 1) * B / n
    found |= dict(reference_step=reference, times_faster_than_reference=reference / rows[-1]["step"])
    drawn = torch.randint(B, (c.questions,), device=bench.device).split(250)
    many = [last._replace(prompt=last.prompt[i], prompt_len=last.prompt_len[i]) for i in drawn]
    slow = bench.seconds(lambda: bench.one_by_one(alone), 20)
    fast = bench.seconds(lambda: [bench.generate(part) for part in many], 3) / c.questions
    found |= dict(answer_one_by_one=slow, answer_batched=fast, times_faster_than_one_by_one=slow / fast)
    found |= dict(answer_alone_cached=bench.seconds(lambda: bench.generate(alone), 20))
    bench.model.compile_blocks()
    began = bench.clock()
    for batch in batches:
        bench.step(batch)
    found |= dict(compile=bench.clock() - began - sum(row["step"] for row in rows))
    found |= dict(compiled_first=bench.seconds(lambda: bench.step(first)))
    found |= dict(compiled_last=bench.seconds(lambda: bench.step(last)))
    found |= dict(last_over_first=rows[-1]["step"] / rows[0]["step"])
    print("\n".join(f"{key.replace('_', ' ')}: {value:.4g}" for key, value in list(found.items())[8:]))
    stem = Path("results") / f"bench-{c.preset}-{bench.device.type}"
    stem.parent.mkdir(exist_ok=True)
    bars = {phase: [(row["thoughts"], 1e3 * row[phase]) for row in rows] for phase in PHASES}
    plots.lines([("thoughts", "milliseconds a step", bars, True)], stem.with_suffix(".png"))
    data.write_text(stem.with_suffix(".json"), json.dumps(found | {"rows": rows}, indent=1) + "\n")
    print(json.dumps(found | {"rows": rows}))


if __name__ == "__main__":
    config.run(main, BenchConfig, choices={"preset": tuple(SIZES), "dtype": ("auto", "float32", "bfloat16")})
