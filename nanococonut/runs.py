"""A trained run that answers questions: text becomes token ids, then thoughts, then text again.

named() finds a checkpoint, load_state() reads it, Run answers with it.
"""

import difflib
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nanococonut import coconut, pretrained, tokenizer
from nanococonut.cli import UserError
from nanococonut.config import MOST_POSITIONS, TrainConfig
from nanococonut.curriculum import METHODS, Example, Plan, arrange, plan_of
from nanococonut.data import Dataset, Split, checksums, datasets_with, same_problems
from nanococonut.device import pick
from nanococonut.files import read_rows
from nanococonut.model import GPT, GPTConfig
from nanococonut.scoring import is_right

AT_ONCE = 250  # questions answered in one batch
SHIPPED = Path(__file__).parents[1] / "models/prosqa.pt"  # a trained model, part of the project


class Answer(NamedTuple):
    """What a model makes of a question."""

    ids: list[int]  # what it writes, without <eos>
    thoughts: Tensor  # (K, C) float32: the states at <bot> and at all thoughts (or pauses) but one


class Run:
    """A trained run, loaded from a checkpoint. writer.Writer.save shows what that holds."""

    def __init__(self, name: str, device: str = "auto"):
        """Loads a run by name or path. Raises UserError.

        An empty name is the newest run, or SHIPPED if there is none.
        """
        file = named(name or newest())
        if not file:
            raise UserError(not_found(name))
        is_run = file.name in ("best.pt", "ckpt.pt") and file.parent.name != ""
        self.folder = file.parent if is_run else file.with_suffix("" if file.suffix else ".run")
        if is_run and file.name == "ckpt.pt" and not file.with_name("best.pt").exists():
            about = f"{self.folder.name} has no best.pt, which its first evaluation writes"
            print(f"{about}: using its ckpt.pt")
        state, model = load_state(file)
        self.about = state.get("about", "")  # where a model that is part of the project comes from
        self.stage = state["stage"]
        self.data = state["data"]  # what the run knows of its data set
        # An option that the checkpoint lacks had its default value.
        self.config = c = asdict(TrainConfig()) | state["config"]
        self.machine = pick(device, c["dtype"], c["n_embd"])
        self.model = model.to(self.machine.device).eval()
        self.precision = self.machine.autocast()
        words = self.data["vocabulary"], self.data["pattern"]
        self.encoding = tokenizer.load(self.data["tokenizer"], *words)
        self.special = tokenizer.special_ids(self.encoding)
        self.plan = plan_of(
            c["method"],
            self.stage,
            max_stage=len(c["stage_steps"]) - 1,
            c_thought=c["c_thought"],
            extra=c["extra_stage"],
            in_place=c["layout"] == "in_place",
        )

    def split(self, name: str) -> Split:
        """A split of the data that the run was trained on. Raises UserError if it has changed."""
        # models/NAME.json holds a few problems, for where the data of the model is not prepared.
        kept = Path(f"{self.folder}.json")
        task, sha256 = self.config["task"], self.data["sha256"]
        there = Path("data", task)
        is_same = same_problems(checksums(there), sha256)
        if kept.exists() and not is_same:
            if name != "test":
                needs = f"--split={name} needs the data it was trained on"
                raise UserError(f"{kept} has test problems alone; {needs}")
            if there.exists():
                about = f"{there} is other data than {self.folder} was trained on"
                print(f"{about}: asking from {kept}")
            return Split(self.encoding, read_rows(kept), path=kept)
        if sha256 and not is_same:
            task = next(iter(datasets_with(sha256)), task)  # prepared under another name
        dataset = Dataset(task)
        if sha256:  # unknown for checkpoints of other code bases
            dataset.demand_unchanged(str(self.folder), self.data)
        split = dataset.split(name)
        if dataset.has_tokens_of(self.data):
            return split
        return Split(self.encoding, split.rows, path=split.path)

    def plan_for(self, n_thoughts: int | None) -> Plan:
        """The run's own plan, or the same with another number of thoughts. Raises UserError."""
        if n_thoughts in (None, self.plan.n_thoughts):
            return self.plan
        if n_thoughts < 0 or METHODS[self.config["method"]].filler != "thought":
            about = f"{self.folder.name} was trained with method {self.config['method']}"
            expected = "expected 0 or more, and a run with thoughts"
            raise UserError(f"--latent={n_thoughts}: {expected}; {about}")
        return self.plan._replace(n_thoughts=n_thoughts)

    def plans_for(self, examples: list[Example], latent: str) -> list[Plan]:
        """The plan of each example. Raises UserError.

        latent  a number of thoughts; "" for that of training; "auto" for as many as an example
                needs, see plans_until_answer
        """
        if latent == "auto":
            return self.plans_until_answer(examples)
        if latent and not latent.isdecimal():
            raise UserError(f"--latent={latent}: expected a number of thoughts, or auto")
        return [self.plan_for(int(latent) if latent else None)] * len(examples)

    def plans_until_answer(self, examples: list[Example]) -> list[Plan]:
        """The plan of each example, with thoughts until the head says that the answer begins.

        The thoughts in the place of that word count too; at most twice as many as in training.
        Raises UserError.
        """
        by_steps = METHODS[self.config["method"]].removes == "steps"
        if not (self.plan.in_place and self.plan.n_thoughts and by_steps):
            about = f"{self.folder.name} was not trained to say when its thoughts end"
            raise UserError(f"--latent=auto: {about}")
        ends = [i for i in range(self.encoding.n_vocab) if b"###" in token_bytes(self.encoding, i)]
        c_thought = self.config["c_thought"]  # only the last thought of a step is asked for a word
        longest = max(len(example.question) for example in examples) + 1  # with <bot>
        written = self.data["max_new_tokens"]
        demand_room(self.model, longest + self.plan.n_thoughts + written)
        room = self.model.config.block_size - longest - written
        most = min(2 * self.plan.n_thoughts, room - room % c_thought)
        most = max(most, self.plan.n_thoughts)
        plans = []
        for start in range(0, len(examples), AT_ONCE):
            some = examples[start : start + AT_ONCE]
            rows = [before_thoughts(example, self.plan, self.special) for example in some]
            words = self.model.logits(self.states(rows, most)).argmax(dim=-1)  # (B, most + 1)
            is_end = torch.isin(words, torch.tensor(ends, device=words.device))[:, ::c_thought]
            for said in is_end.tolist():
                n_steps = said.index(True) + 1 if True in said else most
                plans.append(self.plan_for(min(most, c_thought * n_steps)))
        return plans

    def say_what_is_new(self, questions: list[str]) -> None:
        """Prints which words of some questions are no tokens of the run.

        Or, if all words are, which forms of them.
        """
        if self.data["tokenizer"] != "words":
            return
        known = set(self.data["vocabulary"])
        pieces = set()
        for text in questions:
            pieces.update(tokenizer.pieces(text, self.data["pattern"]))
        new = sorted(piece for piece in pieces - known if len(piece.encode()) > 1)
        known_names, new_names = set(), set()
        for piece in known:
            known_names.update(tokenizer.names_in(piece))
        for piece in new:
            new_names.update(tokenizer.names_in(piece))
        shown, what = sorted(new_names - known_names), "never seen"
        if not shown:
            shown, what = list(map(repr, new)), "in a form never seen"
        if shown:
            more = f" and {len(shown) - 8} others" if len(shown) > 8 else ""
            listed = ", ".join(shown[:8])
            print(f"{what} in training, and read byte by byte: {listed}{more}")

    def answer_each(self, examples: list[Example], plans: list[Plan], change=None) -> list[Answer]:
        """answer() where each example has its own plan."""
        found = {}
        for plan in dict.fromkeys(plans):
            chosen = [i for i, its in enumerate(plans) if its == plan]
            answers = self.answer([examples[i] for i in chosen], plan, change)
            found.update(zip(chosen, answers, strict=True))
        return [found[i] for i in range(len(examples))]

    def answer(self, examples: list[Example], plan: Plan, change=None) -> list[Answer]:
        """What the run makes of each example; change as in coconut.generate."""
        # Chains may be longer than any in training. The model's positions limit them.
        lengths = []
        for example in examples:
            n_removed = min(plan.n_removed, len(example.rests) - 1)
            lengths.append(len(example.rests[n_removed]))
        longest = max(len(example.question) for example in examples)
        room = self.model.config.block_size - longest - plan.n_fillers - 2  # at most two markers
        most = max(self.data["max_new_tokens"], min(max(lengths) + 1, room))
        n_cut = sum(length > most for length in lengths)
        if n_cut:
            why = "their chains are longer than the model has positions for"
            print(f"{n_cut} of {len(lengths)} answers are cut: {why}")
        with self.precision:
            return answer_all(self.model, examples, plan, self.special, most, change)

    @torch.no_grad()
    def states(self, rows: list[list[int]], n_thoughts: int) -> Tensor:
        """The hidden states (B, K + 1, C) behind rows of ids and at each thought, in float32."""
        prompt, length = padded(rows, self.special["eos"], self.machine.device)
        with self.precision:
            states, _ = coconut.reason(self.model, prompt, length, n_thoughts)
        return states.float()

    def thoughts(self, example: Example, n_thoughts: int) -> Tensor:
        """The thoughts (K, C) of the run on a question, in float32."""
        row = before_thoughts(example, self.plan, self.special)
        return self.states([row], n_thoughts)[0, :n_thoughts]


