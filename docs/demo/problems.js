// Problems of ProsQA: read from words, solved, and drawn at random. After nanococonut/graph.py and
// prepare.py. A graph has names, edges [a, b] for "a is a b", a root, the person, and two options.
"use strict";

// The graph that facts and a question tell, or why they tell none: { graph } or { why }.
function readGraph(data, facts, question) {
  const name = `(${data.name_pattern})`;
  const asks = new RegExp(`^Is ${name} a ${name} or ${name}\\?$`, "u").exec(question);
  const sentences = facts ? facts.split(/(?<=\.) /) : [];
  const edges = [];
  for (const sentence of sentences) {
    const fact = new RegExp(`^(Every )?${name} is a ${name}\\.$`, "u").exec(sentence);
    const why = fact ? whyNoFact(...fact) : `“${short(sentence)}” is no fact. ${FACTS_ARE}`;
    if (why) return { why };
    edges.push([fact[2], fact[3]]);
  }
  if (!edges.length) return { why: `There is no fact yet. ${FACTS_ARE}` };
  if (!asks) return { why: `“${short(question)}” is no question. ${QUESTIONS_ARE}` };
  const names = [...new Set(edges.flat())];
  const why = whyNoQuestion(names, ...asks.slice(1));
  if (why) return { why };
  const [root, ...options] = asks.slice(1).map((word) => names.indexOf(word));
  const numbers = edges.map((edge) => edge.map((word) => names.indexOf(word)));
  return { graph: { names, edges: numbers, root, options } };
}

const QUESTIONS_ARE = "It should look like “Is Tom a lempus or rempus?”";
const FACTS_ARE = "Facts look like “Tom is a lempus.” or “Every lempus is a rempus.”";

function whyNoFact(sentence, every, subject, object) {
  if (isPerson(object)) return `“${sentence}”: only a person's name has a capital letter.`;
  if (Boolean(every) === isPerson(subject)) {
    return `“${sentence}”: facts of persons begin with the name, all others with “Every”.`;
  }
  return "";
}

function whyNoQuestion(names, person, ...options) {
  const unknown = [person, ...options].find((name) => !names.includes(name));
  if (unknown) return `The question names ${unknown}, but no fact does.`;
  if (!isPerson(person)) return `${person} is no person: persons have capital letters.`;
  const twice = options.find((name) => isPerson(name));
  if (twice) return `${twice} is a person, so nobody can be “a ${twice}”.`;
  return options[0] === options[1] ? "The two options are the same." : "";
}

function short(text) {
  return text.length > 60 ? `${text.slice(0, 60)}…` : text;
}

// How many hops each node is away from a root: a Map, the nearest first. Others are not in it.
function distances(edges, root) {
  const found = new Map([[root, 0]]);
  for (const [node, hops] of found) { // grows while it is read
    for (const [a, b] of edges) if (a === node && !found.has(b)) found.set(b, hops + 1);
  }
  return found;
}

// The right option with a shortest chain to it, or why there is no right one.
function solve(graph) {
  const reached = distances(graph.edges, graph.root);
  const right = graph.options.filter((option) => reached.has(option));
  if (right.length !== 1) {
    const which = right.length ? "both options" : "none of the two options";
    return { why: `${graph.names[graph.root]} reaches ${which}, so no answer is right.` };
  }
  const chain = [right[0]];
  while (chain[0] !== graph.root) {
    const before = reached.get(chain[0]) - 1;
    const [a] = graph.edges.find(([a, b]) => b === chain[0] && reached.get(a) === before);
    chain.unshift(a);
  }
  return { target: right[0], chain, answer: factOf(graph.names, graph.root, right[0]) };
}

function factOf(names, a, b) {
  const subject = isPerson(names[a]) ? names[a] : `Every ${names[a]}`;
  return `${subject} is a ${names[b]}.`;
}

// Whether a text ends in the answer, whatever stands before its last "#".
function isRight(text, answer) {
  return text.split("#").pop().replaceAll(",", "").trim() === answer;
}

