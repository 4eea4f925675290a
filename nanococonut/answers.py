"""A trained run that answers questions: text becomes token ids, then thoughts, then text again."""

import difflib
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nanococonut import coconut, devices, pretrained, tokenizer
from nanococonut.config import UserError
from nanococonut.curriculum import METHODS, Example, Plan, arrange, plan_of
from nanococonut.data import Dataset, Split, checksums, datasets_with, is_right, same_problems
from nanococonut.model import GPT, GPTConfig
from nanococonut.reading import read_rows
from nanococonut.settings import MOST_POSITIONS, TrainConfig

AT_ONCE = 250  # questions answered in one batch
SHIPPED = Path(__file__).parents[1] / "models/prosqa.pt"  # a trained model that comes with the project


class Run:
    """A trained run, loaded from a checkpoint. runs.Writer.save shows what that holds."""

    def __init__(self, name: str, device: str = "auto"):
        """Loads a run by name or path; "" is the newest one, or SHIPPED if there is none. Raises UserError."""
        there = [path.parent for path in sorted(Path("runs").glob("*/config.json"))]
        newest = max(there, key=lambda path: max(f.stat().st_mtime for f in path.glob("*.*")), default=SHIPPED)
        file = named(name or str(newest))
        if not file:
            names = [path.name for path in there]
            near = difflib.get_close_matches(name, names, n=5) or names
            where = name if "/" in name else f"runs/{name}"
            raise UserError(f"{where} not found; there is: {', '.join(near) or 'none yet; run: python train.py'}")
        is_run = file.name in ("best.pt", "ckpt.pt") and file.parent.name != ""
        self.folder = file.parent if is_run else file.with_suffix("" if file.suffix else ".run")
        if is_run and file.name == "ckpt.pt" and not file.with_name("best.pt").exists():
            print(f"{self.folder.name} has no best.pt, which its first evaluation writes: using its ckpt.pt")
        state, model = load_state(file)
        self.about = state.get("about", "")  # where a model that is part of the project comes from
        self.stage, self.data = state["stage"], state["data"]
        self.config = c = asdict(TrainConfig()) | state["config"]  # an option that it lacks had its default value
        self.machine = devices.pick(device, c["dtype"], c["n_embd"])
        self.model, self.precision = model.to(self.machine.device).eval(), self.machine.autocast()
        self.encoding = tokenizer.load(self.data["tokenizer"], self.data["vocabulary"], self.data["pattern"])
        self.special = tokenizer.special_ids(self.encoding)
        shape = len(c["stage_steps"]) - 1, c["c_thought"], c["extra_stage"], c["layout"] == "in_place"
        self.plan = plan_of(c["method"], self.stage, *shape)

    def split(self, name: str) -> Split:
        """A split of the data that the run was trained on. Raises UserError if the data has changed since."""
        kept = Path(f"{self.folder}.json")  # models/NAME.json: a few problems, for where its data is not prepared
        task, sha256 = self.config["task"], self.data["sha256"]
        there = Path("data", task)
        is_same = same_problems(checksums(there), sha256)
        if kept.exists() and not is_same:
            if name != "test":
                raise UserError(f"{kept} has test problems alone; --split={name} needs the data it was trained on")
            if there.exists():
                print(f"{there} is other data than {self.folder} was trained on: asking from {kept}")
            return Split(self.encoding, read_rows(kept), path=kept)
        if sha256 and not is_same:
            task = next(iter(datasets_with(sha256)), task)  # prepared under another name
        dataset = Dataset(task)
        if sha256:  # unknown for checkpoints of other code bases
            dataset.demand_unchanged(str(self.folder), self.data)
        split = dataset.split(name)
        return split if dataset.has_tokens_of(self.data) else Split(self.encoding, split.rows, path=split.path)

    def plan_for(self, n_thoughts: int | None) -> Plan:
        """The run's own plan, or the same plan with another number of thoughts. Raises UserError."""
        if n_thoughts in (None, self.plan.n_thoughts):
            return self.plan
        if n_thoughts < 0 or METHODS[self.config["method"]].filler != "thought":
            about = f"{self.folder.name} was trained with method {self.config['method']}"
            raise UserError(f"--latent={n_thoughts}: expected 0 or more, and a run with thoughts; {about}")
        return self.plan._replace(n_thoughts=n_thoughts)

    def plans_for(self, examples: list[Example], latent: str) -> list[Plan]:
        """The plan of each example. Raises UserError.

        latent  a number of thoughts; "" for that of training; "auto" for as many as an example needs: thoughts until
                the head says that the answer begins, and those that take the place of that word
        """
        if latent != "auto":
            if latent and not latent.isdecimal():
                raise UserError(f"--latent={latent}: expected a number of thoughts, or auto")
            return [self.plan_for(int(latent) if latent else None)] * len(examples)
        by_steps = METHODS[self.config["method"]].removes == "steps"
        if not (self.plan.in_place and self.plan.n_thoughts and by_steps):
            raise UserError(f"--latent=auto: {self.folder.name} was not trained to say when its thoughts end")
        ends = [i for i in range(self.encoding.n_vocab) if b"###" in token_bytes(self.encoding, i)]
        c = self.config["c_thought"]  # thoughts of a step; only the last of them is asked for a word
        longest = max(len(example.question) for example in examples) + 1  # with <bot>
        room = self.model.config.block_size - longest - self.data["max_new_tokens"]
        demand_room(self.model, longest + self.plan.n_thoughts + self.data["max_new_tokens"])
        most = max(self.plan.n_thoughts, min(2 * self.plan.n_thoughts, room - room % c))
        plans = []
        for start in range(0, len(examples), AT_ONCE):
            rows = [before_thoughts(x, self.plan, self.special) for x in examples[start : start + AT_ONCE]]
            words = self.model.logits(self.states(rows, most)).argmax(dim=-1)  # (B, most + 1)
            says_end = torch.isin(words, torch.tensor(ends, device=words.device))[:, ::c]
            for said in says_end.tolist():
                plans.append(self.plan_for(min(most, c * (said.index(True) + 1) if True in said else most)))
        return plans

    def say_what_is_new(self, questions: list[str]) -> None:
        """Prints which words of some questions, or else which forms of known words, are no tokens of the run."""
        if self.data["tokenizer"] != "words":
            return
        known = set(self.data["vocabulary"])
        pieces = {piece for text in questions for piece in tokenizer.pieces(text, self.data["pattern"])}
        new = sorted(piece for piece in pieces - known if len(piece.encode()) > 1)
        names = {name for piece in known for name in tokenizer.names_in(piece)}
        words = sorted({name for piece in new for name in tokenizer.names_in(piece)} - names)
        shown, what = (words, "never seen") if words else (list(map(repr, new)), "in a form never seen")
        if shown:
            more = f" and {len(shown) - 8} others" if len(shown) > 8 else ""
            print(f"{what} in training, and read byte by byte: {', '.join(shown[:8])}{more}")

    def answer_each(self, examples: list[Example], plans: list[Plan], change=None) -> list[list[int]]:
        """answer() where each example has its own plan."""
        written = {}
        for plan in dict.fromkeys(plans):
            chosen = [i for i, its in enumerate(plans) if its == plan]
            written |= zip(chosen, self.answer([examples[i] for i in chosen], plan, change), strict=True)
        return [written[i] for i in range(len(examples))]

    def answer(self, examples: list[Example], plan: Plan, change=None) -> list[list[int]]:
        """The ids that the run writes for each example, without <eos>; change as in coconut.generate."""
        # Chains may be longer than any in training. The number of the model's positions limits them.
        due = [len(example.rests[min(plan.n_removed, len(example.rests) - 1)]) for example in examples]
        asked = max(len(example.question) for example in examples) + plan.n_fillers + 2  # at most two markers
        most = max(self.data["max_new_tokens"], min(max(due) + 1, self.model.config.block_size - asked))
        n_cut = sum(n > most for n in due)
        if n_cut:
            print(f"{n_cut} of {len(due)} answers are cut: their chains are longer than the model has positions for")
        with self.precision:
            return write(self.model, examples, plan, self.special, most, change)

    @torch.no_grad()
    def states(self, rows: list[list[int]], n_thoughts: int) -> Tensor:
        """The hidden states (B, K + 1, C) behind rows of ids and at each thought, in float32."""
        length = torch.tensor(list(map(len, rows)), device=self.machine.device)
        prompt = pad_sequence(list(map(torch.tensor, rows)), batch_first=True, padding_value=self.special["eos"])
        with self.precision:
            states, _ = coconut.reason(self.model, prompt.to(length), length, n_thoughts)
        return states.float()

    def thoughts(self, example: Example, n_thoughts: int) -> Tensor:
        """The thoughts (K, C) of the run on a question, in float32."""
        return self.states([before_thoughts(example, self.plan, self.special)], n_thoughts)[0, :n_thoughts]

    @torch.no_grad()
    def words(self, thoughts: Tensor, n_words: int = 4) -> list[list[tuple[str, float]]]:
        """The most probable pieces of text for each thought (K, C) under the output head, with probabilities."""
        top = self.model.logits(thoughts).softmax(-1).topk(n_words)
        found = []
        for ids, shares in zip(top.indices.tolist(), top.values.tolist(), strict=True):
            texts = [self.encoding.decode([i]) for i in ids]
            found.append([(" ".join(text.split()) or repr(text), p) for text, p in zip(texts, shares, strict=True)])
        return found