def newest() -> str:
    """The path of the newest run, or of SHIPPED if there is none."""

    def changed(folder: Path) -> float:
        return max(file.stat().st_mtime for file in folder.glob("*.*"))

    folders = [path.parent for path in Path("runs").glob("*/config.json")]
    return str(max(sorted(folders), key=changed, default=SHIPPED))


def not_found(name: str) -> str:
    """Why there is no run of a name, and which there are."""
    names = [path.parent.name for path in sorted(Path("runs").glob("*/config.json"))]
    near = difflib.get_close_matches(name, names, n=5) or names
    where = name if "/" in name else f"runs/{name}"
    there = ", ".join(near) or "none yet; run: python train.py"
    return f"{where} not found; there is: {there}"


def demand_room(model: GPT, need: int) -> None:
    """Raises UserError if a model has fewer positions than needed."""
    has = model.config.block_size
    about = f"{need} tokens, but {has} positions"
    if need > MOST_POSITIONS:
        raise UserError(f"{about}, and {MOST_POSITIONS} are the most that a model can have")
    if need > has:
        raise UserError(f"{about}: ask for less, or train with --block_size={need}")


def token_bytes(encoding, i: int) -> bytes:
    """The bytes of a token; none for a special token."""
    if i in encoding._special_tokens.values():
        return b""
    return encoding.decode_single_token_bytes(i)


