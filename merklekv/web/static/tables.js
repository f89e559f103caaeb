// Members, slow commands and problems.

import { attribute, byId, el, keep, text } from "./dom.js";
import { counted, duration, moment, span } from "./words.js";

/** A table in a group that scrolls; cells are text or elements. `classes` are those of the columns. */
export function table(name, heads, rows, classes = []) {
  const cells = (tag, row) => row.map((cell, at) => el(tag, { class: classes[at] || null, scope: tag === "th" ? "col" : null, dir: "auto" }, cell));
  return el("div", { class: "scroll", role: "group", tabindex: 0, "aria-label": name },
    el("table", {},
      el("thead", {}, el("tr", {}, ...cells("th", heads))),
      el("tbody", {}, ...rows.map((row) => el("tr", {}, ...cells("td", row))))));
}

/** Replaces what a place shows when its content has changed. */
function show(id, content, make) {
  const place = byId(id);
  const now = JSON.stringify(content);
  if (place.shown === now) return;
  place.shown = now;
  const before = place.querySelector(".scroll");
  const had = document.activeElement !== null && document.activeElement === before;
  place.replaceChildren(make());
  if (had) place.querySelector(".scroll")?.focus();
}

const HOLDS_BACK = { // the collection of deleted keys, in the words of `merklekv members`
  unmet: "no exchange with it yet",
  view: "last reported other members than this node knows",
  applied_through: "its later writes are not applied here yet",
  stable: "has not yet applied later writes of other members",
  unreadable: "its row cannot be read",
};

export function showMembers(members) {
  const rows = members.map((member) => [
    member.node,
    member.state,
    member.address || "–",
    member.state === "self" ? "now" : member.contact_ms === null || member.contact_ms < 0 ? "never" : `${span(member.contact_ms / 1000)} ago`,
    [HOLDS_BACK[member.holds_back] ?? member.holds_back, member.refuses].filter(Boolean).join("; ") || "–",
  ]);
  show("members", rows, () => rows.length
    ? table("Members", ["node", "state", "address", "last reached", "holds back"], rows, ["name", "", "mono", "", ""])
    : el("p", { class: "note" }, "No node has told its members yet."));
}

export function showSlow(slow) {
  const rows = slow.map((one) => [one.words.join(" "), duration(one.us), one.node, moment(one.at * 1000)]);
  show("slow", rows, () => rows.length
    ? table("Slow commands", ["command", "took", "node", "when"], rows, ["mono cut", "number", "name", "when"])
    : el("p", { class: "note" }, "None: no command took longer than the node’s limit."));
}

export function showProblems(nodes) {
  const problems = nodes.flatMap((node) => node.problems.map((problem) => ({ node: node.id, problem })));
  byId("problems-panel").hidden = problems.length === 0;
  text(byId("problems-title"), problems.length ? counted(problems.length, "problem") : "Problems");
  keep(byId("problems"), problems, (one) => `${one.node} ${one.problem}`,
    (one) => ({ element: el("li", {}, el("strong", { dir: "auto" }, one.node), " ", el("span", { dir: "auto" }, one.problem)) }),
    () => undefined);
  attribute(byId("problems-panel"), "data-count", problems.length);
}
