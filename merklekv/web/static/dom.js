// Elements of HTML and SVG. What a node says goes through `text`, which never reads it as markup.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element: attributes by name (false and null are left out), then children: nodes or text. */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) attribute(element, name, value);
  element.append(...children);
  return element;
}

/** Sets the text of an element if it differs. */
export function text(element, value) {
  const shown = String(value);
  if (element.textContent !== shown) element.textContent = shown;
}

/** Sets an attribute if it differs; true is an empty one, false and null remove it. */
export function attribute(element, name, value) {
  if (value === false || value === null || value === undefined) {
    if (element.hasAttribute(name)) element.removeAttribute(name);
    return;
  }
  const shown = value === true ? "" : String(value);
  if (element.getAttribute(name) !== shown) element.setAttribute(name, shown);
}

export function byId(id) {
  return document.getElementById(id);
}

/**
 * Keeps one child of `parent` for each item, in order: `make(item)` returns an object with `element`, which is kept as
 * long as `key(item)` is there, and `update(object, item)` is called each time.
 */
export function keep(parent, items, key, make, update) {
  const before = parent.kept ?? new Map();
  const now = new Map();
  items.forEach((item, at) => {
    const name = `${key(item)} ${at}`;
    const object = before.get(name) ?? make(item);
    now.set(name, object);
    if (parent.children[at] !== object.element) parent.insertBefore(object.element, parent.children[at] ?? null);
    update(object, item);
  });
  for (const [name, object] of before) if (!now.has(name)) object.element.remove();
  parent.kept = now;
  return now;
}
