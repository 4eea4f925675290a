// The latent loop of nanococonut/coconut.py in plain JavaScript: one question, no library.
//
//     x = embedding of a token          in words
//     x = hidden state before it        in a thought      (after the final layer norm)
//
// Letters: C channels, H heads, D = C / H head size, V vocabulary, K thoughts, T inputs so far.
// A vector is a Float32Array. A matrix is one too, row after row, as PyTorch keeps it.
"use strict";

// ---- Tokens: nanococonut/tokenizer.py and tiktoken ----

// The tokenizer of a MODEL. Bytes are kept as a text with one character for each byte.
function makeTokenizer(data) {
  const texts = [];
  for (let byte = 0; byte < 256; byte++) texts.push(String.fromCharCode(byte));
  for (const piece of data.vocabulary) texts.push(bytesOf(piece));
  const ranks = new Map(texts.map((text, id) => [text, id]));
  for (const [name, id] of Object.entries(data.special)) texts[id] = `<${name}>`;
  return { texts, ranks, pattern: new RegExp(data.pattern, "gu") };
}

function bytesOf(text) {
  return Array.from(new TextEncoder().encode(text), (byte) => String.fromCharCode(byte)).join("");
}

// A piece of a text is one token, if the vocabulary has it. Of other pieces the bytes are tokens.
function encode(tokenizer, text) {
  const ids = [];
  for (const piece of piecesOf(tokenizer, text)) {
    const bytes = bytesOf(piece);
    const parts = tokenizer.ranks.has(bytes) ? [bytes] : merge(tokenizer.ranks, bytes);
    for (const part of parts) ids.push(tokenizer.ranks.get(part));
  }
  return ids;
}

function piecesOf(tokenizer, text) {
  return Array.from(text.matchAll(tokenizer.pattern), (match) => match[0]);
}

// Bytes, of which neighbours are joined as long as the vocabulary has both together: byte pairs.
function merge(ranks, bytes) {
  const parts = bytes.split("");
  for (;;) {
    let best = Infinity;
    let at = -1;
    for (let i = 0; i + 1 < parts.length; i++) {
      const rank = ranks.get(parts[i] + parts[i + 1]);
      if (rank < best) [best, at] = [rank, i];
    }
    if (at < 0) return parts;
    parts.splice(at, 2, parts[at] + parts[at + 1]);
  }
}

function decode(tokenizer, ids) {
  const bytes = ids.map((id) => tokenizer.texts[id]).join("");
  const numbers = Uint8Array.from(bytes, (byte) => byte.charCodeAt(0));
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(numbers);
}

// ---- The model: nanococonut/model.py, GPT-2 with learned positions and a tied head ----

// Sizes and weights by GPT-2's names, out of a MODEL.
function loadModel(data) {
  const numbers = halfFloats(atob(data.weights));
  const weights = {};
  let start = 0;
  for (const [name, ...shape] of data.tensors) {
    const size = shape.reduce((product, n) => product * n, 1);
    weights[name] = numbers.subarray(start, start + size);
    start += size;
  }
  return { ...data, weights };
}

// float16, the lowest byte first, as Float32Array.
function halfFloats(bytes) {
  const numbers = new Float32Array(bytes.length / 2);
  for (let i = 0; i < numbers.length; i++) {
    const bits = bytes.charCodeAt(2 * i) | (bytes.charCodeAt(2 * i + 1) << 8);
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >> 10) & 31;
    const fraction = (bits & 1023) / 1024;
    const size = exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction;
    numbers[i] = sign * size;
  }
  return numbers;
}

// The embedding (C) of a token, or of a position.
function rowOf(model, name, i) {
  const C = model.n_embd;
  return model.weights[name].subarray(i * C, (i + 1) * C);
}

function add(a, b) {
  return a.map((value, i) => value + b[i]);
}

// x of any size, with mean 0 and variance 1, then scaled and shifted.
function layerNorm(model, name, x) {
  const weight = model.weights[`${name}.weight`];
  const bias = model.weights[`${name}.bias`];
  let mean = 0;
  for (const value of x) mean += value / x.length;
  let variance = 0;
  for (const value of x) variance += (value - mean) ** 2 / x.length;
  const scale = 1 / Math.sqrt(variance + 1e-5);
  return x.map((value, i) => (value - mean) * scale * weight[i] + bias[i]);
}

// weight (outputs, inputs) times x (inputs), plus bias (outputs).
function linear(model, name, x) {
  const weight = model.weights[`${name}.weight`];
  const y = Float32Array.from(model.weights[`${name}.bias`]);
  for (let i = 0; i < y.length; i++) y[i] += dot(weight, i * x.length, x, 0, x.length);
  return y;
}

// The sum of n products: a from one place on, with b from another.
function dot(a, aStart, b, bStart, n) {
  let sum = 0;
  for (let i = 0; i < n; i++) sum += a[aStart + i] * b[bStart + i];
  return sum;
}

// GPT-2's tanh form of GELU.
function gelu(x) {
  const inner = Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3);
  return 0.5 * x * (1 + Math.tanh(inner));
}

