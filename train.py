"""Trains a GPT-2 through the latent curriculum. Read this fourth, after curriculum.py: it is one plain loop.

    for each step:  which stage is it?  ->  a batch of that stage  ->  loss  ->  gradient  ->  optimizer

A batch depends on (seed, step) alone, so a run that was cut off goes on from its last checkpoint as if nothing had
been (--resume=true), and `torchrun --nproc_per_node=N train.py` cuts the same batches into N parts. See also runs.py.
"""

import bisect
import contextlib
import dataclasses
import itertools
import json
import math
import random
import time

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils._triton import has_triton
from tqdm import tqdm

from nanococonut import coconut, config, curriculum, data, plots, pretrained, runs
from nanococonut.config import CHOICES, PRESETS, TrainConfig, UserError
from nanococonut.model import GPT, GPTConfig

N_EVAL = 300  # questions of valid at most, each time: ProsQA's whole split
SLACK = 8  # tokens that an answer may be longer than the longest chain in the data


def plan(c: TrainConfig, stage: int, chain: int = 0, behind: float = 0.0) -> curriculum.Plan:
    """The run's plan of a stage, as in curriculum.plan."""
    last = len(c.schedule) - 1
    return curriculum.plan(c.method, stage, last, c.c_thought, chain, behind, c.extra_stage, c.aligned)


def print_schedule(c: TrainConfig, steps: list[int]) -> None:
    """One line a stage, before anything is trained: how long, how many thoughts, what is left in words."""
    print(f"{c.method}: {sum(steps)} steps of {c.batch_size} examples\nstage  steps  thoughts  pauses  steps removed")
    for stage, n in enumerate(steps):
        p = plan(c, stage)
        removed = "all" if p.n_removed is None else p.n_removed
        print(f"{stage:5}  {n:5}  {p.n_thoughts:8}  {p.n_pauses:6}  {removed:>13}")


def make_optimizers(model: GPT, c: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW; with muon_lr, AdamW on embeddings, norms and biases, and Muon on the blocks' matrices."""
    # Differs from the paper: Muon [Jordan 2024]; RESULTS.md compares it with AdamW alone.
    matrices = [p for p in model.h.parameters() if p.dim() == 2] if c.muon_lr else []
    taken = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in taken]
    optimizers = [torch.optim.AdamW(rest, c.lr, (0.9, c.beta2), weight_decay=c.weight_decay, fused=True)]
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, c.muon_lr, weight_decay=c.weight_decay))
    return optimizers


def lr_factor(step: int, n_steps: int, c: TrainConfig) -> float:
    """What the learning rates are multiplied by at a step of a stage: up over `warmup` steps, down over a last share.

    >>> c = TrainConfig(warmup=10, decay=0.5)
    >>> [lr_factor(step, 100, c) for step in (0, 9, 50, 75)]
    [0.1, 1.0, 1.0, 0.5]
    """
    up = min(1.0, (step + 1) / c.warmup) if c.warmup else 1.0
    down = min(1.0, (n_steps - step) / (c.decay * n_steps)) if c.decay else 1.0
    return up * down


