// Where the names and arrows of a graph stand: the person on top, below her what each hop reaches.
// An arrow runs between two rows, or through a gap in a row: never through a name.
"use strict";

const ROW = 36; // height of a name
const BETWEEN = 38; // from one row to the next
const GAP = 16; // least distance of two names
const CLEAR = 5; // least distance of an arrow from a name that it passes

// boxes: node -> { x, y, w, hops }, x the middle and y the top. arrows: { a, b, path, kind }.
function layOut(graph, width) {
  const reached = distances(graph.edges, graph.root);
  const left = 26; // here stand the numbers of the hops
  const rows = rowsOf(graph, reached, width - left - 8);
  const boxes = new Map();
  rows.forEach(({ nodes, hops }, row) => {
    const y = 4 + row * (ROW + BETWEEN);
    place(graph, boxes, nodes, left, width - 8).forEach((x, i) => {
      boxes.set(nodes[i], { x, y, w: widthOf(graph.names[nodes[i]]), hops, row });
    });
  });
  const seen = new Set();
  const arrows = [];
  for (const [a, b] of graph.edges) {
    if (!reached.has(a) || a === b || seen.has(`${a} ${b}`)) continue;
    seen.add(`${a} ${b}`);
    const kind = reached.get(b) === reached.get(a) + 1 ? "on" : "aside";
    arrows.push({ a, b, kind, path: route(boxes, rows, boxes.get(a), boxes.get(b), width) });
  }
  return { boxes, arrows, rows, height: rows.length * (ROW + BETWEEN) - BETWEEN + 30 };
}

function widthOf(name) {
  return Math.max(52, 7.6 * name.length + 14);
}

// The nodes of each hop, in one row or, where they are too many for the width, in several.
function rowsOf(graph, reached, width) {
  const levels = [];
  for (const [node, hops] of reached) (levels[hops] ??= []).push(node);
  untangle(graph, reached, levels);
  const rows = [];
  levels.forEach((nodes, hops) => {
    let n = 1;
    const isTooWide = () => partsOf(nodes, n).some((part) => tooWide(graph, part, width));
    while (n < nodes.length && isTooWide()) n += 1;
    for (const part of partsOf(nodes, n)) rows.push({ nodes: part, hops });
  });
  return rows;
}

function partsOf(nodes, n) {
  return Array.from({ length: n }, (_, k) => nodes.filter((_, i) => i % n === k));
}

function tooWide(graph, nodes, width) {
  return nodes.reduce((sum, node) => sum + widthOf(graph.names[node]) + GAP, 0) > width;
}

// Sorts each level by where its neighbours stand, down and up again: so fewer arrows cross.
function untangle(graph, reached, levels) {
  const rank = new Map();
  const note = (level) => level.forEach((v, i) => rank.set(v, (i + 0.5) / level.length));
  levels.forEach(note);
  for (let sweep = 0; sweep < 6; sweep++) {
    const isDown = sweep % 2 === 0;
    for (const level of isDown ? levels : [...levels].reverse()) {
      const mean = new Map(level.map((v) => [v, meanRank(graph, reached, rank, v, isDown)]));
      level.sort((a, b) => mean.get(a) - mean.get(b));
      note(level);
    }
  }
}

function meanRank(graph, reached, rank, node, isDown) {
  const near = [];
  for (const [a, b] of graph.edges) {
    if (!reached.has(a) || reached.get(b) !== reached.get(a) + 1) continue;
    if (isDown && b === node) near.push(rank.get(a));
    if (!isDown && a === node) near.push(rank.get(b));
  }
  if (!near.length) return rank.get(node);
  return near.reduce((sum, x) => sum + x, 0) / near.length;
}

