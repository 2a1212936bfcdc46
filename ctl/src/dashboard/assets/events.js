// What has happened to a pool, latest first.

import { byId, element } from "./dom.js";
import { ask, sleep } from "./daemon.js";
import * as format from "./format.js";

/** How many are shown. */
const EVENTS_MAX = 300;

/** How long to wait after an answer without events, or none at all, in milliseconds. */
const PAUSE = 2000;

const mode = (name) => name.replaceAll("_", " ");
const stores = { data: "Data", metadata: "Metadata" };

/** What each kind says, and how bad it is. */
const KINDS = {
  opened: (event) => [
    "good",
    event.replayed_records > 0
      ? `Opened; ${format.plural(event.replayed_records, "change")} replayed from the intent log`
      : "Opened",
  ],
  mode_changed: (event) => [
    event.to === "write" ? "good" : "bad",
    `Mode ${mode(event.to)}, was ${mode(event.from)}${event.reason ? `: ${event.reason}` : ""}`,
  ],
  low_water: (event) => [
    "warn",
    `${stores[event.store]} space is low: ${format.size(event.free_bytes)} of ${format.size(event.total_bytes)} ` +
      `free, less than ${event.percent} %`,
  ],
  grown: (event) => [
    "good",
    `${stores[event.store]} store grown from ${format.size(event.from_bytes)} to ${format.size(event.to_bytes)}`,
  ],
  no_space_timeout: (event) => ["bad", `Writes waited ${event.seconds} s for space, and failed`],
  auto_grow_failed: (event) => ["bad", `The data store could not grow to ${format.size(event.bytes)}: ${event.reason}`],
};

export class Events {
  #following = null;

  /** Shows the events of this pool from now on. */
  follow(pool) {
    this.#following?.abort();
    this.#following = new AbortController();
    byId("events").replaceChildren();
    byId("no-events").hidden = false;
    this.#run(pool, this.#following.signal);
  }

  async #run(pool, signal) {
    let after = 0;
    while (!signal.aborted) {
      let events = [];
      try {
        events = await ask("/api/events", { pool, after }, signal);
      } catch {
        // Whether the daemon is there is told elsewhere.
      }
      if (signal.aborted) {
        return;
      }
      if (events.length === 0) {
        await sleep(PAUSE);
        continue;
      }
      after = events.at(-1).number;
      show(events);
    }
  }
}

function show(events) {
  const list = byId("events");
  list.prepend(...events.map(entry).reverse());
  while (list.children.length > EVENTS_MAX) {
    list.lastElementChild.remove();
  }
  byId("no-events").hidden = true;
}

function entry(event) {
  const [severity, text] = KINDS[event.event]?.(event) ?? ["warn", JSON.stringify(event)];
  const time = element("time", { datetime: event.time, title: event.time }, format.moment(new Date(event.time)));
  return element("li", { class: severity, "data-event": event.event }, element("span", {}, text), time);
}