class Loss(torch.nn.Module):
    """coconut.forward as a module whose forward is the loss: what DistributedDataParallel can wrap."""

    def __init__(self, model: GPT):
        super().__init__()
        self.model = model

    def forward(self, batch: curriculum.Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch's mean loss, and the mean length of its thoughts."""
        out = coconut.forward(self.model, batch)
        return out.loss, out.thoughts.detach().float().norm(dim=-1).mean()


def accumulate(loss_of: torch.nn.Module, parts, n_targets: int, device, bf16: bool) -> torch.Tensor:
    """Adds to .grad the gradient of the loss of these parts of a batch, and returns (2,): that loss, thoughts' length.

    A part's mean is weighed by its share of the batch's n_targets supervised tokens: parts add up to the mean over all
    tokens, where a mean of means would favour short answers. DistributedDataParallel adds the processes' gradients up
    at the last part and divides by their number, hence the factor. Raises UserError where memory does not suffice.
    """
    n_processes = distributed.get_world_size() if distributed.is_initialized() else 1
    total, cuda = torch.zeros(2, device=device), device.type == "cuda"
    try:
        for i, part in enumerate(parts):
            share = int((part.targets != -100).sum()) / n_targets  # counted on the CPU: nobody waits for the device
            tensors = [t.pin_memory() if cuda else t for t in part[:-1]]  # so nobody waits for the copy
            part = curriculum.Batch(*(t.to(device, non_blocking=cuda) for t in tensors), part.n_thoughts)
            more = n_processes > 1 and i + 1 < len(parts)
            with loss_of.no_sync() if more else contextlib.nullcontext():
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    loss, norm = loss_of(part)
                (loss * share * n_processes).backward()
            total += torch.stack([loss.detach() * share, norm / len(parts) / n_processes])
    except RuntimeError as error:
        if "out of memory" in str(error) or "can't allocate memory" in str(error):
            half = max(1, len(parts[0].prompt) // 2)
            raise UserError(f"out of memory; with fewer examples at once: --micro_batch_size={half}") from None
        raise
    return total


@torch.no_grad()
def accuracy(model, split, p, dataset, max_new_tokens: int) -> dict[str, float]:
    """On up to N_EVAL problems of a split: the share answered right, and of first written steps that are facts."""
    examples = [split.example(i) for i in range(min(len(split), N_EVAL))]
    prompts, eot = curriculum.prompts(examples, p, dataset.special)
    ids = coconut.answer(model, prompts, p.n_thoughts, eot, dataset.special["eos"], max_new_tokens)
    texts = dataset.encoding.decode_batch(ids)
    rows = split.rows[: len(texts)]
    metrics = {"accuracy": sum(map(data.is_right, texts, rows)) / len(texts)}
    shortest = min(len(row["steps"]) for row in rows)
    if split.graphs and p.n_removed is not None and p.n_removed < shortest and not p.n_tokens:
        metrics["first_step_is_fact"] = sum(map(data.starts_with_fact, texts, rows)) / len(texts)
    return metrics


def build(c: TrainConfig, dataset: data.Dataset, plans: list[curriculum.Plan], device) -> tuple[GPT, int]:
    """The model at its start, with room for the longest example, and how many tokens an answer may have."""
    # The longest thing this run can meet: a question, its thoughts or pauses between two markers, a whole chain.
    max_new_tokens = dataset.meta["longest"]["rest"] + SLACK
    longest = dataset.meta["longest"]["question"] + max(p.n_thoughts + p.n_pauses for p in plans) + 2 + max_new_tokens
    if c.block_size and c.block_size < longest:
        raise UserError(f"--block_size={c.block_size} is too short for data/{c.task}: it needs {longest}")
    if c.muon_lr and not hasattr(torch.optim, "Muon"):
        raise UserError(f"--muon_lr needs torch 2.9 or later, this is {torch.__version__}; or use --muon_lr=0")
    torch.manual_seed(c.seed)
    if c.init_from:
        model = pretrained.start(c.init_from, c.n_head, c.dropout, dataset)
        if model.config.block_size < longest:
            raise UserError(f"{c.init_from} has {model.config.block_size} positions, data/{c.task} needs {longest}")
        return model.to(device).train(), max_new_tokens
    model_config = GPTConfig(
        vocab_size=dataset.encoding.n_vocab,
        block_size=c.block_size or -(-longest // 64) * 64,  # a little room for questions of other files
        **{field: getattr(c, field) for field in ("n_layer", "n_head", "n_embd", "dropout", "init", "init_std")},
    )
    return GPT(model_config).to(device).train(), max_new_tokens


def look(recent: list[torch.Tensor], n_processes: int, step: int, about: str) -> torch.Tensor:
    """The numbers of the latest steps (n, 4): loss, thoughts' length, gradient's length, 1 for the stage's own batches.

    Raises UserError for the first step whose loss or gradient is not finite.
    """
    seen = torch.stack(recent)
    if n_processes > 1:
        distributed.all_reduce(seen)
        seen[:, 2:] /= n_processes  # equal everywhere; of loss and thoughts each process has its share
    seen = seen.cpu()
    for number, (loss, _, gradient, _) in enumerate(seen.tolist(), start=step - len(seen) + 1):
        if not math.isfinite(loss + gradient):
            raise UserError(f"the loss is {loss:g} and its gradient {gradient:g} long at step {number}, {about}")
    return seen


def main(c: TrainConfig) -> None:
    """Trains. Several processes take the same steps, each on its share of a batch, and the first one writes."""
    device, rank, n_processes = runs.join(c.device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 where a matrix product is still in float32
    dataset = data.Dataset(c.task)
    problems, valid = dataset.split("train"), dataset.split("valid")
    steps = c.schedule
    ends = list(itertools.accumulate(steps))  # of the stages, in steps
    plans = [plan(c, stage, dataset.meta["longest"]["chain"]) for stage in range(len(steps))]
    if c.batch_size < n_processes:
        raise UserError(f"--batch_size={c.batch_size} should be at least {n_processes}, one example a process")
    bf16 = c.dtype == "bfloat16" or (c.dtype == "auto" and device.type == "cuda")
    config.print_resolved(c)
    print_schedule(c, steps)
    model, max_new_tokens = build(c, dataset, plans, device)
    compiled = c.compile == "true" or (c.compile == "auto" and device.type == "cuda" and has_triton())
    if compiled:
        model.compile_blocks()
    how = f"{'bfloat16' if bf16 else 'float32'}, {'compiled' if compiled else 'eager'}"
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters on {device}, {how}")

    folder, state = runs.open_run(c, dataset) if rank == 0 or c.resume else (None, None)
    optimizers, step, best, seconds, recent, last_saved = [], 0, -1.0, 0.0, [], "There is no checkpoint yet"
    if state:
        optimizers = make_optimizers(model, c)
        runs.restore(state, model, optimizers)
        step, best, seconds = state["step"], state["best"], state["seconds"]
        recent = list((state["recent"] / torch.tensor([n_processes, n_processes, 1, 1])).to(device))
        last_saved = f"{folder}/ckpt.pt holds step {step}"
        print(f"{folder} goes on from step {step}")
    if rank == 0:
        settings = dataclasses.asdict(c) | {"stage_steps": steps}
        data.write_text(folder / "config.json", json.dumps(settings, indent=1) + "\n")
        csv = folder / "log.csv"
        runs.cut_log(csv, step)

    def save(file: str, **more) -> None:
        kept = {k: dataset.meta[k] for k in ("task", "tokenizer", "vocabulary", "sha256")}
        state = {
            **dict(model=model.state_dict(), model_config=dataclasses.asdict(model.config), config=settings),
            **dict(data=kept | {"max_new_tokens": max_new_tokens}, step=step, stage=stage, best=best, **more),
        }
        data.write_atomically(folder / file, lambda f: torch.save(state, f))

    loss_of = Loss(model) if n_processes == 1 else DistributedDataParallel(Loss(model))
    began = time.time() - seconds
    progress = tqdm(total=ends[-1], initial=step, unit="step", disable=rank > 0)
    with runs.stop_signals() as stop:
        while step < ends[-1]:
            stage = bisect.bisect_right(ends, step)
            i = step - (ends[stage] - steps[stage])  # steps of this stage behind us
            if i == 0:
                # Differs from the released code, which starts the optimizer anew at every epoch: the paper's way.
                optimizers, best = make_optimizers(model, c), -1.0  # a stage is compared with itself alone
            if i == 0 and c.aligned and plans[stage].n_thoughts > plans[stage - 1].n_thoughts == 0:
                with torch.no_grad():  # Differs from the paper: what <eot> wrote first, <bot> now begins to think
                    model.wte.weight[dataset.special["bot"]] = model.wte.weight[dataset.special["eot"]]
            rng = random.Random(f"{c.seed} {step}")
            drawn = curriculum.draw_stage(stage, c.mix, rng)
            over = plan(c, drawn).n_removed if c.longer and rng.random() < c.longer else None
            keep = min(1.0, step / c.grow) if c.grow else 1.0
            examples = problems.draw(c.batch_size, rng, c.augment, keep, over, c.hard)
            behind = i / steps[stage] if drawn == stage else rng.random()
            p = plan(c, drawn, dataset.meta["longest"]["chain"], behind)
            pairs = [curriculum.split(example, p, dataset.special, rng) for example in examples]
            n_targets = sum(len(suffix) - 1 for _, suffix in pairs)
            mine, size = pairs[rank::n_processes], c.micro_batch_size or c.batch_size
            chunks = [mine[j : j + size] for j in range(0, len(mine), size)]
            parts = [curriculum.collate(chunk, p.n_thoughts, dataset.special["eos"]) for chunk in chunks]
            found = accumulate(loss_of, parts, n_targets, device, bf16)
            length = torch.nn.utils.clip_grad_norm_(model.parameters(), c.grad_clip or math.inf)
            factor = lr_factor(i, steps[stage], c)
            rates = (c.lr, c.muon_lr) if stage else (c.first_lr or c.lr, c.first_muon_lr or c.muon_lr)
            for optimizer, rate in zip(optimizers, rates, strict=False):
                for group in optimizer.param_groups:
                    group["lr"] = rate * factor
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            step += 1
            progress.update()
            recent.append(torch.stack([*found, length, torch.full_like(length, drawn == stage)]))
            at_end = step == ends[stage]
            logs = i == 0 or at_end or step % c.log_every == 0
            evaluates = at_end or (c.eval_every and step % c.eval_every == 0)
            stopped = stop if n_processes == 1 else runs.agree(stop, device) if logs else []
            saves = at_end or step % c.save_every == 0 or stopped
            if not (logs or evaluates or saves):
                continue  # nobody looks at the device's numbers, so nobody waits for them
            lr = optimizers[0].param_groups[0]["lr"]
            seen = look(recent, n_processes, step, f"stage {stage}, lr {lr:g}; lower --lr. {last_saved}")
            if logs and seen[:, 3].any():
                loss, thoughts, gradient, _ = seen[seen[:, 3] > 0].mean(dim=0).tolist()  # the stage's own batches
                recent = []
                words = float(model.wte.weight.detach().norm(dim=1).mean())
                numbers = dict(loss=loss, gradient_norm=gradient, lr_factor=factor, embedding_norm=words)
                numbers |= dict(thought_norm=thoughts) if plans[stage].n_thoughts else {}
                if rank == 0:
                    runs.log(csv, step, stage, "train", **numbers, seconds=time.time() - began)
                progress.set_postfix_str(f"stage {stage}, loss {loss:.3f}")
            if evaluates and rank == 0:
                metrics = accuracy(model, valid, plans[stage], dataset, max_new_tokens)
                runs.log(csv, step, stage, "valid", **metrics)
                tqdm.write(f"step {step}, stage {stage}: " + ", ".join(f"{k} {v:.1%}" for k, v in metrics.items()))
                if metrics["accuracy"] >= best:
                    best = metrics["accuracy"]
                    save("best.pt")
            if saves and rank == 0:
                more = dict(optimizers=[o.state_dict() for o in optimizers], rng=torch.get_rng_state())
                more |= dict(cuda_rng=torch.cuda.get_rng_state() if device.type == "cuda" else None)
                more |= dict(recent=seen[len(seen) - len(recent) :])  # of all processes together
                save("ckpt.pt", **more, seconds=time.time() - began)
                last_saved = f"{folder}/ckpt.pt holds step {step}"
            if stopped:
                progress.close()
                if n_processes > 1:
                    distributed.barrier()  # nobody leaves while the first process writes
                if rank == 0:
                    print(f"stopped at step {step}; to go on: the same command with --name={folder.name} --resume=true")
                raise SystemExit(128 + stopped[0])
    progress.close()
    if rank == 0:
        plots.curves(csv, folder / "curves.png")
        end = f"{best:.1%} of valid right. Next: python sample.py {folder.name}"
        print(f"{folder} after {time.time() - began:.0f} s: {end}")
    if n_processes > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    config.run(main, TrainConfig, PRESETS, CHOICES)