def demand_room(model: GPT, need: int) -> None:
    """Raises UserError if a model has fewer positions than needed."""
    has = model.config.block_size
    if need > MOST_POSITIONS:
        raise UserError(f"{need} tokens, but {has} positions, and {MOST_POSITIONS} are the most that a model can have")
    if need > has:
        raise UserError(f"{need} tokens, but {has} positions: ask for less, or train with --block_size={need}")


def token_bytes(encoding, i: int) -> bytes:
    """The bytes of a token; none for a special token."""
    return b"" if i in encoding._special_tokens.values() else encoding.decode_single_token_bytes(i)


def before_thoughts(example: Example, plan: Plan, special: dict[str, int]) -> list[int]:
    """The ids that a model reads before its thoughts or, without thoughts, before it writes."""
    # Without markers, arrange() moves the question's last token to the answer, where training needs it.
    return arrange(example, plan, special)[0] if plan.markers else example.question


def write(model: GPT, examples, plan, special, max_new_tokens, change=None, at_once=AT_ONCE) -> list[list[int]]:
    """The ids that a model writes for each example, without <eos>; change as in coconut.generate. Raises UserError."""
    rows = [before_thoughts(example, plan, special) for example in examples]
    eot = special["eot"] if plan.markers and not plan.in_place else None
    eos, pause = special["eos"], special["pause"] if plan.n_pauses else None
    demand_room(model, max(map(len, rows)) + plan.n_fillers + (eot is not None) + max_new_tokens)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # similar lengths together: little padding
    written, was_training, device = {}, model.training, model.wte.weight.device
    model.eval()
    for start in range(0, len(rows), at_once):
        chosen = order[start : start + at_once]
        length = torch.tensor([len(rows[i]) for i in chosen]).to(device)
        prompt = pad_sequence([torch.tensor(rows[i]) for i in chosen], batch_first=True, padding_value=eos).to(device)
        n = plan.n_fillers
        ids = coconut.generate(model, prompt, length, n, eot, eos, max_new_tokens, change, pause)
        written |= zip(chosen, ids, strict=True)
    model.train(was_training)
    return [written[i] for i in range(len(rows))]


