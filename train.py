"""Trains a GPT-2 through the latent curriculum. Read this fourth, after curriculum.py: it is one plain loop.

    for each step:  which stage is it?  ->  a batch of that stage  ->  loss  ->  gradient  ->  optimizer

A batch depends on (seed, step) alone. Everything of a run is under runs/<name>/: config.json, log.csv, curves.png,
ckpt.pt (the last state) and best.pt (the best on valid within the stage it belongs to).
"""

import dataclasses
import json
import math
import random
import time
from pathlib import Path

import torch
from tqdm import tqdm

from nanococonut import coconut, config, curriculum, data, evaluate, plots
from nanococonut.config import CHOICES, PRESETS, TrainConfig, UserError
from nanococonut.model import GPT, GPTConfig

N_EVAL = 300  # questions of valid at most, each time: ProsQA's whole split
SLACK = 8  # tokens that an answer may be longer than the longest chain in the data


def schedule(c: TrainConfig) -> list[int]:
    """Steps of each stage 0..max_stage.

    >>> schedule(TrainConfig(stage_steps=(20,), max_stage=2)), schedule(TrainConfig(stage_steps=(50, 5)))
    ([20, 20, 20], [50, 5])
    """
    return list(c.stage_steps) * (c.max_stage + 1) if len(c.stage_steps) == 1 else list(c.stage_steps)


def print_schedule(c: TrainConfig, steps: list[int]) -> None:
    """One line a stage, before anything is trained: how long, how many thoughts, what is left in words."""
    print(f"{c.method}: {sum(steps)} steps of {c.batch_size} examples\nstage  steps  thoughts  pauses  steps removed")
    for stage, n in enumerate(steps):
        p = curriculum.plan(c.method, stage, len(steps) - 1, c.c_thought)
        removed = "all" if p.n_removed is None else p.n_removed
        print(f"{stage:5}  {n:5}  {p.n_thoughts:8}  {p.n_pauses:6}  {removed:>13}")


