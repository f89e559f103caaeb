// The 256 parts of each node's Merkle tree: a cell for each, which rises and changes colour where the node differs.

import { attribute, byId, el, keep, svg, text } from "./dom.js";

const PARTS = 256;
const NUMBERS_SHOWN = 3;

let columns = PARTS;
let shown = [];

export function startParts() {
  const list = byId("parts");
  new ResizeObserver(() => {
    const width = list.clientWidth;
    const wanted = width > 800 ? PARTS : width > 440 ? PARTS / 2 : PARTS / 4;
    if (wanted === columns) return;
    columns = wanted;
    showParts(shown);
  }).observe(list);
}

export function showParts(nodes) {
  shown = nodes;
  byId("parts-panel").hidden = nodes.length < 2; // one node has no other to differ from
  keep(byId("parts"), nodes, (node) => node.address, makeRow, updateRow);
}

function makeRow() {
  const row = {
    name: el("span", { class: "name", dir: "auto" }),
    said: el("span", { class: "said" }),
    quiet: svg("path", { class: "quiet" }),
    loud: svg("path", { class: "loud" }),
  };
  row.strip = svg("svg", { class: "strip", "aria-hidden": "true", preserveAspectRatio: "none" }, row.quiet, row.loud);
  row.element = el("li", {}, row.name, row.strip, row.said);
  return row;
}

function updateRow(row, node) {
  const state = node.differs === null ? "unknown" : node.differs.length ? "differs" : "equal";
  const differs = state === "differs" ? node.differs : [];
  text(row.name, node.id);
  const known = state === "differs" ? inWords(differs) : node.state === "up" ? "equal" : "equal when last seen";
  text(row.said, state !== "unknown" ? known : node.state === "down" ? "not known while it is down" : "not known yet");
  attribute(row.element, "data-state", state);
  attribute(row.element, "data-parts", differs.length);
  const drawn = `${columns} ${differs.join(" ")}`;
  if (row.drawn === drawn) return;
  row.drawn = drawn;
  const lines = PARTS / columns;
  attribute(row.strip, "viewBox", `0 0 ${columns} ${lines * 10}`);
  attribute(row.strip, "data-lines", lines);
  const loud = new Set(differs);
  const cells = [...Array(PARTS).keys()];
  attribute(row.quiet, "d", cells.filter((part) => !loud.has(part)).map((part) => cell(part, 3, 4)).join(""));
  attribute(row.loud, "d", differs.map((part) => cell(part, 0.5, 9)).join(""));
}

function cell(part, top, height) {
  const x = part % columns;
  const y = 10 * Math.floor(part / columns) + top;
  return `M${x + 0.12} ${y}h.76v${height}h-.76z`;
}

function inWords(differs) {
  const numbers = differs.slice(0, NUMBERS_SHOWN).join(", ");
  const more = differs.length > NUMBERS_SHOWN ? " …" : "";
  return `differs in ${differs.length} ${differs.length === 1 ? "part" : "parts"}: ${numbers}${more}`;
}