// The middles of the names of a row: each near its parents, and none over another.
function place(graph, boxes, nodes, left, right) {
  const widths = nodes.map((node) => widthOf(graph.names[node]));
  const sum = widths.reduce((a, b) => a + b, 0);
  const gap = Math.min(46, Math.max(GAP, (right - left - sum) / nodes.length));
  const wanted = nodes.map((node) => {
    const above = graph.edges.filter(([a, b]) => b === node && boxes.has(a));
    const middles = above.map(([a]) => boxes.get(a).x);
    if (!middles.length) return (left + right) / 2;
    return middles.reduce((a, b) => a + b, 0) / middles.length;
  });
  const xs = packed(wanted, widths, gap, left);
  const mirrored = packed(wanted.map((x) => -x).reverse(), [...widths].reverse(), gap, -right);
  const both = xs.map((x, i) => (x - mirrored[xs.length - 1 - i]) / 2);
  return inside(both, widths, gap, left, right);
}

// From left to right, each as near to where it is wanted as those before it permit.
function packed(wanted, widths, gap, left) {
  let end = left - gap;
  return wanted.map((x, i) => {
    const middle = Math.max(x, end + gap + widths[i] / 2);
    end = middle + widths[i] / 2;
    return middle;
  });
}

// The same, pushed back where a name would stand beyond the right or the left edge.
function inside(xs, widths, gap, left, right) {
  let edge = right;
  const moved = [...xs];
  for (let i = xs.length - 1; i >= 0; i--) {
    moved[i] = Math.min(moved[i], edge - widths[i] / 2);
    edge = moved[i] - widths[i] / 2 - gap;
  }
  edge = left;
  for (let i = 0; i < xs.length; i++) {
    moved[i] = Math.max(moved[i], edge + widths[i] / 2);
    edge = moved[i] + widths[i] / 2 + gap;
  }
  return moved;
}

// The path of an arrow: points [x, y], between which it bends without leaving the space there.
function route(boxes, rows, from, to, width) {
  const lean = (box, other) => Math.max(-0.3, Math.min(0.3, (other.x - box.x) / 300)) * box.w;
  const x0 = from.x + lean(from, to);
  const x1 = to.x + lean(to, from);
  if (from.row === to.row) { // below the row, there and back
    const y = from.y + ROW;
    return { points: [[x0, y], [x1, y + 2]], isLoop: true };
  }
  const isDown = to.row > from.row;
  const points = [[x0, isDown ? from.y + ROW : from.y]];
  const by = isDown ? 1 : -1;
  for (let row = from.row + by; row !== to.row; row += by) {
    const passed = rows[row].nodes.map((node) => boxes.get(node));
    const share = (row - from.row) / (to.row - from.row);
    const x = nearestGap(passed, x0 + share * (x1 - x0), width);
    const [top, bottom] = [passed[0].y - CLEAR, passed[0].y + ROW + CLEAR];
    points.push(...(isDown ? [[x, top], [x, bottom]] : [[x, bottom], [x, top]]));
  }
  points.push([x1, isDown ? to.y - 2 : to.y + ROW + 2]);
  return { points, isLoop: false };
}

// The x nearest to a wanted one that is clear of all names of a row.
function nearestGap(row, wanted, width) {
  const sorted = [...row].sort((a, b) => a.x - b.x);
  let free = 2;
  let best = Infinity;
  for (let i = 0; i <= sorted.length; i++) {
    const start = i ? sorted[i - 1].x + sorted[i - 1].w / 2 + CLEAR : 22;
    const end = i < sorted.length ? sorted[i].x - sorted[i].w / 2 - CLEAR : width - 2;
    if (start > end) continue;
    const x = Math.max(start, Math.min(end, wanted));
    if (Math.abs(x - wanted) < best) [free, best] = [x, Math.abs(x - wanted)];
  }
  return free;
}

// The path in SVG's words.
function svgPath({ points, isLoop }) {
  const [[x0, y0], ...rest] = points;
  if (isLoop) {
    const [x1, y1] = rest[0];
    return `M${x0} ${y0}C${x0} ${y0 + 30} ${x1} ${y0 + 30} ${x1} ${y1}`;
  }
  let path = `M${x0} ${y0}`;
  let [x, y] = [x0, y0];
  for (const [nextX, nextY] of rest) {
    const middle = (y + nextY) / 2;
    const bend = `C${x} ${middle} ${nextX} ${middle} ${nextX} ${nextY}`;
    path += rest.length > 1 ? bend : `L${nextX} ${nextY}`;
    [x, y] = [nextX, nextY];
  }
  return path;
}