def padded(rows: list[list[int]], pad_id: int, device) -> tuple[Tensor, Tensor]:
    """Rows of ids as a prompt (B, P), padded on the right, and their lengths (B,)."""
    length = torch.tensor([len(row) for row in rows])
    prompt = pad_sequence(
        [torch.tensor(row) for row in rows], batch_first=True, padding_value=pad_id
    )
    return prompt.to(device), length.to(device)


def before_thoughts(example: Example, plan: Plan, special: dict[str, int]) -> list[int]:
    """The ids that a model reads before its thoughts or, without thoughts, before it writes."""
    # Without markers, arrange() moves the question's last token to the answer: training needs it.
    return arrange(example, plan, special)[0] if plan.markers else example.question


def answer_all(
    model: GPT, examples, plan, special, max_new_tokens: int, change=None, at_once=AT_ONCE
) -> list[Answer]:
    """What a model makes of each example; change as in coconut.generate. Raises UserError."""
    rows = [before_thoughts(example, plan, special) for example in examples]
    eot = special["eot"] if plan.markers and not plan.in_place else None
    pause = special["pause"] if plan.n_pauses else None
    n_markers = 1 if eot is not None else 0
    demand_room(model, max(map(len, rows)) + plan.n_fillers + n_markers + max_new_tokens)
    # Rows of similar lengths together need little padding.
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    was_training = model.training
    model.eval()
    found = {}
    for start in range(0, len(rows), at_once):
        chosen = order[start : start + at_once]
        chosen_rows = [rows[i] for i in chosen]
        prompt, length = padded(chosen_rows, special["eos"], model.wte.weight.device)
        how = dict(eot=eot, eos=special["eos"], max_new_tokens=max_new_tokens)
        how |= dict(change=change, pause=pause)
        texts, thoughts = coconut.generate(model, prompt, length, plan.n_fillers, **how)
        found.update(zip(chosen, map(Answer, texts, thoughts.float()), strict=True))
    model.train(was_training)
    return [found[i] for i in range(len(rows))]


