// The diagram: the broker in the middle, a box for each node around it, and a link for each connection.

import { attribute, byId, el, keep, svg, text } from "./dom.js";
import { rate, short, whole } from "./words.js";

const STATES = { up: "up", down: "down", asked: "asking" };
const MANY = 6; // nodes: then nothing moves on the links
const OUTBOX_LEAST = 1000; // events that fill the bar; ten times as many if a node has more

const links = svg("svg", { class: "links", "aria-hidden": "true" });
const upper = el("ul", { class: "row upper" });
const lower = el("ul", { class: "row lower" });
const broker = el("div", { class: "broker" }, el("strong", {}, "MQTT broker"), el("span", {}));

let fullest = OUTBOX_LEAST;
let boxes = [];
let drawn = "";

export function startDiagram() {
  byId("diagram").append(links, upper, broker, lower);
  new ResizeObserver(() => drawLinks()).observe(byId("diagram"));
}

export function showDiagram(picture) {
  const { nodes, here } = picture;
  const most = Math.max(1, ...nodes.map((node) => node.outbox ?? 0));
  fullest = Math.max(OUTBOX_LEAST, 10 ** Math.ceil(Math.log10(most)));
  const replicated = nodes.filter((node) => node.replication && node.replication !== "disabled");
  const connected = replicated.filter(isConnected).length;
  const top = nodes.length > 1 ? Math.ceil(nodes.length / 2) : 1;
  const one = (node) => node.address;
  const shared = commonRoot(nodes);
  const update = (box, node) => updateBox(box, node, node.id === here && here !== "", shared);
  const made = [
    ...keep(upper, nodes.slice(0, top), one, makeBox, update).values(),
    ...keep(lower, nodes.slice(top), one, makeBox, update).values(),
  ];
  boxes = made;
  lower.hidden = nodes.length <= top;
  broker.hidden = replicated.length === 0;
  attribute(byId("diagram"), "data-count", Math.min(nodes.length, 5));
  attribute(byId("diagram"), "data-many", nodes.length > MANY);
  attribute(broker, "data-state", connected ? "up" : "down");
  text(broker.lastChild, connected === replicated.length ? `${connected} connected` : `${connected} of ${replicated.length} connected`);
  drawLinks();
}

function isConnected(node) {
  return node.state === "up" && node.replication === "connected";
}

/** The root that most nodes have, if there is one. */
function commonRoot(nodes) {
  const counts = new Map();
  for (const node of nodes) if (node.state === "up" && node.root) counts.set(node.root, (counts.get(node.root) ?? 0) + 1);
  const all = [...counts.values()].reduce((sum, count) => sum + count, 0);
  return [...counts.entries()].find(([, count]) => 2 * count > all)?.[0] ?? "";
}

function makeBox() {
  const part = {
    name: el("strong", { class: "name", dir: "auto" }),
    here: el("span", { class: "badge" }, "this node"),
    state: el("span", { class: "state" }),
    address: el("span", { class: "address" }),
    keys: el("dd", { class: "keys" }),
    root: el("dd", { class: "root" }),
    rates: el("dd", {}),
    outbox: el("span", { class: "count" }),
    fill: el("span", { class: "fill" }),
    why: el("p", { class: "why", dir: "auto" }),
  };
  part.meter = el("span", { class: "meter", role: "meter", "aria-valuemin": 0 }, part.fill);
  part.queue = el("div", { class: "queue" }, el("span", {}, "outbox"), part.meter, part.outbox);
  part.facts = el("dl", {},
    el("div", {}, el("dt", {}, "keys"), part.keys),
    el("div", {}, el("dt", {}, "root"), part.root),
    el("div", {}, el("dt", {}, "reads, writes"), part.rates));
  part.element = el("li", { class: "box" },
    el("div", { class: "top" }, part.name, part.state), el("div", { class: "where" }, part.address, part.here), part.facts, part.queue, part.why);
  return part;
}