def accuracy(model: GPT, split: Split, plan: Plan, special, max_new_tokens: int, at_once: int = AT_ONCE) -> float:
    """The share of right answers to up to 300 problems of a split: all of ProsQA's valid."""
    rows = split.rows[:300]
    ids = write(model, [split.example(i) for i in range(len(rows))], plan, special, max_new_tokens, at_once=at_once)
    return sum(map(is_right, split.encoding.decode_batch(ids), rows)) / len(rows)


def named(name: str) -> Path | None:
    """The checkpoint that a name means, a run's or a file's name or path; None if there is none. Raises UserError."""
    for path in (Path("runs") / name, Path(name), SHIPPED.parents[1] / name):
        for file in (path / "best.pt", path / "ckpt.pt", path):
            if file.is_file():
                return file
        if (path / "config.json").exists():
            raise UserError(f"{path} has no checkpoint yet: wait for one, or repeat its command with --resume=true")
    return None


def load_state(path: Path, **changes) -> tuple[dict, GPT]:
    """Loads a checkpoint without running code from it: its state, and its model with changes. Raises UserError."""
    try:
        state = pretrained.read(path)
        if "model_config" not in state:
            state = pretrained.as_run(state)
        model = GPT(GPTConfig(**state["model_config"] | changes))
        model.load_state_dict(state["model"])
        # Damage should be found here, and not later where it is first used.
        if "pattern" not in state["data"]:
            assert state["data"]["tokenizer"] != "words", "it does not say how it splits words; train it anew"
            state["data"]["pattern"] = tokenizer.PATTERN
        tokenizer.load(state["data"]["tokenizer"], state["data"]["vocabulary"], state["data"]["pattern"])
        assert not state["config"].get("aligned"), "it needs --aligned, an option of earlier versions"
        plan_of(state["config"]["method"], state["stage"], len(state["config"]["stage_steps"]) - 1)
    except UserError:  # GPT-2's vocabulary is missing
        raise
    except Exception as error:  # torch.load raises many types for a truncated, foreign or malicious file
        kind, reason = type(error).__name__, str(error).partition("\n")[0][:80]
        raise UserError(f"{path} holds neither a run nor GPT-2's weights ({kind}: {reason})") from None
    return state, model
