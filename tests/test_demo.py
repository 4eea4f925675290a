"""The page in docs/demo: its scripts think and answer as Python does, and a browser shows it."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import prepare
from nanococonut import curriculum, evaluate, files, prosqa, readout, runs, tokenizer
from nanococonut.cli import UserError
from nanococonut.lab import export

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "docs/demo"
MODEL = ROOT / "models/prosqa.pt"
NODE = shutil.which("node")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
needs_node = pytest.mark.skipif(not NODE, reason="node is not installed")
needs_browser = pytest.mark.skipif(not BROWSER, reason="chromium is not installed")
ODD = [
    "Tom is a lempus. Every lempus is a rempus. Is Tom a rempus or impus?\nTom is a ",
    "Tom is a foopus. Every foopus is a lempus. Is Tom a foopus or impus?",
    "Every zumpüs is a c37. Ärger is a 37. Each élan is an Ωmega.",
    "lempus.\nEvery lempus is a rempus.\n### Tom is a rempus.",
    "lempus.\nEvery rempus is a lempus.\nEach lempus is an impus",
    "island Isle notable every-lempus an-impus is-a a- -a or? ??\n\n.. # ## ###",
    "true or false: True or false: Max is not red.\nMax is blue. Lempuses are not impuses.",
    "日本語 is a 漢字. 😀😀 is a 👩‍👩‍👧. e\u0301 \u200d\u200c a\u0301 is\u0301 _ __a a_b",
    "𝒳 is a 𐍈. ٣ is a ३. aⅧ ªº ﬀ ﷺ \ufeffTom\u2028is\u00a0a\tlempus\r\n\x00\x1f",
    "half of a pair: \ud83d Tom is a \udc00lempus.",
    "",
    " ",
    "\n",
]


def in_node(request, **given):
    """What the scripts of the page make of a request, see demo_in_node.js."""
    words = json.dumps(dict(request=request, **given))
    command = [NODE, str(Path(__file__).with_name("demo_in_node.js"))]
    done = subprocess.run(command, input=words, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def run():
    """The shipped model."""
    return runs.Run(str(MODEL), device="cpu")


@pytest.fixture(scope="module")
def rounded():
    """The shipped model with the weights that the page has: float16 of each."""
    run = runs.Run(str(MODEL), device="cpu")
    run.model.half().float()
    return run


@pytest.fixture(scope="module")
def rows():
    """Fifty problems: the twenty that are kept beside the model, and thirty new ones."""
    new = prepare.generate(prepare.PrepareConfig(train=30, valid=1, test=1, seed=777))["train"]
    return files.read_rows(MODEL.with_suffix(".json")) + new


def test_the_script_is_what_the_export_writes(tmp_path, capsys):
    export.main(export.ExportConfig(str(MODEL), str(tmp_path / "model.js")))
    assert "model.js: prosqa, 490752 weights, 1." in capsys.readouterr().out
    again = "differs: run python -m nanococonut.lab.export again"
    assert (tmp_path / "model.js").read_bytes() == (DEMO / "model.js").read_bytes(), again
    assert [path.name for path in tmp_path.iterdir()] == ["model.js"]


def test_the_page_is_small_and_needs_nothing_else():
    assert sum(path.stat().st_size for path in DEMO.iterdir()) < 2_000_000
    page = (DEMO / "index.html").read_text(encoding="utf-8")
    loaded = re.findall(r'<(?:script|link)[^>]+(?:src|href)="(?!data:)([^"]+)"', page)
    assert len(loaded) == 6 and all((DEMO / name).is_file() for name in loaded)
    assert len((DEMO / "coconut.js").read_text(encoding="utf-8").splitlines()) <= 300
    for path in DEMO.iterdir():
        for line in path.read_text(encoding="utf-8").splitlines():
            assert len(line) <= 100, f"{path.name}: {line}"


def test_the_pictures_are_small_and_shown():
    text = (DEMO / "README.md").read_text(encoding="utf-8")
    for name in ("demo-light.png", "demo-dark.png"):
        assert f"figures/{name}" in text
        assert (ROOT / "figures" / name).stat().st_size < 150_000


@pytest.mark.parametrize("changes", [dict(layout="paper"), dict(method="pause"), dict(c_thought=2)])
def test_runs_that_the_page_cannot_show_are_refused(changes, tmp_path):
    state = torch.load(MODEL, weights_only=True)
    state["config"] |= changes
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(UserError, match="other: the page shows runs of method coconut"):
        export.main(export.ExportConfig(str(tmp_path / "other.pt"), str(tmp_path / "model.js")))
    assert not (tmp_path / "model.js").exists()


@needs_node
def test_every_thought_and_every_answer_is_pythons(run, rounded, rows):
    examples = [curriculum.tokenize(row, run.encoding.encode_ordinary) for row in rows]
    found = in_node("answer", questions=[row["question"] for row in rows], nThoughts=7)
    assert len(found) == len(rows) == 50
    for example, its in zip(examples, found, strict=True):
        assert its["prompt"] == runs.before_thoughts(example, run.plan, run.special)
        thoughts = rounded.thoughts(example, 7)
        torch.testing.assert_close(torch.tensor(its["thoughts"]), thoughts, atol=1e-3, rtol=0)
    ids = [its["ids"] for its in found]
    written = [answer.ids for answer in run.answer(examples, run.plan)]
    assert ids == written, "float16 weights answer as float32 ones do"
    assert [its["text"] for its in found] == run.encoding.decode_batch(ids)


@needs_node
@pytest.mark.parametrize(("n_thoughts", "is_zero"), [(0, False), (2, False), (9, False), (7, True)])
def test_other_numbers_of_thoughts_and_zeros(rounded, rows, n_thoughts, is_zero):
    examples = [curriculum.tokenize(row, rounded.encoding.encode_ordinary) for row in rows[:6]]
    questions = [row["question"] for row in rows[:6]]
    found = in_node("answer", questions=questions, nThoughts=n_thoughts, isZero=is_zero)
    change = evaluate.INTERVENTIONS["zero"] if is_zero else None
    expected = rounded.answer(examples, rounded.plan_for(n_thoughts), change)
    assert [its["ids"] for its in found] == [answer.ids for answer in expected]


@needs_node
def test_odd_texts_become_the_same_tokens(run):
    texts = [*ODD, *(text[i:] for text in ODD for i in range(1, len(text)))]
    for text, its in zip(texts, in_node("tokens", texts=texts), strict=True):
        ids = run.encoding.encode_ordinary(text)
        whole, cut = run.encoding.decode(ids), run.encoding.decode(ids[1:])
        assert its == dict(ids=ids, text=whole, cut=cut), ascii(text)


@needs_node
def test_names_have_the_same_tokens(run, rows):
    used = {name for row in rows for name in row["idx_to_symbol"]}
    names = [*sorted(used), "foopus", "Ärger"]
    expected = [tokenizer.node_tokens(run.encoding, name) for name in names]
    assert in_node("nodeTokens", names=names) == expected


@needs_node
def test_new_problems_have_an_answer_and_a_clear_picture():
    """No arrow runs over a name, and no name over another, on a phone or on a desk."""
    for found in in_node("problems", n=60, seed=1):
        solved, why = prosqa.solve(found["question"])
        assert solved, why
        assert found["answer"] == solved["answer"]
        assert 3 <= found["hops"] == len(solved["steps"]) <= 6
        assert found["crossed"] == []


@needs_node
def test_the_page_says_why_words_are_no_problem():
    facts, asked = "Tom is a lempus. Max is a impus.", "Is Tom a impus or lempus?"
    said = {
        (facts, asked): "",
        ("", asked): "There is no fact yet",
        ("Lempus are impus.", asked): "“Lempus are impus.” is no fact",
        ("Tom is a Max.", asked): "only a person's name has a capital letter",
        ("Every Tom is a lempus.", asked): "facts of persons begin with the name",
        ("lempus is a impus.", asked): "all others with “Every”",
        (facts, "Is Tom a lempus?"): "is no question",
        (facts, "Is Tom a impus or foopus?"): "The question names foopus, but no fact does",
        (facts, "Is impus a lempus or impus?"): "impus is no person",
        (facts, "Is Tom a impus or Max?"): "Max is a person",
        (facts, "Is Tom a impus or impus?"): "The two options are the same",
        (facts, "Is Max a lempus or lempus?"): "The two options are the same",
        (f"{facts} Tom is a impus.", asked): "Tom reaches both options",
        ("Tom is a rempus. Max is a impus. Sam is a lempus.", asked): "none of the two options",
    }
    for why, expected in zip(in_node("whyNot", pairs=list(said)), said.values(), strict=True):
        assert expected in why and bool(expected) == bool(why), why


def dom_after(script, folder, width=1200):
    """The page's document after a script of the test has typed and pressed, as a browser has it."""
    shutil.copytree(DEMO, folder / "demo")
    page = folder / "demo/index.html"
    text = page.read_text(encoding="utf-8")
    watch = 'addEventListener("error", (e) => document.body.dataset.error = e.message);'
    text = text.replace("<script src=", f"<script>{watch}</script><script src=", 1)
    text = text.replace("</body>", f"<script>{script}</script></body>")
    page.write_text(text, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile"]
    flags += [f"--window-size={width},900", "--virtual-time-budget=30000", "--dump-dom"]
    command = [BROWSER, *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=180)
    assert "data-error" not in done.stdout, re.findall('data-error="[^"]*"', done.stdout)
    return done.stdout


def text_of(dom, name):
    """The words of an element that holds no other one of its kind."""
    (kind, inside) = re.search(rf'<(\w+)[^>]* id="{name}"[^>]*>(.*)', dom, re.DOTALL).groups()
    inside = inside.partition(f"</{kind}>")[0]
    return html.unescape(re.sub(r"<[^>]+>", "", inside)).strip()


TYPE = """
function type(name, text) {
  const field = document.getElementById(name);
  field.focus();
  field.select();
  document.execCommand("insertText", false, text);
}
function press(name) { document.getElementById(name).click(); }
"""


@needs_browser
def test_a_question_is_typed_and_answered_in_a_browser(run, tmp_path):
    facts = "Max is a impus. Every rempus is a jompus. Tom is a lempus. Every lempus is a rempus."
    facts += " Every lempus is a dumpus."
    script = f'{TYPE} type("facts", "{facts}"); type("question", "Is Tom a impus or jompus?");'
    dom = dom_after(f'{script} press("think");', tmp_path)
    assert text_of(dom, "answer") == "Tom is a jompus. ✓ right"
    chain = "The right chain: Tom is a lempus. Every lempus is a rempus. Every rempus is a jompus."
    assert text_of(dom, "why").startswith(chain)
    (percent,) = re.findall(r"1Tom is a (\d+)\u00a0%", text_of(dom, "steps"))
    row = {"question": f"{facts} Is Tom a impus or jompus?", "steps": [], "answer": "?"}
    (answer,) = run.answer([curriculum.tokenize(row, run.encoding.encode_ordinary)], run.plan)
    (((_, share), *_),) = readout.words(run, answer.thoughts[:1], n_words=1)
    assert int(percent) == round(100 * share) >= 95
    assert text_of(dom, "others") == "Not reached from Tom: impus Max"


@needs_browser
def test_a_new_problem_is_drawn_and_its_thoughts_are_looked_at(tmp_path):
    look = "document.querySelector('#steps input[value=\"2\"]').click();"
    script = f'{TYPE} press("random"); press("think"); setTimeout(() => {{ {look} }}, 20000);'
    dom = dom_after(script, tmp_path)
    assert re.search(r"(✓ right|✗ wrong)$", text_of(dom, "steps"))
    assert text_of(dom, "caption").startswith("Thought 2 ")
    assert re.search(r'<p[^>]* id="answer"[^>]* hidden', dom), "it is shown with the last step"


@needs_browser
def test_on_a_phone_nothing_is_wider_than_the_screen(run, rows, tmp_path):
    measure = 'document.title = document.documentElement.scrollWidth + " of " + innerWidth;'
    examples = [curriculum.tokenize(row, run.encoding.encode_ordinary) for row in rows[:10]]
    answers = run.answer(examples, run.plan, torch.zeros_like)
    texts = [run.encoding.decode(answer.ids) for answer in answers]
    # Zeros are right by chance now and then, so a problem is taken that they answer wrongly.
    wrong = [text != row["answer"] for text, row in zip(texts, rows[:10], strict=True)]
    number = wrong.index(True)
    choose = 'const list = document.getElementById("example"); '
    choose += f'list.selectedIndex = {number}; list.dispatchEvent(new Event("change"));'
    script = f'{TYPE} {choose} press("zero"); press("think");'
    script += f"setTimeout(() => {{ {measure} }}, 20000);"
    dom = dom_after(script, tmp_path, width=375)
    title = re.search("<title>(.*)</title>", dom)[1]
    wide, screen = map(int, title.split(" of "))
    assert wide <= screen
    assert "zeros: no word is likelier than another" in text_of(dom, "steps")
    assert text_of(dom, "answer") == f"{texts[number]} ✗ wrong"


@needs_browser
def test_unknown_names_and_other_words_are_told(tmp_path):
    script = f'{TYPE} type("facts", "Tom is a foopus. Every lempus are cats.");'
    dom = dom_after(script, tmp_path)
    assert text_of(dom, "error").startswith("“Every lempus are cats.” is no fact.")
    assert re.search(r'<button[^>]* id="think"[^>]* disabled', dom)
    script = f'{TYPE} type("facts", "Tom is a foopus. Max is a impus.");'
    script += 'type("question", "Is Tom a foopus or impus?");'
    dom = dom_after(script, tmp_path / "again")
    assert text_of(dom, "unknown").endswith("letter by letter and may well fail: foopus.")
