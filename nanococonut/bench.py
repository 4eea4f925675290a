"""How fast the loop is, and against what: a table, results/bench-<preset>-<device>.{json,png}, last line JSON.

A training step for K = 0, 1, 2, ... thoughts, whole and cut into its phases; the share of the machine's own rate of
matrix products that it reaches (MFU); the paper's loop, and one-by-one answers without a cache, on the same numbers.
Weights and tokens are random: nothing here depends on what they say. Times are medians, memory is the peak.
"""

import json
import resource
import statistics
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nanococonut import coconut, config, data, plots, runs
from nanococonut.config import UserError
from nanococonut.curriculum import Batch
from nanococonut.model import GPT, GPTConfig

# examples B, prompt P, suffix S, new tokens of an answer; and the model
SIZES = {
    "smoke": ((4, 16, 4, 2), GPTConfig(64, 64, 2, 2, 32, 0.0)),
    "laptop": ((64, 28, 8, 3), GPTConfig(520, 64, 2, 4, 128, 0.0)),
    "cpu": ((32, 200, 20, 8), GPTConfig(320, 256, 4, 4, 256, 0.0)),  # where the paper's code takes 22.6 s a step
    "gpt2": ((128, 256, 24, 8), GPTConfig(50260, 512, 12, 12, 768, 0.0)),
}
EOT, NEVER = 0, -1  # the id that ends the thoughts, and an <eos> that no answer holds: all are equally long
PHASES = ("prefill", "think", "decode", "backward", "optimizer")


@dataclass(frozen=True)
class BenchConfig:
    """python -m nanococonut.bench [PRESET] [--option=value ...]: times training steps, answers and their rivals."""

    preset: str = "cpu"  # sizes of model and batch
    max_thoughts: int = 6  # K goes from 0 to this
    repeats: int = 5  # of each measurement; the median counts
    questions: int = 500  # answered in batches of 250, against one of them alone and without a cache
    device: str = "auto"  # where to run; auto: cuda, else mps, else cpu
    dtype: str = "auto"  # of the arithmetic; auto: bfloat16 on cuda, float32 elsewhere


class Bench:
    """A model, its optimizer and a clock that waits for the device."""

    def __init__(self, c: BenchConfig):
        self.c, self.device = c, runs.pick_device(c.device)
        self.bf16 = c.dtype == "bfloat16" or (c.dtype == "auto" and self.device.type == "cuda")
        self.sizes, self.shape = SIZES[c.preset]
        torch.manual_seed(0)
        self.model = GPT(self.shape).to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-4, fused=True)

    def clock(self) -> float:
        """Seconds, once everything that was asked of the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def seconds(self, work, repeats: int | None = None) -> float:
        """Median seconds of work(), after one call that does not count."""
        work()
        marks = [self.clock()]
        for _ in range(repeats or self.c.repeats):
            work()
            marks.append(self.clock())
        return statistics.median(b - a for a, b in zip(marks, marks[1:], strict=False))

    def batch(self, n_thoughts: int) -> Batch:
        B, P, S, _ = self.sizes
        prompt, suffix, targets = (torch.randint(self.shape.vocab_size, (B, n), device=self.device) for n in (P, S, S))
        return Batch(prompt, torch.randint(P * 4 // 5, P + 1, (B,), device=self.device), suffix, targets, n_thoughts)

    def arithmetic(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def step(self, batch: Batch, forward=coconut.forward) -> None:
        with self.arithmetic():
            loss = forward(self.model, batch).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def phases(self, batch: Batch) -> list[float]:
        """Seconds of each of PHASES in one step. On CUDA the prompt must go through the flash kernel, or this fails."""
        flash = sdpa_kernel(SDPBackend.FLASH_ATTENTION) if self.bf16 and self.device.type == "cuda" else nullcontext()
        marks = [self.clock()]
        with self.arithmetic():
            with flash:
                hidden, cache = coconut.prefill(self.model, batch.prompt, batch.prompt_len)
            marks.append(self.clock())
            _, cache = coconut.think(self.model, hidden, batch.prompt_len, cache, batch.n_thoughts)
            marks.append(self.clock())
            logits, _ = coconut.decode(self.model, batch.suffix, batch.prompt_len + batch.n_thoughts, cache)
            loss = coconut.cross_entropy(logits, batch.targets)
        marks.append(self.clock())
        loss.backward()
        marks.append(self.clock())
        self.optimizer.step()
        self.optimizer.zero_grad()
        marks.append(self.clock())
        return [b - a for a, b in zip(marks, marks[1:], strict=False)]

    def matmul_rate(self) -> float:
        """FLOP/s of a large square matrix product in the dtype of the arithmetic: what this machine can do."""
        n = 8192 if self.device.type == "cuda" else 2048
        a = torch.randn(n, n, device=self.device, dtype=torch.bfloat16 if self.bf16 else torch.float32)
        return 2 * n**3 / self.seconds(lambda: a @ a, 10)

    def flops(self, batch: Batch) -> int:
        """Of the matrix products of one step, as they are done; attention counts whole squares."""
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self.step(batch)
        return counter.get_total_flops()

    @torch.no_grad()
    def one_by_one(self, batch: Batch) -> list[list[int]]:
        """coconut.generate without a cache, as the paper's code evaluates: a whole pass for each thought and token."""
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

    def generate(self, batch: Batch) -> list[list[int]]:
        """The same tokens, batched and cached."""
        return coconut.generate(self.model, batch.prompt, batch.prompt_len, batch.n_thoughts, EOT, NEVER, self.sizes[3])


