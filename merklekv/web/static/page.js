// The page: takes pictures of the cluster from the server, twice a second, and shows them.

import { redrawCurves, showCurves, startCurves } from "./curves.js";
import { showDemo } from "./demo.js";
import { showDiagram, startDiagram } from "./diagram.js";
import { attribute, byId, el, keep, text } from "./dom.js";
import { startKeys } from "./keys.js";
import { showParts, startParts } from "./parts.js";
import { showMembers, showProblems, showSlow } from "./tables.js";
import { startTheme } from "./theme.js";
import { counted, rate, span } from "./words.js";

const SILENCE_MS = 3000; // without a picture: the server is gone
const AGAIN_MS = 1000;

let heardAt = performance.now();
let said = "";

function show(picture) {
  showHead(picture);
  showVerdict(picture);
  showDiagram(picture);
  showDemo(picture.demo);
  showParts(picture.nodes);
  showCurves(picture);
  showProblems(picture.nodes);
  showMembers(picture.members);
  showSlow(picture.slow);
  const more = byId("not-shown");
  more.hidden = !picture.not_shown;
  text(more, `${counted(picture.not_shown, "more node")} not shown`);
}

function showHead(picture) {
  const own = picture.nodes.find((node) => node.id === picture.here && picture.here) ?? null;
  text(byId("here"), own ? own.id : counted(picture.nodes.length, "node"));
  document.title = `${own ? own.id : "MerkleKV"} – ${picture.verdict.text}`;
  const node = own ?? picture.nodes.find((one) => one.state === "up");
  const facts = node ? [
    ["version", node.version],
    ["up for", span(node.uptime_s)],
    ["durability", node.durability],
    ["state", node.state !== "up" ? "does not answer" : node.ready === false ? `not ready: ${node.not_ready.map((one) => one.split(":")[0]).join(", ")}` : "ready"],
  ] : [];
  keep(byId("facts"), facts, ([name]) => name,
    ([name]) => {
      const value = el("dd", {});
      return { value, element: el("div", {}, el("dt", {}, name), value) };
    },
    (fact, [name, value]) => {
      text(fact.value, value || "–");
      attribute(fact.element, "data-bad", name === "state" && value !== "ready");
    });
}

function showVerdict(picture) {
  const { level, text: sentence } = picture.verdict;
  const up = picture.nodes.filter((node) => node.state === "up");
  const sum = (name) => up.reduce((total, node) => total + (node[name] ?? 0), 0);
  text(byId("sentence"), sentence);
  attribute(byId("verdict"), "data-level", level);
  const waiting = sum("outbox");
  text(byId("detail"), `${rate(sum("reads"))} reads and ${rate(sum("writes"))} writes per second, ${waiting ? `${counted(waiting, "event")} on the way` : "nothing waits to be sent"}`);
  say(sentence);
}

/** Tells a screen reader what is new, but not each new number. */
function say(sentence) {
  const meaning = sentence.replaceAll(/[\d,]+/g, "");
  if (meaning === said) return;
  said = meaning;
  text(byId("said"), sentence);
}

function lost() {
  attribute(byId("live"), "data-live", "no");
  text(byId("live"), "connection lost");
  attribute(byId("verdict"), "data-level", "bad");
  attribute(document.body, "data-stale", true);
  const sentence = "This node does not answer; trying again";
  text(byId("sentence"), sentence);
  text(byId("detail"), `Last heard ${span((performance.now() - heardAt) / 1000)} ago; what you see below is from then.`);
  say(sentence);
}

/** Listens for ever; an EventSource that gives up is replaced. */
function listen() {
  const source = new EventSource("/events");
  const openedAt = performance.now();
  source.addEventListener("message", (event) => {
    heardAt = performance.now();
    attribute(byId("live"), "data-live", "yes");
    text(byId("live"), "live");
    attribute(document.body, "data-stale", false);
    show(JSON.parse(event.data));
  });
  const watch = setInterval(() => {
    const now = performance.now();
    if (now - heardAt >= SILENCE_MS) lost();
    if (now - Math.max(heardAt, openedAt) < SILENCE_MS) return;
    source.close();
    clearInterval(watch);
    setTimeout(listen, AGAIN_MS);
  }, AGAIN_MS);
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) lost();
  });
}

startDiagram();
startParts();
startCurves();
startKeys();
startTheme(redrawCurves);
listen();
