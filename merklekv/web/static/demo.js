// What `merklekv demo` adds to the page: what it did last, and buttons, each at what it is for.

import { byId, el, keep } from "./dom.js";

/** `demo` is a part of the picture, and missing on the page of a node. */
export function showDemo(demo) {
  byId("demo").hidden = !demo;
  if (!demo) return;
  keep(byId("happened"), demo.happened, (line) => line, (line) => ({ element: el("li", {}, line) }), () => {});
  for (const part of new Set(demo.controls.map((control) => control.part))) {
    const place = placeOf(part);
    if (place) keep(place, demo.controls.filter((one) => one.part === part), (one) => one.name, makeButton, updateButton);
  }
}

/** Where the buttons for a process are, which are made with the first picture that has it. */
function placeOf(part) {
  if (!part) return byId("presses");
  const owner = document.querySelector(part === "broker" ? ".broker" : `.box[data-node="${part}"]`);
  if (owner && !owner.presses) {
    owner.presses = el("div", { class: "presses" });
    owner.insertBefore(owner.presses, owner.lastElementChild);
  }
  return owner?.presses;
}

function makeButton({ name, label, part }) {
  const element = el("button", { type: "button", "data-press": name, "aria-label": `${label} ${part}`.trim() }, label);
  element.addEventListener("click", () => press(name));
  return { element };
}

function updateButton({ element }, { enabled }) {
  if (!enabled && document.activeElement === element) moveFocus(element);
  element.disabled = !enabled;
}

/** Who uses the keyboard goes on at the button that takes the place of this one. */
function moveFocus(element) {
  element.disabled = true;
  const others = [...element.parentElement.querySelectorAll("button")].filter((one) => one !== element);
  queueMicrotask(() => others.find((one) => !one.disabled)?.focus());
}

function press(name) {
  fetch(`/demo/${name}`, { method: "POST" }).catch(() => {});
}
