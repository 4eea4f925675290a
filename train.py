"""Trains a GPT-2 through the latent curriculum. Read this fourth: it is one plain loop.

    locate the stage, begin it if it is new, draw a batch, think forward, go backward, step,
    and when due: look at the numbers, evaluate, save

A batch depends on the seed, the step and the schedule, which a checkpoint holds. So a run that was
cut off resumes exactly (--resume=true), and `torchrun --nproc_per_node=N train.py` cuts the same
batches into N parts.
"""

import contextlib
import functools
import math

from nanococonut import batching, coconut, compiling, config, data, devices, optimizers, runs
from nanococonut.config import UserError
from nanococonut.settings import CHOICES, PRESETS, TrainConfig

import torch  # isort: skip - after the package, which sets how torch's CPU threads wait
from torch import Tensor  # isort: skip
from torch.nn.utils import clip_grad_norm_  # isort: skip
from tqdm import tqdm  # isort: skip


def losses(model, part, shares, forward, machine) -> tuple[Tensor, Tensor]:
    """The loss to train on, and (3,) numbers to look at, each times the part's share of the batch.

    The numbers are the loss on words, the loss on next words, and the thoughts' mean length.
    """
    with machine.autocast():
        out = forward(model, part)
        length = out.thoughts.detach().float().norm(dim=-1).mean()
        numbers = torch.stack([out.loss, out.next_loss, length]) * shares
    return numbers[0] + numbers[1], numbers.detach()


def accumulate(model, batch, c, machine, forward=coconut.forward, replay=None) -> Tensor:
    """The forward and the backward pass of this process's share of a batch: fills .grad.

    forward  coconut.forward, or the same compiled
    replay   on one GPU: the lines of the loop, recorded
    Returns the numbers of losses(), added up over the parts.
    """
    numbers = torch.zeros(3, device=machine.device)
    for part, shares in batching.parts(batch, c, machine.rank, machine.n_processes):
        part = coconut.Batch(*map(machine.to_device, part))
        shares = machine.to_device(shares)
        if replay:
            numbers += replay(part, shares)
            continue
        loss, of_part = losses(model, part, shares, forward, machine)
        loss.backward()
        numbers += of_part
    machine.add_up_gradients(model)
    return numbers


def main(c: TrainConfig) -> None:
    """Trains. Several processes take the same steps, each on its share; the first one writes."""
    machine = devices.join(c.device, c.dtype, c.n_embd)
    if c.batch_size // c.questions < machine.n_processes:
        raise UserError(f"--batch_size should be at least {machine.n_processes * c.questions} here")
    dataset = data.Dataset(c.task)
    problems, valid, special = dataset.split("train"), dataset.split("valid"), dataset.special
    runs.demand_graphs(c, problems)
    schedule = batching.Schedule(c, dataset.meta["longest"])
    config.print_resolved(c, PRESETS[c.preset])
    schedule.show()
    batch_of = functools.partial(batching.draw_batch, c, problems, schedule, special)  # of a step
    model = runs.starting_model(c, dataset, schedule.n_positions).to(machine.device).train()
    forward, how = coconut.forward, "eager"
    if machine.compiles(c.compile):
        forward, how = functools.partial(compiling.forward, phases=compiling.compiled()), "compiled"
    n = sum(p.numel() for p in model.parameters())
    print(f"{n:,} parameters on {machine.device}, {machine.dtype}, {how}")
    replay = None
    if machine.replays:
        replay = compiling.Replay(lambda *part: losses(model, *part, forward, machine), model)
    learn = functools.partial(
        accumulate, model, c=c, machine=machine, forward=forward, replay=replay
    )
    run = runs.Writer(c, dataset, machine, model, schedule.max_new_tokens)
    step, opts = run.resume(schedule)
    run.settle_threads(lambda: learn(batch_of(schedule.total - 1)))
    batches = machine.ahead(batch_of, range(step, schedule.total))
    progress = tqdm(total=schedule.total, initial=step, unit="step", disable=not machine.is_first)

    with progress, contextlib.closing(run), runs.stop_signals() as stop:
        while step < schedule.total:
            stage, n_behind = schedule.locate(step)
            if n_behind == 0:
                run.best = -1.0  # a stage is compared with itself alone
            # Differs from the released code, which starts the optimizer anew at every epoch.
            # In place the losses of earlier stages stay, so the optimizer goes on (in all rows).
            if step == 0 or (n_behind == 0 and c.layout == "paper"):
                opts = optimizers.make(model, c)
            numbers = learn(next(batches))  # forward and backward
            factor = optimizers.factor(*schedule.span(step), c)
            optimizers.set_rates(opts, c, factor)
            norm = clip_grad_norm_(model.parameters(), c.grad_clip or math.inf)
            for optimizer in opts:
                optimizer.step()
                optimizer.zero_grad()
            run.recent.append(torch.stack([*numbers, norm]))
            step += 1
            progress.update()
            run.keep_pace(lambda at=step - 1: learn(batch_of(at)))
            if run.passes(stage == schedule.last, n_behind, numbers):
                schedule.end_stage(stage, step)
                batches = machine.ahead(batch_of, range(step, schedule.total))

            is_end = step == schedule.ends[stage]
            logs, evaluates, saves, stops = run.due(step, n_behind == 0, is_end, stop)
            if not (logs or evaluates or saves or stops):
                continue  # nobody looks at the device's numbers, so nobody waits for them
            run.look(step, stage, opts)
            if logs:
                run.log_training(step, stage, factor)
                progress.set_postfix_str(f"stage {stage}, loss {run.last_loss:.3f}")
            if evaluates:
                run.evaluate(step, stage, valid, schedule.plans[stage], special)
            if saves:
                run.save_last(step, stage, opts, schedule)
            if stops:
                progress.close()
                run.say_how_to_go_on(step)
                raise SystemExit(128 + stops)
    run.finish()
    machine.leave()


if __name__ == "__main__":
    config.run(main, TrainConfig, PRESETS, CHOICES)