// Facts that a text tells, but the graph does not have.
function falseFacts(graph, text) {
  const told = new Set(graph.edges.map(([a, b]) => factOf(graph.names, a, b)));
  const [chain] = text.includes("###") ? text.split("###") : [""];
  const steps = chain.split("\n").map((step) => step.trim());
  return steps.filter((step) => / is a .+\.$/.test(step) && !told.has(step));
}

// ---- New problems, as prepare.py draws them ----

// { facts, question } of a random problem that is 3 to 6 hops long.
function drawProblem(data, random = Math.random) {
  for (;;) {
    const edges = drawEdges(28, random);
    const asked = drawQuestion(edges, random);
    const used = [...new Set(edges.flat())];
    const children = new Set(edges.map(([, b]) => b));
    const nPersons = used.length - children.size;
    if (!asked || nPersons > data.persons.length || children.size > data.concepts.length) continue;
    const persons = shuffled(data.persons, random);
    const concepts = shuffled(data.concepts, random);
    const names = {};
    for (const node of used) names[node] = (children.has(node) ? concepts : persons).pop();
    const facts = shuffled(edges, random).map(([a, b]) => factOf(names, a, b));
    const [one, other] = shuffled(asked.slice(1), random);
    const question = `Is ${names[asked[0]]} a ${names[one]} or ${names[other]}?`;
    return { facts: facts.join(" "), question };
  }
}

// Edges of a random graph grown from two persons, 0 and 1. They go from lower to higher nodes.
function drawEdges(nNodes, random) {
  const roots = [new Set([0]), new Set([1])]; // those that reach each node
  const depth = [0, 0];
  const edges = [];
  for (let node = 2; node < nNodes; node++) {
    const r = random();
    const only = r <= 0.35 ? 0 : r <= 0.8 ? 1 : null; // whose own nodes may be parents
    const isOwn = (v) => only === null || (roots[v].size === 1 && roots[v].has(only));
    const candidates = depth.map((_, v) => v).filter(isOwn);
    // Deeper nodes are likelier parents.
    const keys = new Map(candidates.map((v) => [v, random() ** (1 / (1.5 * depth[v] + 1))]));
    candidates.sort((a, b) => keys.get(b) - keys.get(a));
    const parents = candidates.slice(0, poisson(1.5, random));
    roots.push(new Set(parents.flatMap((v) => [...roots[v]])));
    depth.push(parents.length ? 1 + Math.min(...parents.map((v) => depth[v])) : 0);
    for (const parent of parents) edges.push([parent, node]);
  }
  return edges;
}

function poisson(mean, random) {
  let n = 0;
  for (let product = random(); product > Math.exp(-mean); product *= random()) n += 1;
  return n;
}

// [root, target, false option], or null: a leaf of the person with the longer chain, and another's.
function drawQuestion(edges, random) {
  const inner = new Set(edges.map(([a]) => a));
  const reached = [distances(edges, 0), distances(edges, 1)];
  const own = [0, 1].map((r) =>
    [...reached[r].keys()].filter((v) => !inner.has(v) && v > 1 && !reached[1 - r].has(v)));
  if (!own[0].length || !own[1].length) return null;
  const deepest = [0, 1].map((r) => Math.max(...own[r].map((v) => reached[r].get(v))));
  const root = deepest[0] === deepest[1] ? Number(random() < 0.5) : Number(deepest[1] > deepest[0]);
  if (deepest[root] < 3 || deepest[root] > 6) return null;
  const targets = own[root].filter((v) => reached[root].get(v) === deepest[root]);
  return [root, shuffled(targets, random)[0], shuffled(own[1 - root], random)[0]];
}

function shuffled(values, random) {
  const mixed = [...values];
  for (let i = mixed.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [mixed[i], mixed[j]] = [mixed[j], mixed[i]];
  }
  return mixed;
}