function updateBox(part, node, isHere, shared) {
  const ready = node.state === "up" && node.ready === false ? "starting" : node.state;
  attribute(part.element, "data-state", ready);
  attribute(part.element, "data-node", node.id);
  part.node = node;
  text(part.name, node.id);
  attribute(part.name, "title", node.id);
  part.here.hidden = !isHere;
  text(part.state, ready === "starting" ? "not ready" : STATES[node.state]);
  text(part.address, node.address);
  text(part.keys, whole(node.keys));
  const differs = node.root && node.state === "up" && node.root !== shared;
  text(part.root, node.root ? `${node.root.slice(0, 10)}${differs ? " ≠" : ""}` : "–");
  attribute(part.root, "title", node.root || null);
  attribute(part.root, "data-differs", differs ? "yes" : null);
  text(part.rates, node.reads === undefined ? "–" : `${rate(node.reads)}/s, ${rate(node.writes)}/s`);
  part.queue.hidden = node.outbox === null;
  text(part.outbox, short(node.outbox));
  part.fill.style.width = `${Math.min(100, (100 * (node.outbox ?? 0)) / fullest)}%`;
  attribute(part.meter, "aria-label", `Outbox of ${node.id}`);
  attribute(part.meter, "aria-valuenow", node.outbox ?? 0);
  attribute(part.meter, "aria-valuemax", fullest);
  attribute(part.meter, "aria-valuetext", `${whole(node.outbox)} events wait`);
  const why = node.error || (ready === "starting" ? node.not_ready.join("; ") : "");
  text(part.why, why);
  part.why.hidden = !why;
}

/** Lines from each box to the broker, drawn anew when anything about them has changed. */
function drawLinks() {
  const frame = byId("diagram").getBoundingClientRect();
  const hub = broker.getBoundingClientRect();
  const narrow = getComputedStyle(byId("diagram")).getPropertyValue("--narrow").trim() === "1";
  const shapes = broker.hidden ? [] : boxes.filter((box) => box.node.replication !== "" && box.node.replication !== "disabled")
    .map((box) => shapeOf(box, box.element.getBoundingClientRect(), hub, frame, narrow));
  const state = JSON.stringify([frame.width, frame.height, shapes]);
  if (state === drawn) return;
  drawn = state;
  attribute(links, "viewBox", `0 0 ${frame.width} ${frame.height}`);
  links.replaceChildren(...shapes.flatMap(draw));
}

function shapeOf(box, rect, hub, frame, narrow) {
  const state = isConnected(box.node) ? "up" : "down";
  const flows = state === "up" && box.node.writes > 0;
  const hubX = hub.left + hub.width / 2 - frame.left;
  const hubY = hub.top + hub.height / 2 - frame.top;
  if (narrow) {
    const y = rect.top + 28 - frame.top;
    const x = rect.left - frame.left;
    return { state, flows, path: `M${x} ${y} H10 V${hub.bottom - frame.top}`, at: [x - 12, y] };
  }
  const isAbove = rect.bottom - frame.top <= hubY;
  const x = rect.left + rect.width / 2 - frame.left;
  const y = (isAbove ? rect.bottom : rect.top) - frame.top;
  const end = (isAbove ? hub.top : hub.bottom) - frame.top;
  const middle = (y + end) / 2;
  const spread = Math.max(-hub.width / 3, Math.min(hub.width / 3, (x - hubX) / 6));
  return {
    state, flows,
    path: `M${x} ${y} C${x} ${middle} ${hubX + spread} ${middle} ${hubX + spread} ${end}`,
    at: [(x + hubX + spread) / 2, middle],
  };
}

function draw({ state, flows, path, at }) {
  const parts = [svg("path", { class: "link", "data-state": state, d: path })];
  if (flows) parts.push(svg("path", { class: "flow", d: path }));
  if (state === "down") {
    const cross = svg("g", { class: "cut", transform: `translate(${at[0]} ${at[1]})` },
      svg("circle", { r: 8 }), svg("path", { d: "M-3 -3 L3 3 M-3 3 L3 -3" }));
    parts.push(cross);
  }
  return parts;
}
