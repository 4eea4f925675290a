// The page: what is typed, the picture, and what the model thinks and answers.
"use strict";

const PAUSE = 1500; // milliseconds from one thought to the next, when they are shown
const SVG = "http://www.w3.org/2000/svg";
const model = loadModel(MODEL);
const tokenizer = makeTokenizer(MODEL);
const known = [...MODEL.persons, ...MODEL.concepts];
const tokens = new Map(known.map((name) => [name, tokensOf(tokenizer, name)]));
const page = Object.fromEntries([...document.querySelectorAll("[id]")].map((e) => [e.id, e]));
let asked = null; // { graph, solved, question } of the words that are typed, if they tell a graph
let found = null; // what the model made of it: { isZero, views, text }, a view for each thought
let timer = 0; // of what comes next: thinking, or another thought to show

// ---- What is typed ----

function onlyBlanks(text) {
  return text.trim().split(/\s+/).join(" ");
}

function readPage() {
  stopShowing();
  found = null;
  const facts = onlyBlanks(page.facts.value);
  const question = onlyBlanks(page.question.value);
  const { graph, why } = readGraph(MODEL, facts, question);
  asked = graph ? { graph, solved: solve(graph), question: `${facts} ${question}` } : null;
  say(page.error, why || asked.solved.why || whyTooLong());
  say(page.unknown, asked && whatIsNew(asked.graph.names));
  page.think.disabled = !asked || Boolean(whyTooLong());
  page.think.textContent = "Think";
  page.count.value = inWords(Number(page.thoughts.value));
  drawGraph();
  drawSteps();
  show(0);
}

function inWords(n) {
  return n === 1 ? "1 thought" : `${n || "no"} thoughts`;
}

function say(element, text) {
  element.textContent = text || "";
  element.hidden = !text;
}

function whyTooLong() {
  const prompt = promptOf(model, tokenizer, asked.question);
  if (hasRoom(model, prompt, Number(page.thoughts.value))) return "";
  const n = `${prompt.length} tokens, but the model has ${model.block_size} positions`;
  return `Too long: ${n}, also for thoughts and answer. Leave some facts out.`;
}

function whatIsNew(names) {
  const unknown = names.filter((name) => !tokens.has(name));
  if (!unknown.length) return "";
  const words = unknown.join(", ");
  return `New to the model, which reads it letter by letter and may well fail: ${words}.`;
}

// ---- Thinking ----

function thinkAndWrite() {
  const nThoughts = Number(page.thoughts.value);
  const zeros = page.zero.checked ? (thought) => thought.map(() => 0) : null;
  const prompt = promptOf(model, tokenizer, asked.question);
  const { states, ids } = generate(model, prompt, nThoughts, zeros);
  const thoughts = states.slice(0, nThoughts).map((thought) => (zeros ? zeros(thought) : thought));
  found = { isZero: Boolean(zeros), views: thoughts.map(viewOf), text: decode(tokenizer, ids) };
}

// What the head makes of a thought: its most probable tokens, and the share of each name.
function viewOf(thought) {
  const probability = shares(model, thought);
  const words = highest(probability, 4).map((id) => [decode(tokenizer, [id]), probability[id]]);
  const names = asked.graph.names.map((name) =>
    (tokens.get(name) || []).reduce((sum, id) => sum + probability[id], 0));
  return { words, names };
}

function run(isSlow) {
  if (page.think.disabled) return;
  stopShowing();
  page.think.disabled = true;
  page.think.textContent = "Thinking …";
  timer = setTimeout(() => { // first the page shows that it thinks
    thinkAndWrite();
    page.think.disabled = false;
    page.think.textContent = "Think";
    drawSteps();
    const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (isSlow && !isStill) return showFrom(1);
    reveal(Infinity);
    show(found.views.length + 1);
  }, 30);
  const isBelow = page.graph.getBoundingClientRect().bottom > innerHeight;
  if (isSlow && isBelow) page.stage.scrollIntoView({ block: "start" });
}

// Shows one thought after the other, and then the answer.
function showFrom(number) {
  reveal(number);
  show(number);
  if (number <= found.views.length) timer = setTimeout(() => showFrom(number + 1), PAUSE);
}

function stopShowing() {
  clearTimeout(timer);
}