def make_optimizers(model: GPT, c: TrainConfig, stage: int) -> list[torch.optim.Optimizer]:
    """AdamW; in stage 0 with muon_lr, Muon on the blocks' matrices and AdamW on the rest."""
    muon = c.muon_lr > 0 and stage == 0
    # Differs from the paper: Muon [Jordan 2024] before there are thoughts; RESULTS.md compares it with AdamW alone.
    matrices = [p for p in model.h.parameters() if p.dim() == 2] if muon else []
    taken = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in taken]
    lr = c.first_lr if c.first_lr and stage == 0 else c.lr
    optimizers = [torch.optim.AdamW(rest, lr, (0.9, c.beta2), weight_decay=c.weight_decay)]
    if muon:
        if not hasattr(torch.optim, "Muon"):
            raise UserError(f"--muon_lr needs torch 2.9 or later, this is {torch.__version__}; or use --muon_lr=0")
        optimizers.append(torch.optim.Muon(matrices, c.muon_lr, weight_decay=c.weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["full_lr"] = group["lr"]
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


def open_run(c: TrainConfig) -> tuple[str, Path]:
    """A new folder under runs/. A name that exists is refused: a run is never overwritten."""
    name, number = c.name or f"{c.task}-{c.method}", 1
    folder = data.folder_of("runs", name)
    while not c.name and folder.exists():
        number += 1
        folder = data.folder_of("runs", f"{name}-{number}")
    if folder.exists():
        raise UserError(f"{folder} exists; choose another --name, or delete it")
    folder.mkdir(parents=True)
    return folder.name, folder


def log(path: Path, step: int, stage: int, split: str, **metrics: float) -> None:
    """Appends to log.csv one line a number: step,stage,split,metric,value."""
    new = not path.exists()
    with open(path, "a", encoding="utf-8") as file:
        file.write("step,stage,split,metric,value\n" * new)
        file.writelines(f"{step},{stage},{split},{metric},{value:.6g}\n" for metric, value in metrics.items())


def accumulate(model: GPT, parts: list[curriculum.Batch], device: torch.device, bf16: bool) -> torch.Tensor:
    """Adds to .grad the gradient of the mean loss over all supervised tokens of the parts, and returns that loss."""
    n_targets = [int((part.targets != -100).sum()) for part in parts]
    total = torch.zeros((), device=device)
    for part, n in zip(parts, n_targets, strict=True):
        part = part._replace(**{name: getattr(part, name).to(device) for name in part._fields[:-1]})
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = coconut.forward(model, part).loss * (n / sum(n_targets))  # not a mean of the parts' means
        loss.backward()
        total += loss.detach()
    return total


@torch.no_grad()
def accuracy(model, split, p, dataset, max_new_tokens: int) -> dict[str, float]:
    """On up to N_EVAL problems of a split: the share answered right, and of first written steps that are facts."""
    examples = [split.example(i) for i in range(min(len(split), N_EVAL))]
    texts = dataset.encoding.decode_batch(evaluate.answer(model, examples, p, dataset.special, max_new_tokens))
    rows = split.rows[: len(texts)]
    metrics = {"accuracy": sum(map(evaluate.is_right, texts, rows)) / len(texts)}
    if split.graphs and p.n_removed is not None and p.n_removed < min(len(row["steps"]) for row in rows):
        metrics["first_step_is_fact"] = sum(map(evaluate.starts_with_fact, texts, rows)) / len(texts)
    return metrics


def main(c: TrainConfig) -> None:
    dataset = data.Dataset(c.task)
    train, valid = dataset.split("train"), dataset.split("valid")
    steps = schedule(c)
    plans = [curriculum.plan(c.method, stage, len(steps) - 1, c.c_thought) for stage in range(len(steps))]
    device = evaluate.pick_device(c.device)
    bf16 = c.dtype == "bfloat16" or (c.dtype == "auto" and device.type == "cuda")
    config.print_resolved(c)
    print_schedule(c, steps)

    # The longest thing this run can meet: a question, its thoughts or pauses between two markers, a whole chain.
    max_new_tokens = dataset.meta["longest"]["rest"] + SLACK
    longest = dataset.meta["longest"]["question"] + max(p.n_thoughts + p.n_pauses for p in plans) + 2 + max_new_tokens
    if c.block_size and c.block_size < longest:
        raise UserError(f"--block_size={c.block_size} is too short for data/{c.task}: it needs {longest}")
    torch.manual_seed(c.seed)
    model_config = GPTConfig(
        vocab_size=dataset.encoding.n_vocab,
        block_size=c.block_size or -(-longest // 64) * 64,  # a little room for questions of other files
        **{field: getattr(c, field) for field in ("n_layer", "n_head", "n_embd", "dropout", "init", "init_std")},
    )
    model = GPT(model_config).to(device).train()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters on {device}, {'bfloat16' if bf16 else 'float32'}")

    name, folder = open_run(c)
    data.write_text(folder / "config.json", json.dumps(dataclasses.asdict(c) | {"stage_steps": steps}, indent=1) + "\n")
    csv = folder / "log.csv"

    def save(file: str, step: int, stage: int) -> None:
        state = {
            "model": model.state_dict(),
            "model_config": dataclasses.asdict(model_config),
            "config": dataclasses.asdict(c) | {"stage_steps": steps},
            "data": {k: dataset.meta[k] for k in ("task", "tokenizer", "vocabulary")}
            | {"max_new_tokens": max_new_tokens},
            "step": step,
            "stage": stage,
        }
        data.write_atomically(folder / file, lambda f: torch.save(state, f))

    began, step, losses = time.time(), 0, []
    progress = tqdm(total=sum(steps), unit="step")
    for stage, n_steps in enumerate(steps):
        if stage == 0 or c.reset_optimizer == "stage":
            # Differs from the released code, which starts the optimizer anew at every epoch: this is the paper's way.
            optimizers = make_optimizers(model, c, stage)
        best = -1.0  # a stage is compared with itself alone
        for i in range(n_steps):
            rng = random.Random(f"{c.seed} {step}")
            drawn = curriculum.draw_stage(stage, c.mix, rng)
            examples = train.draw(c.batch_size, rng, c.augment, keep=min(1.0, step / c.grow) if c.grow else 1.0)
            size = c.micro_batch_size or c.batch_size
            chunks = [examples[j : j + size] for j in range(0, len(examples), size)]
            parts = [curriculum.collate(chunk, plans[drawn], dataset.special) for chunk in chunks]
            loss = accumulate(model, parts, device, bf16)
            if c.grad_clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), c.grad_clip)
            factor = lr_factor(i, n_steps, c)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["full_lr"] * factor
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            step += 1
            progress.update()
            if drawn == stage:
                losses.append(loss)
            ends = i + 1 == n_steps
            if losses and (step % c.log_every == 0 or i == 0 or ends):  # the only look at the device's numbers
                mean, losses = float(torch.stack(losses).mean()), []
                if not math.isfinite(mean):
                    raise UserError(f"loss is {mean} at step {step}, stage {stage}, lr {c.lr * factor:g}; lower --lr")
                log(csv, step, stage, "train", loss=mean, lr_factor=factor, seconds=time.time() - began)
                progress.set_postfix_str(f"stage {stage}, loss {mean:.3f}")
            if ends or (c.eval_every and step % c.eval_every == 0):
                metrics = accuracy(model, valid, plans[stage], dataset, max_new_tokens)
                log(csv, step, stage, "valid", **metrics)
                tqdm.write(f"step {step}, stage {stage}: " + ", ".join(f"{k} {v:.1%}" for k, v in metrics.items()))
                if metrics["accuracy"] >= best:
                    best = metrics["accuracy"]
                    save("best.pt", step, stage)
            if ends or step % c.save_every == 0:
                save("ckpt.pt", step, stage)
    progress.close()
    plots.curves(csv, folder / "curves.png")
    print(f"{folder} after {time.time() - began:.0f} s: {best:.1%} of valid right. Next: python sample.py {name}")


if __name__ == "__main__":
    config.run(main, TrainConfig, PRESETS, CHOICES)