function softmax(scores) {
  const highest = scores.reduce((a, b) => Math.max(a, b));
  const powers = scores.map((score) => Math.exp(score - highest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

// softmax(q K^T / sqrt(D)) V for one new input, with all keys and values up to its own.
function attention(model, layer, x, cache) {
  const { n_embd: C, n_head: H } = model;
  const D = C / H;
  const qkv = linear(model, `h.${layer}.attn.c_attn`, x); // (3C)
  const { keys, values } = cache.layers[layer]; // (block_size, C) each
  keys.set(qkv.subarray(C, 2 * C), cache.length * C);
  values.set(qkv.subarray(2 * C), cache.length * C);
  const T = cache.length + 1;
  const y = new Float32Array(C);
  for (let start = 0; start < C; start += D) { // one head after the other
    const scores = new Float32Array(T);
    for (let t = 0; t < T; t++) {
      scores[t] = dot(qkv, start, keys, t * C + start, D) / Math.sqrt(D);
    }
    softmax(scores).forEach((share, t) => {
      for (let i = start; i < start + D; i++) y[i] += share * values[t * C + i];
    });
  }
  return linear(model, `h.${layer}.attn.c_proj`, y); // (C)
}

// C -> 4C -> C.
function mlp(model, layer, x) {
  const wide = linear(model, `h.${layer}.mlp.c_fc`, x).map(gelu);
  return linear(model, `h.${layer}.mlp.c_proj`, wide);
}

// Scores (V) for the next token: the head is the token embedding itself.
function logits(model, hidden) {
  const scores = new Float32Array(model.vocab_size);
  const { "wte.weight": wte } = model.weights;
  for (let id = 0; id < scores.length; id++) {
    scores[id] = dot(wte, id * hidden.length, hidden, 0, hidden.length);
  }
  return scores;
}

// ---- The latent loop: nanococonut/coconut.py ----

// Keys and values of all inputs so far. Unlike the one in Python it is written in place.
function openCache(model) {
  const empty = () => new Float32Array(model.block_size * model.n_embd);
  const layers = [];
  for (let i = 0; i < model.n_layer; i++) layers.push({ keys: empty(), values: empty() });
  return { layers, length: 0 };
}

// The hidden state (C) of the next input x (C), the embedding of a token or a thought.
function feed(model, x, cache) {
  x = add(x, rowOf(model, "wpe.weight", cache.length)); // positions run on without a gap
  for (let i = 0; i < model.n_layer; i++) {
    x = add(x, attention(model, i, layerNorm(model, `h.${i}.ln_1`, x), cache));
    x = add(x, mlp(model, i, layerNorm(model, `h.${i}.ln_2`, x)));
  }
  cache.length += 1;
  return layerNorm(model, "ln_f", x);
}

// The hidden state (C) at the last of some token ids.
function prefill(model, ids, cache) {
  let hidden;
  for (const id of ids) hidden = feed(model, rowOf(model, "wte.weight", id), cache);
  return hidden;
}

// The hidden states at the prompt's end and at each thought: K + 1 vectors (C).
// hidden is the first of them. Thought k is the state before it, fed back.
// change: a thought (C) -> what is fed in its place.
function think(model, hidden, cache, nThoughts, change) {
  const states = [hidden];
  for (let k = 0; k < nThoughts; k++) {
    const x = change ? change(hidden) : hidden; // the last hidden state is the next input
    hidden = feed(model, x, cache);
    states.push(hidden);
  }
  return states;
}

// What a model thinks and writes after the ids of a prompt, which end in <bot>:
// states  K + 1 vectors (C), the first K of which are the thoughts
// ids     the most probable words, one after the other, without the <eos> that ends them
function generate(model, prompt, nThoughts, change) {
  const cache = openCache(model);
  const states = think(model, prefill(model, prompt, cache), cache, nThoughts, change);
  const ids = [];
  let hidden = states[nThoughts]; // the last thought itself predicts the first word
  while (ids.length < model.max_new_tokens) {
    const id = highest(logits(model, hidden), 1)[0];
    if (id === model.special.eos) break;
    ids.push(id);
    hidden = feed(model, rowOf(model, "wte.weight", id), cache);
  }
  return { states, ids };
}

// The places of the n highest of some numbers, the highest first.
function highest(numbers, n) {
  const places = Array.from(numbers, (_, i) => i);
  return places.sort((a, b) => numbers[b] - numbers[a]).slice(0, n);
}

// ---- A question, asked: nanococonut/answers.py ----

// The ids that stand before the thoughts.
function promptOf(model, tokenizer, question) {
  return [...encode(tokenizer, `${question}\n`), model.special.bot];
}

// Whether the model has positions for a prompt, its thoughts and an answer.
function hasRoom(model, prompt, nThoughts) {
  return prompt.length + nThoughts + model.max_new_tokens <= model.block_size;
}

// The tokens with which a chain goes on at a node.
function tokensOf(tokenizer, name) {
  const texts = isPerson(name)
    ? [`${name} is a `]
    : [`${name}.\nEvery ${name} is a `, `${name}.\n### `];
  const found = texts.map((text) => encode(tokenizer, text)).filter((ids) => ids.length === 1);
  if (found.length) return found.map((ids) => ids[0]);
  const named = encode(tokenizer, `${name}.`);
  return named.length === 1 ? named : [];
}

// Only a person's name begins with a capital letter.
function isPerson(name) {
  return /^\p{Uppercase}/u.test(name);
}

// What the head would say at a vector (C): the probability (V) of each token.
function shares(model, vector) {
  return softmax(logits(model, vector));
}
