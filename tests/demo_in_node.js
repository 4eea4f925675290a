// Runs the scripts of docs/demo in Node for test_demo.py: a request as JSON on standard input, one
// of those below, and what came of it as JSON on standard output.
"use strict";

const fs = require("fs");
const path = require("path");
const vm = require("vm");

for (const name of ["model.js", "coconut.js", "problems.js", "picture.js"]) {
  const file = path.join(__dirname, "../docs/demo", name);
  vm.runInThisContext(fs.readFileSync(file, "utf8"), { filename: file });
}
const data = vm.runInThisContext("MODEL");
const model = loadModel(data);
const tokenizer = makeTokenizer(data);

// What the model thinks and writes.
function answer({ questions, nThoughts, isZero }) {
  const zeros = isZero ? (thought) => thought.map(() => 0) : null;
  return questions.map((question) => {
    const prompt = promptOf(model, tokenizer, question);
    const { states, ids } = generate(model, prompt, nThoughts, zeros);
    const thoughts = states.slice(0, nThoughts).map((thought) => Array.from(thought));
    return { prompt, ids, text: decode(tokenizer, ids), thoughts };
  });
}

// The ids of texts, and what they are in words again; the same without the first id.
function tokens({ texts }) {
  return texts.map((text) => {
    const ids = encode(tokenizer, text);
    return { ids, text: decode(tokenizer, ids), cut: decode(tokenizer, ids.slice(1)) };
  });
}

function nodeTokens({ names }) {
  return names.map((name) => tokensOf(tokenizer, name));
}

// Random problems, with what the page makes of them.
function problems({ n, seed }) {
  const random = randomFrom(seed);
  return Array.from({ length: n }, () => {
    const { facts, question } = drawProblem(data, random);
    const { graph } = readGraph(data, facts, question);
    const { chain, answer } = solve(graph);
    const crossed = [300, 420, 700].flatMap((width) => namesCrossed(graph, width));
    return { question: `${facts} ${question}`, answer, hops: chain.length - 1, crossed };
  });
}

// What readGraph says of facts and a question that tell no graph, or solve of one that they tell.
function whyNot({ pairs }) {
  return pairs.map(([facts, question]) => {
    const { graph, why } = readGraph(data, facts, question);
    return why || solve(graph).why || "";
  });
}

function randomFrom(seed) {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

// Arrows that pass over a name, and names that stand on one another or outside.
function namesCrossed(graph, width) {
  const { boxes, arrows, height } = layOut(graph, width);
  const found = [];
  for (const { a, b, path: route } of arrows) {
    for (const [x, y] of pointsOf(svgPath(route))) {
      for (const [node, box] of boxes) {
        const isIn = Math.abs(x - box.x) < box.w / 2 && y > box.y + 0.1 && y < box.y + ROW - 0.1;
        if (isIn) found.push([width, "arrow", graph.names[a], graph.names[b], graph.names[node]]);
      }
      if (x < 0 || x > width || y < 0 || y > height) found.push([width, "arrow outside", a, b]);
    }
  }
  for (const [node, box] of boxes) {
    if (box.x - box.w / 2 < 22 || box.x + box.w / 2 > width) found.push([width, "outside", node]);
    for (const [other, its] of boxes) {
      const isNear = Math.abs(box.x - its.x) < (box.w + its.w) / 2 + 8;
      if (other !== node && its.y === box.y && isNear) found.push([width, "names", node, other]);
    }
  }
  return found;
}

// Points on a path of M, L and C.
function pointsOf(text) {
  const points = [];
  let from = null;
  for (const [, kind, numbers] of text.matchAll(/([MLC])([^MLC]*)/g)) {
    const [...xy] = numbers.trim().split(" ").map(Number);
    const to = xy.slice(-2);
    const [one, two] = kind === "C" ? [xy.slice(0, 2), xy.slice(2, 4)] : [from, to];
    for (let t = 0; kind !== "M" && t <= 1; t += 0.05) {
      const weights = [(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t ** 3];
      const mix = (i) => [from, one, two, to].reduce((sum, p, k) => sum + weights[k] * p[i], 0);
      points.push([mix(0), mix(1)]);
    }
    from = to;
  }
  return points;
}

const { request, ...given } = JSON.parse(fs.readFileSync(0, "utf8"));
const made = { answer, tokens, nodeTokens, problems, whyNot }[request](given);
process.stdout.write(JSON.stringify(made));
