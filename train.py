"""Trains a GPT-2 through the latent curriculum. Read this fourth: it is one plain loop.

    locate the stage, begin it if it is new, draw a batch, think forward, go backward, step,
    and when due: look at the numbers, evaluate, save

A batch depends on the seed, the step and the schedule, which a checkpoint holds. So a run that was
cut off resumes exactly (--resume=true), and `torchrun --nproc_per_node=N train.py` cuts the same
batches into N parts.
"""

import contextlib
import functools

from nanococonut import batching, cli, coconut, compiling, data, device, optim
from nanococonut.cli import UserError
from nanococonut.config import CHOICES, PRESETS, TrainConfig
from nanococonut.writer import Writer, demand_graphs, starting_model, stop_signals

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


def for_this_machine(c: TrainConfig, machine, model) -> dict:
    """accumulate()'s forward and replay: what a GPU needs, around the lines above."""
    forward, how = coconut.forward, "eager"
    if machine.compiles(c.compile):
        forward, how = functools.partial(compiling.forward, phases=compiling.compiled()), "compiled"
    n_parameters = sum(p.numel() for p in model.parameters())
    print(f"{n_parameters:,} parameters on {machine.device}, {machine.dtype}, {how}")
    if not machine.replays:
        return dict(forward=forward)
    replay = compiling.Replay(lambda *part: losses(model, *part, forward, machine), model)
    return dict(forward=forward, replay=replay)


def loop(c: TrainConfig, model, schedule, batch_of, learn, writer, machine, stop: list) -> None:
    """Takes the steps of the schedule.

    batch_of(step) draws a batch, and learn(batch) fills the gradients. stop receives signals.
    """
    step, optimizers = writer.resume(schedule)
    writer.settle_threads(lambda: learn(batch_of(schedule.total - 1)))
    batches = machine.ahead(batch_of, range(step, schedule.total))
    bar = dict(total=schedule.total, initial=step, unit="step", disable=not machine.is_first)
    with tqdm(**bar) as progress:
        while step < schedule.total:
            stage, n_behind = schedule.locate(step)
            # Differs from the released code, which starts the optimizer anew at every epoch.
            # In place the losses of earlier stages stay, so the optimizer goes on (in all rows).
            if step == 0 or (n_behind == 0 and c.layout == "paper"):
                optimizers = optim.make(model, c)
            numbers = learn(next(batches))  # forward and backward
            factor = optim.factor(*schedule.span(step), c)
            optim.set_rates(optimizers, c, factor)
            norm = clip_grad_norm_(model.parameters(), optim.max_norm(c))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            writer.note(n_behind, torch.stack([*numbers, norm]))
            step += 1
            progress.update()
            writer.keep_pace(lambda at=step - 1: learn(batch_of(at)))
            if writer.passes(stage == schedule.last, n_behind, numbers):
                schedule.end_stage(stage, step)
                batches = machine.ahead(batch_of, range(step, schedule.total))

            due = writer.due(step, n_behind == 0, step == schedule.ends[stage], stop)
            if not any(due):
                continue  # nobody looks at the device's numbers, so nobody waits for them
            writer.look(step, stage, optimizers)
            if due.logs:
                writer.log_training(step, stage, factor)
                progress.set_postfix_str(f"stage {stage}, loss {writer.last_loss:.3f}")
            if due.evaluates:
                writer.evaluate(step, stage, schedule.plans[stage])
            if due.saves:
                writer.save_last(step, stage, optimizers, schedule)
            if due.stops:
                progress.close()
                writer.say_how_to_go_on(step)
                raise SystemExit(128 + due.stops)


def main(c: TrainConfig) -> None:
    """Trains. Several processes take the same steps, each on its share; the first one writes."""
    machine = device.join(c.device, c.dtype, c.n_embd)
    fewest = machine.n_processes * c.n_questions
    if c.batch_size < fewest:
        raise UserError(f"--batch_size should be at least {fewest} here")
    dataset = data.Dataset(c.task)
    problems = dataset.split("train")
    demand_graphs(c, problems)
    schedule = batching.Schedule(c, dataset.meta["longest"])
    cli.print_resolved(c, PRESETS[c.preset])
    schedule.show()
    model = starting_model(c, dataset, schedule.n_positions).to(machine.device).train()
    how = for_this_machine(c, machine, model)
    learn = functools.partial(accumulate, model, c=c, machine=machine, **how)
    batch_of = functools.partial(batching.draw_batch, c, problems, schedule, dataset.special)
    writer = Writer(c, dataset, machine, model, schedule.max_new_tokens)
    with contextlib.closing(writer), stop_signals() as stop:
        loop(c, model, schedule, batch_of, learn, writer, machine, stop)
    writer.finish()
    machine.leave()


if __name__ == "__main__":
    cli.run(main, TrainConfig, PRESETS, CHOICES)
