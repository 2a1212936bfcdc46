// Elements. What comes from the daemon only ever becomes text or an attribute, never markup.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** An HTML element with attributes and children; strings become text. */
export function element(tag, attributes = {}, ...children) {
  return build(document.createElement(tag), attributes, children);
}

/** An SVG element, likewise. */
export function shape(tag, attributes = {}, ...children) {
  return build(document.createElementNS(SVG, tag), attributes, children);
}

function build(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** Says something else, unless it is the same: what somebody has selected stays selected. */
export function setText(node, text) {
  if (node.textContent !== text) {
    node.textContent = text;
  }
}

/** A number for people, and the exact one in `value`. */
export function setData(node, value, text) {
  node.setAttribute("value", value);
  node.title = value.toLocaleString("en") + " bytes";
  setText(node, text);
}

/** Makes these the parent's children, in this order, touching only what is not in its place. */
export function arrange(parent, nodes) {
  nodes.forEach((node, index) => {
    if (parent.children[index] !== node) {
      parent.insertBefore(node, parent.children[index] ?? null);
    }
  });
  while (parent.children.length > nodes.length) {
    parent.lastElementChild.remove();
  }
}

/** A bar that is full to a share of 0 to 1, and has a mark at another. */
export function bar(share, mark = undefined) {
  const percent = (part) => `${Math.min(1, Math.max(0, part)) * 100}%`;
  const drawn = shape(
    "svg",
    { class: "bar", "aria-hidden": "true" },
    shape("rect", { class: "track", width: "100%", height: "100%", rx: 2 }),
    shape("rect", { class: "used", width: percent(share), height: "100%", rx: 2 }),
  );
  if (mark !== undefined) {
    drawn.append(shape("rect", { class: "mark", x: percent(mark), width: 1.5, height: "100%" }));
  }
  return drawn;
}
