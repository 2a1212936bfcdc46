// Volumes and snapshots: what was made from what, as a tree, and what is done with each now.

import { arrange, bar, byId, element, setText, shape } from "./dom.js";
import * as format from "./format.js";
import { quantile } from "./rates.js";

/** More rows are shown only when asked for. */
const ROWS_MAX = 100;

/** The distance of the tree's levels, and how many are drawn, in pixels and levels. */
const LEVEL = 18;
const LEVELS_MAX = 10;

/** Where there is nothing to tell: most devices do nothing, and so many noughts would hide the others. */
const NOTHING = "–";

const isSnapshot = (device) => device.kind === "snapshot";
const lineageKind = (device) => (isSnapshot(device) ? "snapshot" : device.parent ? "clone" : "volume");

/** Orders other than that of lineage: the largest comes first. */
const ORDERS = {
  requests: (row) => row.rates.requests,
  mapped: (row) => row.device.mapped_bytes,
};

export class Devices {
  #body = byId("devices").tBodies[0];
  /** Rows by the device's identity, which renaming does not change. */
  #rows = new Map();
  #shown = null;
  #showsAll = false;

  constructor() {
    byId("filter").addEventListener("input", () => this.#show());
    byId("order").addEventListener("change", () => this.#show());
    byId("show-all").addEventListener("click", () => {
      this.#showsAll = true;
      this.#show();
    });
    byId("legend").replaceChildren(...["volume", "snapshot", "clone"].map(legendEntry));
  }

  /** Another pool: nothing that was chosen holds for it. */
  reset() {
    this.#rows.clear();
    this.#showsAll = false;
    byId("filter").value = "";
  }

  /** `rows` are `{ device, rates }`. */
  show(pool, rows, bounds) {
    this.#shown = { pool, rows, bounds };
    this.#show();
  }

  #show() {
    const { pool, rows, bounds } = this.#shown;
    const filter = byId("filter").value.trim().toLowerCase();
    const found = arranged(rows, filter, byId("order").value);
    const visible = this.#showsAll ? found : found.slice(0, ROWS_MAX);
    arrange(this.#body, visible.map((row) => this.#row(row, bounds)));
    const isThere = new Set(rows.map((row) => row.device.uuid));
    [...this.#rows.keys()].filter((uuid) => !isThere.has(uuid)).forEach((uuid) => this.#rows.delete(uuid));

    byId("devices").hidden = found.length === 0;
    byId("legend").hidden = found.length === 0;
    byId("show-all").hidden = visible.length === found.length;
    setText(byId("show-all"), `Show all ${found.length.toLocaleString("en")}`);
    byId("no-devices").hidden = found.length > 0;
    setText(byId("no-devices"), rows.length > 0
      ? `Nothing is called like “${filter}”.`
      : `The pool is empty. This makes a volume: thinctl create ${pool.path}/VOLUME --size 20G`);
  }

  #row(row, bounds) {
    const { uuid } = row.device;
    if (!this.#rows.has(uuid)) {
      this.#rows.set(uuid, new Row());
    }
    const known = this.#rows.get(uuid);
    known.update(row, bounds);
    return known.element;
  }
}

class Row {
  #name = element("span", { class: "name" });
  #note = element("span", { class: "note" });
  #heading = element("th", { scope: "row" }, this.#name);
  #mapped = element("td");
  #mappedText = element("data");
  #cells = {};
  /** What was shown last: of a thousand rows most stay as they are. */
  #shown = "";

  constructor() {
    this.#mapped.append(this.#mappedText);
    const cell = (key, label, isExtra) => {
      const attributes = { class: isExtra ? "number extra" : "number", "data-label": label };
      this.#cells[key] = element("td", attributes);
      return this.#cells[key];
    };
    this.element = element(
      "tr", {}, this.#heading, this.#mapped,
      cell("size", "of", true), cell("requests", "req/s"), cell("readBytes", "read", true),
      cell("writtenBytes", "written", true), cell("p50", "p50", true), cell("p99", "p99"),
    );
  }

  update(row, bounds) {
    const shown = JSON.stringify(row);
    if (shown !== this.#shown) {
      this.#shown = shown;
      this.#show(row, bounds);
    }
  }

  #show({ device, rates, branches, hasChildren, isContext }, bounds) {
    this.element.className = isContext ? "context" : "";
    setText(this.#name, device.name);
    this.#name.title = describe(device);
    this.#draw(device, branches.slice(-LEVELS_MAX), hasChildren);
    setText(this.#note, note(device, branches.length));
    this.#note.className = device.queued_writes > 0 ? "note warn" : "note";
    this.#note.hidden = this.#note.textContent === "";
    setText(this.#mappedText, format.size(device.mapped_bytes));
    this.#mappedText.setAttribute("value", device.mapped_bytes);

    const quick = (share) => latency(quantile(share, rates.latencies, bounds), bounds);
    this.#cell("size", format.size(device.size));
    this.#cell("requests", rates.requests > 0 ? format.count(rates.requests) : NOTHING);
    this.#cell("readBytes", rates.readBytes > 0 ? format.size(rates.readBytes) : NOTHING);
    this.#cell("writtenBytes", rates.writtenBytes > 0 ? format.size(rates.writtenBytes) : NOTHING);
    this.#cell("p50", quick(0.5));
    this.#cell("p99", quick(0.99));
  }

  #cell(key, text) {
    setText(this.#cells[key], text);
    this.#cells[key].classList.toggle("idle", text === NOTHING);
  }

  #draw(device, levels, hasChildren) {
    this.#heading.replaceChildren(lineage(device, levels, hasChildren), this.#name, this.#note);
    this.element.style.setProperty("--indent", `${(levels.length + 1) * LEVEL + 12}px`);
    this.#mapped.replaceChildren(this.#mappedText, bar(device.mapped_bytes / Math.max(1, device.size)));
  }
}

function describe(device) {
  const from = device.parent ? `, made from ${device.parent}` : "";
  return `${device.name}: ${lineageKind(device)}${from}, ${device.created}, thin id ${device.id}`;
}

function note(device, level) {
  const notes = [];
  if (level > LEVELS_MAX) {
    notes.push(`level ${level}`);
  }
  if (device.queued_writes > 0) {
    notes.push(`${format.plural(device.queued_writes, "write")} waiting`);
  }
  if (device.open_count > 0) {
    notes.push("in use");
  }
  if (device.read_only && !isSnapshot(device)) {
    notes.push("read only");
  }
  return notes.join(", ");
}

/** A time that requests took, for people. */
export function latency(microseconds, bounds) {
  if (microseconds === null) {
    return NOTHING;
  }
  return microseconds === Infinity ? `> ${format.duration(bounds.at(-1))}` : format.duration(microseconds);
}

/** The rows to show: those whose names have the filter in them, and, in the tree, what those were made from. */
function arranged(rows, filter, order) {
  const matches = (row) => row.device.name.toLowerCase().includes(filter);
  const value = ORDERS[order];
  if (value) {
    const flat = rows.filter(matches).sort((one, other) => value(other) - value(one));
    return flat.map((row) => ({ ...row, branches: [], hasChildren: false }));
  }
  const byName = new Map(rows.map((row) => [row.device.name, row]));
  const wanted = new Set();
  for (let row of rows.filter(matches)) {
    while (row && !wanted.has(row)) {
      wanted.add(row);
      row = byName.get(row.device.parent);
    }
  }
  const tree = inTreeOrder(rows.filter((row) => wanted.has(row)));
  return tree.map((row) => ({ ...row, isContext: !matches(row) }));
}

/**
 * Parents first, as `thinctl tree` has them. `branches` has, for each level above a row, whether it is the
 * last one there.
 */
function inTreeOrder(rows) {
  const names = new Set(rows.map((row) => row.device.name));
  const children = new Map();
  const roots = [];
  for (const row of rows) {
    const { parent } = row.device;
    const siblings = names.has(parent) ? children.get(parent) ?? [] : roots;
    siblings.push(row);
    if (siblings !== roots) {
      children.set(parent, siblings);
    }
  }
  const ordered = [];
  const stack = [];
  const visit = (siblings, branches) => {
    const below = siblings.map((row, index) => ({ row, branches: [...branches, index === siblings.length - 1] }));
    stack.push(...below.reverse());
  };
  roots.reverse().forEach((row) => stack.push({ row, branches: [] }));
  while (stack.length > 0) {
    const { row, branches } = stack.pop();
    const below = children.get(row.device.name) ?? [];
    ordered.push({ ...row, branches, hasChildren: below.length > 0 });
    visit(below, branches);
  }
  return ordered;
}

/** A row's part of the tree: lines from above, to the left and down, and what it is. */
function lineage(device, branches, hasChildren) {
  const level = (index) => index * LEVEL + LEVEL;
  const depth = branches.length;
  const drawn = shape("svg", { class: "lineage", width: level(depth) + 8, role: "img" });
  drawn.append(shape("title", {}, lineageKind(device)));
  const line = (x1, y1, x2, y2) => drawn.append(shape("line", { x1, y1, x2, y2 }));
  branches.forEach((isLast, index) => {
    const isOwn = index === depth - 1;
    if (isOwn || !isLast) {
      line(level(index), 0, level(index), isOwn && isLast ? "50%" : "100%");
    }
  });
  if (depth > 0) {
    line(level(depth - 1), "50%", level(depth), "50%");
  }
  if (hasChildren) {
    line(level(depth), "50%", level(depth), "100%");
  }
  drawn.append(shape("circle", { class: `node ${lineageKind(device)}`, cx: level(depth), cy: "50%", r: 4.5 }));
  return drawn;
}

function legendEntry(kind) {
  const node = shape("circle", { class: `node ${kind}`, cx: 6, cy: 6, r: 4.5 });
  return element("span", {}, shape("svg", { "aria-hidden": "true" }, node), kind);
}
