"""Trains a GPT-2 through the latent curriculum. Read this fourth, after curriculum.py: it is one plain loop.

    for each step:  which stage is it?  ->  a batch of that stage  ->  loss  ->  gradient  ->  optimizer

A batch depends on (seed, step) alone. Everything of a run is under runs/<name>/: config.json, log.csv, curves.png,
ckpt.pt (the last state) and best.pt (the best on valid within the stage it belongs to).
"""

import dataclasses
import json
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


def stage_at(step: int, steps: list[int]) -> int:
    """The stage of a step, counted from 0.

    >>> [stage_at(step, [2, 1, 2]) for step in range(5)]
    [0, 0, 1, 2, 2]
    """
    stage = 0
    while step >= sum(steps[: stage + 1]):
        stage += 1
    return stage


def print_schedule(c: TrainConfig, steps: list[int]) -> None:
    """One line a stage, before anything is trained: how long, how many thoughts, what is left in words."""
    print(f"{c.method}: {sum(steps)} steps of {c.batch_size} examples\nstage  steps  thoughts  pauses  steps removed")
    for stage, n in enumerate(steps):
        p = curriculum.plan(c.method, stage, len(steps) - 1, c.c_thought)
        removed = "all" if p.n_removed is None else p.n_removed
        print(f"{stage:5}  {n:5}  {p.n_thoughts:8}  {p.n_pauses:6}  {removed:>13}")


def make_optimizers(model: GPT, c: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW on everything, or Muon on the blocks' matrices and AdamW on the rest; base_lr remembers the rate."""
    matrices = [p for p in model.h.parameters() if p.dim() == 2] if c.muon_lr else []
    ours = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in ours]
    optimizers = [torch.optim.AdamW(rest, c.lr, (0.9, c.beta2), weight_decay=c.weight_decay)]
    if matrices:
        if not hasattr(torch.optim, "Muon"):
            raise UserError(f"--muon_lr needs torch 2.9 or later, this is {torch.__version__}; or use --muon_lr=0")
        optimizers.append(torch.optim.Muon(matrices, c.muon_lr, weight_decay=c.weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return optimizers


def lr_factor(step: int, since_reset: int, total: int, c: TrainConfig) -> float:
    """What the learning rates are multiplied by: up over `warmup` steps, down over the last share `decay` of all.

    >>> c = TrainConfig(warmup=10, decay=0.5)
    >>> lr_factor(0, 0, 100, c), lr_factor(30, 30, 100, c), lr_factor(75, 75, 100, c)
    (0.1, 1.0, 0.5)
    """
    up = min(1.0, (since_reset + 1) / c.warmup) if c.warmup else 1.0
    down = min(1.0, (total - step) / (c.decay * total)) if c.decay else 1.0
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


def to_device(batch: curriculum.Batch, device: torch.device) -> curriculum.Batch:
    return batch._replace(**{k: getattr(batch, k).to(device, non_blocking=True) for k in batch._fields[:-1]})


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

    total, best, last_stage, losses = sum(steps), -1.0, -1, []
    optimizers, since_reset = make_optimizers(model, c), 0
    began = time.time()
    progress = tqdm(range(total), unit="step")
    for step in progress:
        stage = stage_at(step, steps)
        if stage != last_stage:
            best, last_stage = -1.0, stage  # a stage is compared with itself alone
            if c.reset_optimizer == "stage":
                optimizers, since_reset = make_optimizers(model, c), 0

        rng = random.Random(f"{c.seed} {step}")
        drawn = curriculum.draw_stage(stage, c.mix, rng)
        examples = train.draw(c.batch_size, rng, c.augment, keep=min(1.0, step / c.grow) if c.grow else 1.0)
        size = c.micro_batch_size or c.batch_size
        parts = [
            curriculum.collate(examples[i : i + size], plans[drawn], dataset.special)
            for i in range(0, len(examples), size)
        ]
        n_targets = sum(int((part.targets != -100).sum()) for part in parts)
        loss = 0.0
        for part in parts:
            share = int((part.targets != -100).sum()) / n_targets  # of a mean over all supervised tokens, not of means
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                part_loss = coconut.forward(model, to_device(part, device)).loss * share
            part_loss.backward()
            loss = loss + part_loss.detach()

        if c.grad_clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), c.grad_clip)
        factor = lr_factor(step, since_reset, total, c)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        since_reset += 1

        if drawn == stage:
            losses.append(loss)
        done = step + 1
        ends = done == total or stage_at(done, steps) != stage
        if losses and (done % c.log_every == 0 or ends or since_reset == 1):  # the only look at the device's numbers
            mean = float(torch.stack(losses).mean())
            losses = []
            if not mean < float("inf"):
                raise UserError(f"loss is {mean} at step {done}, stage {stage}, lr {c.lr * factor:g}; try a lower --lr")
            log(csv, done, stage, "train", loss=mean, lr_factor=factor, seconds=time.time() - began)
            progress.set_postfix_str(f"stage {stage}, loss {mean:.3f}")
        if ends or (c.eval_every and done % c.eval_every == 0):
            metrics = accuracy(model, valid, plans[stage], dataset, max_new_tokens)
            log(csv, done, stage, "valid", **metrics)
            tqdm.write(f"step {done}, stage {stage}: " + ", ".join(f"{k} {v:.1%}" for k, v in metrics.items()))
            if metrics["accuracy"] >= best:
                best = metrics["accuracy"]
                save("best.pt", done, stage)
        if ends or done % c.save_every == 0:
            save("ckpt.pt", done, stage)
    plots.curves(csv, folder / "curves.png")
    print(f"{folder} after {time.time() - began:.0f} s: {best:.1%} of valid right. Next: python sample.py {name}")


if __name__ == "__main__":
    config.run(main, TrainConfig, PRESETS, CHOICES)