def accuracy(
    model: GPT, split: Split, plan: Plan, special, max_new_tokens: int, at_once: int = AT_ONCE
) -> float:
    """The share of right answers to up to 300 problems of a split: all of ProsQA's valid."""
    rows = split.rows[:300]
    examples = [split.example(i) for i in range(len(rows))]
    answers = answer_all(model, examples, plan, special, max_new_tokens, at_once=at_once)
    texts = split.encoding.decode_batch([answer.ids for answer in answers])
    return sum(map(is_right, texts, rows)) / len(rows)


def named(name: str) -> Path | None:
    """The checkpoint that a name means, a run's or a file's name or path. Raises UserError.

    None if there is none.
    """
    for path in (Path("runs") / name, Path(name), SHIPPED.parents[1] / name):
        for file in (path / "best.pt", path / "ckpt.pt", path):
            if file.is_file():
                return file
        if (path / "config.json").exists():
            wait = "wait for one, or repeat its command with --resume=true"
            raise UserError(f"{path} has no checkpoint yet: {wait}")
    return None


def load_state(path: Path, **changes) -> tuple[dict, GPT]:
    """Loads a checkpoint without running code from it. Raises UserError.

    Returns its state, and its model with changes of the model's config.
    """
    try:
        state = pretrained.read(path)
        if "model_config" not in state:
            state = pretrained.as_run(state)
        model = GPT(GPTConfig(**state["model_config"] | changes))
        model.load_state_dict(state["model"])
        check_state(state)
    except UserError:  # GPT-2's vocabulary is missing
        raise
    except Exception as error:  # torch.load raises many types for a truncated or foreign file
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:80]}"
        raise UserError(f"{path} holds neither a run nor GPT-2's weights ({reason})") from None
    return state, model


def check_state(state: dict) -> None:
    """Finds damage here, and not later where it is first used. Raises what damage does."""
    data, c = state["data"], state["config"]
    if "pattern" not in data:
        assert data["tokenizer"] != "words", "it does not say how it splits words; train it anew"
        data["pattern"] = tokenizer.PATTERN
    tokenizer.load(data["tokenizer"], data["vocabulary"], data["pattern"])
    assert not c.get("aligned"), "it needs --aligned, an option of earlier versions"
    is_earlier = "reask" in c  # an option that went when rows without thoughts got their <bot>
    lacks_bot = c.get("layout") == "in_place" and not METHODS[c["method"]].filler
    assert not (is_earlier and lacks_bot), "it was trained without <bot>; train it anew"
    plan_of(c["method"], state["stage"], len(c["stage_steps"]) - 1)