// Lists the thoughts up to a number, and the answer if it comes no later.
function reveal(number) {
  page.steps.querySelectorAll("label").forEach((step, i) => {
    step.hidden = i >= number;
  });
}

// ---- The picture ----

function element(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

let drawn = null; // { boxes, full, share, rounds, chips }: what changes with each thought

function drawGraph() {
  page.graph.replaceChildren();
  page.graph.setAttribute("height", 0);
  page.others.replaceChildren();
  drawn = null;
  if (!asked) return;
  const { graph, solved } = asked;
  const width = Math.max(280, page.graph.clientWidth);
  const { boxes, arrows, rows, height } = layOut(graph, width);
  page.graph.setAttribute("viewBox", `0 0 ${width} ${height}`);
  page.graph.setAttribute("height", height);
  page.graph.setAttribute("aria-label", `What the facts say of ${graph.names[graph.root]}`);
  const chain = solved.chain || [];
  const isOnChain = (a, b) => chain.some((v, i) => v === a && chain[i + 1] === b);
  page.graph.append(arrowHeads());
  const order = (arrow) => (isOnChain(arrow.a, arrow.b) ? 2 : Number(arrow.kind === "on"));
  for (const arrow of [...arrows].sort((one, other) => order(one) - order(other))) {
    const kind = isOnChain(arrow.a, arrow.b) ? "onchain" : arrow.kind;
    const edge = { class: "edge", d: svgPath(arrow.path), "marker-end": `url(#head-${kind})` };
    page.graph.append(element("g", { class: `arrow ${kind}` }, element("path", edge)));
  }
  drawn = { boxes, parts: new Map(), rounds: drawRounds(rows, boxes), chips: new Map() };
  for (const [node, box] of boxes) {
    const kind = (chain.includes(node) ? "onchain " : "") + (isOption(node) ? "option" : "");
    drawn.parts.set(node, drawName(graph.names[node], box, kind));
  }
  drawOthers();
}

function isOption(node) {
  return asked.graph.options.includes(node);
}

function arrowHeads() {
  const heads = ["on", "aside", "onchain"].map((kind) => {
    const size = kind === "onchain" ? 9 : 8;
    const box = { viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: size, markerHeight: size };
    const rest = { id: `head-${kind}`, class: kind, orient: "auto", markerUnits: "userSpaceOnUse" };
    const shape = element("path", { class: "head", d: "M0 0L8 4L0 8Z" });
    return element("marker", { ...box, ...rest }, shape);
  });
  return element("defs", {}, ...heads);
}

// The numbers at the left: the row that is k - 1 hops away is that of thought k.
function drawRounds(rows, boxes) {
  const rounds = [];
  rows.forEach(({ nodes, hops }, row) => {
    if (row && rows[row - 1].hops === hops) return;
    const y = boxes.get(nodes[0]).y + ROW / 2;
    const circle = element("circle", { cx: 11, cy: y, r: 10 });
    const text = element("text", { x: 11, y: y + 4 }, String(hops + 1));
    rounds[hops] = element("g", { class: "round" }, circle, text);
    page.graph.append(rounds[hops]);
  });
  return rounds;
}

function drawName(name, { x, y, w }, kind) {
  const place = { x: x - w / 2, y, width: w, height: ROW, rx: 6 };
  const full = element("rect", { ...place, class: "full", width: 0 });
  const text = element("text", { x, y: y + 23 }, name);
  const share = element("text", { x, y: y + 31, class: "share" });
  const frame = element("rect", { ...place, class: "frame" });
  const parts = [element("rect", { ...place, class: "back" }), full, frame];
  if (kind.includes("option")) {
    const ring = { x: x - w / 2 - 3, y: y - 3, width: w + 6, height: ROW + 6, rx: 9 };
    parts.push(element("rect", { ...ring, class: "ring" }));
  }
  page.graph.append(element("g", { class: kind }, ...parts, text, share));
  return { full, text, share, w, y };
}

// Names that the person does not reach.
function drawOthers() {
  const { names, root } = asked.graph;
  const nodes = names.map((_, node) => node).filter((node) => !drawn.boxes.has(node));
  if (!nodes.length) return;
  page.others.append(`Not reached from ${names[root]}: `);
  for (const node of nodes.sort((a, b) => isOption(b) - isOption(a))) {
    const chip = document.createElement("span");
    chip.className = isOption(node) ? "chip option" : "chip";
    chip.textContent = names[node];
    drawn.chips.set(node, chip);
    page.others.append(chip, " ");
  }
}

function percent(share) {
  return share < 0.005 ? "" : `${Math.round(100 * share)}\u00a0%`;
}

// Fills the names as far as a thought makes them probable; without a view all are empty.
function fillNames(view) {
  for (const [node, { full, text, share, w, y }] of drawn.parts) {
    const value = view ? view.names[node] : 0;
    full.setAttribute("width", value * w);
    full.style.width = `${value * w}px`;
    share.textContent = percent(value);
    text.setAttribute("y", y + (percent(value) ? 17 : 23));
  }
  for (const [node, chip] of drawn.chips) {
    const value = view ? view.names[node] : 0;
    chip.style.setProperty("--share", `${100 * value}%`);
    chip.textContent = `${asked.graph.names[node]} ${percent(value)}`.trim();
  }
}

// ---- Thought by thought ----

function drawSteps() {
  const [legend] = page.steps.children;
  page.steps.replaceChildren(legend);
  page.side.hidden = !found;
  if (!found) return;
  found.views.forEach((view, i) => {
    page.steps.append(stepOf(i + 1, String(i + 1), wordsOf(view)));
  });
  page.steps.append(stepOf(found.views.length + 1, "answer", answerWithVerdict()));
  drawTable();
}

function stepOf(number, label, words) {
  const step = document.createElement("label");
  step.className = "step";
  const input = document.createElement("input");
  Object.assign(input, { type: "radio", name: "step", value: number });
  input.addEventListener("change", () => {
    stopShowing();
    reveal(Infinity);
    show(number);
  });
  const circle = document.createElement("span");
  circle.className = "number";
  circle.textContent = label;
  const said = document.createElement("span");
  said.className = "words";
  said.append(...words);
  step.append(input, circle, said);
  return step;
}

// The tokens that the head finds most probable; of a vector of zeros it finds all alike.
function wordsOf(view) {
  if (found.isZero) return ["zeros: no word is likelier than another"];
  const likely = view.words.filter(([, share]) => share >= 0.01);
  return likely.map(([text, share]) => {
    const chip = document.createElement("span");
    chip.className = "chip";
    chip.style.setProperty("--share", `${100 * share}%`);
    const number = document.createElement("b");
    number.textContent = percent(share);
    chip.append(`${onlyBlanks(text)} `, number);
    return chip;
  });
}

function drawTable() {
  const nodes = [...drawn.boxes.keys(), ...drawn.chips.keys()];
  const table = document.createElement("table");
  const head = table.createTHead().insertRow();
  const numbers = found.views.map((_, i) => String(i + 1));
  for (const text of ["thought", ...numbers]) {
    head.append(Object.assign(document.createElement("th"), { textContent: text }));
  }
  const body = table.createTBody();
  for (const node of nodes) {
    const row = body.insertRow();
    const name = { textContent: asked.graph.names[node], scope: "row" };
    row.append(Object.assign(document.createElement("th"), name));
    for (const view of found.views) {
      const cell = row.insertCell();
      const share = found.isZero ? 0 : view.names[node];
      cell.textContent = percent(share).split("\u00a0")[0] || "·";
      const mix = `color-mix(in srgb, var(--fill) ${Math.round(100 * share)}%, transparent)`;
      cell.style.background = mix;
    }
  }
  page.table.replaceChildren(table);
  page.all.hidden = !found.views.length;
}

// Shows thought `number`, the answer after the last one, or the bare graph for 0.
function show(number) {
  if (!drawn) return say(page.caption, "");
  const isAnswer = Boolean(found) && number > found.views.length;
  const views = found && !found.isZero ? found.views : [];
  fillNames(isAnswer ? wholeSearch(views) : views[number - 1]);
  const now = isAnswer ? -1 : number - 1;
  drawn.rounds.forEach((round, hops) => round.classList.toggle("now", hops === now));
  const input = page.steps.querySelector(`input[value="${number}"]`);
  if (input) input.checked = true;
  say(page.caption, isAnswer ? "" : captionOf(number));
  say(page.answer, "");
  say(page.why, "");
  if (isAnswer) showAnswer();
}

// What each name gets from the thought of its own row; the others get nothing.
function wholeSearch(views) {
  const names = asked.graph.names.map((_, node) => {
    const box = drawn.boxes.get(node);
    return box && views[box.hops] ? views[box.hops].names[node] : 0;
  });
  return { names };
}

// A sentence that says what a thought holds.
function captionOf(number) {
  if (!found) return "Press Think, and see what the model makes of these facts.";
  const { names, root } = asked.graph;
  const who = names[root];
  if (found.isZero) return `Thought ${number} was thrown away: zeros went in instead.`;
  const view = found.views[number - 1];
  const likely = view.names.map((share, node) => [share, node]).filter(([share]) => share >= 0.1);
  likely.sort((a, b) => b[0] - a[0]);
  const list = likely.map(([share, node]) => `${names[node]} ${percent(share)}`).join(", ");
  if (!likely.length) return `Thought ${number} names nobody clearly.`;
  if (likely[0][1] === root) {
    if (number === 1) return `Thought 1 starts at the person asked about: ${list}.`;
    return `Thought ${number} leans to the answer's first words, “${who} is a”: ${list}.`;
  }
  if (view.words[0][0].includes("###")) {
    return `Thought ${number} has arrived: ${list}. Its ### says that the chain ends here.`;
  }
  if (likely.length === 1) return `Thought ${number} leans to one name: ${list}.`;
  return `Thought ${number} holds ${likely.length} names in one vector: ${list}.`;
}

// What the model wrote, and whether the graph says so.
function answerWithVerdict() {
  const text = found.text || "It writes nothing.";
  const { answer } = asked.solved;
  if (!answer) return [text];
  const isGood = isRight(found.text, answer);
  const mark = document.createElement("span");
  mark.className = `verdict ${isGood ? "right" : "wrong"}`;
  mark.textContent = isGood ? "✓ right" : "✗ wrong";
  return [`${text} `, mark];
}

function showAnswer() {
  const { graph, solved } = asked;
  page.answer.hidden = false;
  page.answer.replaceChildren(...answerWithVerdict());
  const chain = solved.chain || [];
  const steps = chain.slice(1).map((v, i) => factOf(graph.names, chain[i], v));
  const untrue = falseFacts(graph, found.text);
  const lie = untrue.length ? ` No fact says what it wrote: ${untrue.join(" ")}` : "";
  const why = solved.why || `The right chain: ${steps.join(" ")}`;
  const picture = found.views.length && !found.isZero
    ? " Below, each name as the thought of its row saw it." : "";
  say(page.why, why + lie + picture);
}

// ---- The page begins ----

function takeProblem(question) {
  const [facts, asks] = splitQuestion(question);
  page.facts.value = facts;
  page.question.value = asks;
  readPage();
}

function splitQuestion(text) {
  const at = text.lastIndexOf(" Is ");
  return [text.slice(0, at), text.slice(at + 1)];
}

function listen() {
  page.example.addEventListener("change", () => takeProblem(MODEL.questions[page.example.value]));
  page.random.addEventListener("click", () => {
    const { facts, question } = drawProblem(MODEL);
    page.example.value = "";
    takeProblem(`${facts} ${question}`);
  });
  page.facts.addEventListener("input", readPage);
  page.question.addEventListener("input", readPage);
  for (const control of [page.thoughts, page.zero]) {
    control.addEventListener("input", () => {
      const isAgain = Boolean(found);
      readPage();
      if (isAgain) run(false);
    });
  }
  page.ask.addEventListener("submit", (event) => {
    event.preventDefault();
    run(true);
  });
  page.facts.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.ctrlKey) page.ask.requestSubmit();
  });
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return; // a phone's keyboard came up
    width = innerWidth;
    const checked = page.steps.querySelector("input:checked");
    drawGraph();
    show(checked ? Number(checked.value) : 0);
  });
}

function begin() {
  MODEL.questions.forEach((question, i) => {
    const [, asks] = splitQuestion(question);
    page.example.append(new Option(`${i + 1}. ${asks}`, i));
  });
  page.thoughts.value = MODEL.n_thoughts;
  page.about.textContent = `The model: ${MODEL.name}, ${MODEL.about}.`;
  page.hint.textContent = "Words come in tokens, and one token can be several words: "
    + "“jelpus. Every jelpus is a” is one. ### says that the chain ends and the answer follows.";
  listen();
  takeProblem(MODEL.questions[0]);
}

begin();
