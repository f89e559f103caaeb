// The key browser: pages of keys that begin with something, and the changes of one key. It only reads.

import { byId, el, text } from "./dom.js";
import { table } from "./tables.js";
import { bytes, counted, data, moment } from "./words.js";

let asked = 0; // only the newest answer is shown

export function startKeys() {
  byId("search").addEventListener("submit", (event) => {
    event.preventDefault();
    show(byId("prefix").value, [""]);
  });
  byId("history-close").addEventListener("click", () => byId("history").close());
}

async function ask(path, fields) {
  const answer = await fetch(`${path}?${new URLSearchParams(fields)}`);
  if (!answer.ok) throw new Error((await answer.text()).trim().slice(0, 300));
  return answer.json();
}

/** Shows the page at the last of these cursors; the others lead back. */
async function show(prefix, cursors) {
  const place = byId("keys");
  const number = ++asked;
  place.setAttribute("aria-busy", "true");
  let content;
  try {
    const page = await ask("/keys", { prefix, cursor: cursors.at(-1) });
    content = [page.keys.length ? keyTable(page.keys) : el("p", { class: "note" }, none(prefix, page)), pager(prefix, cursors, page)];
  } catch (problem) {
    content = [el("p", { class: "note bad" }, `The keys cannot be shown: ${problem.message}`)];
  }
  if (number !== asked) return;
  place.replaceChildren(...content);
  place.setAttribute("aria-busy", "false");
}

function none(prefix, page) {
  if (page.next) return "No key among those looked at; there are more.";
  return prefix ? "No key begins with this." : "This node has no keys.";
}

function keyTable(keys) {
  const rows = keys.map((one) => {
    const button = el("button", { type: "button", class: "key", dir: "auto" }, data(one.key));
    button.addEventListener("click", () => showHistory(one));
    return [button, data(one.value), bytes(one.value.size), moment(one.written_ms), one.origin || one.store_id,
      one.expiry_ms === null ? "–" : moment(one.expiry_ms)];
  });
  return table("Keys", ["key", "value", "size", "written", "by", "expires"], rows,
    ["mono", "mono cut", "number rare", "when", "name", "when rare"]);
}

function pager(prefix, cursors, page) {
  const first = el("button", { type: "button" }, "First page");
  const next = el("button", { type: "button" }, "Next page");
  first.disabled = cursors.length === 1;
  next.disabled = page.next === null;
  first.addEventListener("click", () => show(prefix, [""]));
  next.addEventListener("click", () => show(prefix, [...cursors, page.next]));
  return el("div", { class: "pager" }, first, next, el("span", { class: "note", role: "status" }, `Page ${cursors.length}, ${counted(page.keys.length, "key")}`));
}

async function showHistory(one) {
  const place = byId("history-body");
  text(byId("history-title"), data(one.key));
  place.replaceChildren(el("p", { class: "note" }, "Reading the log"));
  byId("history").showModal();
  try {
    const { changes, complete } = await ask("/history", { key: one.id });
    const rows = changes.map((change) => [moment(change.written_ms), change.op, change.value ? data(change.value) : "–",
      change.origin, change.expiry_ms === null ? "–" : moment(change.expiry_ms)]);
    const said = complete ? "The newest changes that the log of this node still has, newest first."
      : "The log is longer than one look takes: newer changes may be missing.";
    place.replaceChildren(
      facts(one),
      el("p", { class: "note" }, changes.length ? said : "The log of this node has no change of this key any more."),
      ...(rows.length ? [table("Changes", ["when", "change", "value", "by", "expires"], rows, ["when", "", "mono cut", "name", "when"])] : []));
  } catch (problem) {
    place.replaceChildren(el("p", { class: "note bad" }, `The history cannot be shown: ${problem.message}`));
  }
}

function facts(one) {
  const rows = { value: data(one.value), size: bytes(one.value.size), written: moment(one.written_ms), by: one.origin || one.store_id,
    expires: one.expiry_ms === null ? "never" : moment(one.expiry_ms) };
  return el("dl", { class: "whole" }, ...Object.entries(rows).flatMap(([name, value]) => [el("dt", {}, name), el("dd", { dir: "auto" }, value)]));
}