def main(c: BenchConfig) -> None:
    if c.max_thoughts < 0 or min(c.repeats, c.questions) < 1:
        raise UserError("expected --max_thoughts of 0 or more, --repeats and --questions of 1 or more")
    bench = Bench(c)
    (B, P, S, _), rate = bench.sizes, bench.matmul_rate()
    name = torch.cuda.get_device_name() if bench.device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    about = dict(preset=c.preset, device=name, dtype="bfloat16" if bench.bf16 else "float32", torch=torch.__version__)
    about |= dict(B=B, P=P, S=S, n_layer=bench.shape.n_layer, n_embd=bench.shape.n_embd, matmul_gflops=rate / 1e9)
    print(", ".join(f"{k} {v:.0f}" if isinstance(v, float) else f"{k} {v}" for k, v in about.items()))
    print("K   ms/step  " + "".join(f"{phase:>10}" for phase in PHASES) + "  examples/s  tokens/s    MFU")
    rows, batches = [], [bench.batch(K) for K in range(c.max_thoughts + 1)]
    for K, batch in enumerate(batches):
        whole = bench.seconds(lambda batch=batch: bench.step(batch))
        cut = [statistics.median(times) for times in zip(*(bench.phases(batch) for _ in range(c.repeats)), strict=True)]
        row = dict(thoughts=K, step=whole, **dict(zip(PHASES, cut, strict=True)), examples_per_second=B / whole)
        row |= dict(tokens_per_second=B * (P + K + S) / whole, mfu=bench.flops(batch) / whole / rate)
        rows.append(row)
        times = "".join(f"{1e3 * seconds:10.1f}" for seconds in cut)
        print(f"{K:<2}{1e3 * whole:9.1f}   {times}{B / whole:12.0f}{row['tokens_per_second']:10.0f}{row['mfu']:7.1%}")
    cuda = bench.device.type == "cuda"
    memory = torch.cuda.max_memory_allocated() if cuda else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    facts = dict(memory_mib=memory / 2**20, last_over_first=rows[-1]["step"] / rows[0]["step"])
    last = batches[-1]
    few = last._replace(**{field: getattr(last, field)[:4] for field in last._fields[:-1]})
    alone = few._replace(prompt=few.prompt[:1], prompt_len=few.prompt_len[:1])
    reference = bench.seconds(lambda: bench.step(few, coconut.forward_reference), 1) * B / len(few.prompt)
    facts |= dict(reference_step=reference, times_faster_than_reference=reference / rows[-1]["step"])
    slow = bench.seconds(lambda: bench.one_by_one(alone), 20)
    drawn = torch.randint(B, (c.questions,), device=bench.device).split(250)
    many = [last._replace(prompt=last.prompt[i], prompt_len=last.prompt_len[i]) for i in drawn]
    fast = bench.seconds(lambda: [bench.generate(part) for part in many], 3) / c.questions
    facts |= dict(answer_one_by_one=slow, answer_batched=fast, times_faster_than_one_by_one=slow / fast)
    facts |= dict(answer_alone_cached=bench.seconds(lambda: bench.generate(alone), 20))
    bench.model.compile_blocks()
    began = bench.clock()
    for batch in batches:
        bench.step(batch)
    facts |= dict(compile=bench.clock() - began - sum(row["step"] for row in rows))
    facts |= dict(compiled_first=bench.seconds(lambda: bench.step(batches[0])))
    facts |= dict(compiled_last=bench.seconds(lambda: bench.step(last)))
    print("\n".join(f"{key.replace('_', ' ')}: {value:.4g}" for key, value in facts.items()))
    stem = Path("results") / f"bench-{c.preset}-{bench.device.type}"
    stem.parent.mkdir(exist_ok=True)
    plots.phases(rows, PHASES, stem.with_suffix(".png"))
    data.write_text(stem.with_suffix(".json"), json.dumps(about | facts | {"rows": rows}, indent=1) + "\n")
    print(json.dumps(about | facts | {"rows": rows}))


if __name__ == "__main__":
    config.run(main, BenchConfig, choices={"preset": tuple(SIZES), "dtype": ("auto", "float32", "bfloat16")})
