// Lines over time, with axes, units and the values under the pointer.

import { element, shape } from "./dom.js";
import * as format from "./format.js";

const HEIGHT = 150;
const LEFT = 62;
const RIGHT = 8;
const TOP = 10;
const BOTTOM = 22;

/** More points than that would be a smear. */
const POINTS_MAX = 360;

/** What samples have that adds up. */
const SUMS = ["seconds", "reads", "read_bytes", "writes", "written_bytes", "others"];

/** Less time than that is not drawn, in seconds. */
const SPAN_MIN = 120;

/** Distances of marks on the time axis, in seconds. */
const TIME_STEPS = [30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600];

/** A rate of a sample; none of one that covers no time. */
const rate = (value) => (sample) => (sample.seconds > 0 ? value(sample) / sample.seconds : null);

/** What is drawn: series of values, and a limit that the scale does not exceed. */
export const CHARTS = [
  {
    title: "Data used",
    isWide: true,
    text: format.size,
    base: 1024,
    limit: (sample) => sample.data_total_bytes,
    series: [{ name: "used", value: (sample) => sample.data_used_bytes }],
  },
  {
    title: "Metadata used",
    isWide: true,
    text: format.size,
    base: 1024,
    limit: (sample) => sample.metadata_total_bytes,
    series: [{ name: "used", value: (sample) => sample.metadata_used_bytes }],
  },
  {
    title: "Requests a second",
    text: format.count,
    base: 10,
    series: [
      { name: "reads", value: rate((sample) => sample.reads) },
      { name: "writes", value: rate((sample) => sample.writes) },
      { name: "others", value: rate((sample) => sample.others) },
    ],
  },
  {
    title: "Bytes a second",
    text: format.size,
    base: 1024,
    series: [
      { name: "read", value: rate((sample) => sample.read_bytes) },
      { name: "written", value: rate((sample) => sample.written_bytes) },
    ],
  },
  {
    title: "Writes waiting for space",
    text: format.count,
    base: 10,
    series: [{ name: "waiting", value: (sample) => sample.queued_writes }],
  },
];

export class Chart {
  #chart;
  #samples = [];
  #span = 0;
  #picture = shape("svg", { role: "img", tabindex: 0 });
  #readout = element("span", { class: "readout" });
  /** The sample that is pointed at. */
  #pointed = null;
  #scale = null;

  constructor(chart) {
    this.#chart = chart;
    this.figure = element(
      "figure",
      { class: chart.isWide ? "chart wide" : "chart" },
      element("figcaption", {}, element("span", { class: "title" }, chart.title), this.#readout),
      this.#picture,
    );
    this.#picture.addEventListener("pointermove", (event) => this.#pointAt(this.#nearest(event)));
    this.#picture.addEventListener("pointerleave", () => this.#pointAt(null));
    this.#picture.addEventListener("blur", () => this.#pointAt(null));
    this.#picture.addEventListener("keydown", (event) => this.#onKey(event));
    new ResizeObserver(() => this.#draw()).observe(this.figure);
  }

  /** Draws these samples, as far as they are from the last `span` seconds. */
  show(samples, span) {
    const end = samples.at(-1)?.time ?? 0;
    const recent = samples.filter((sample) => sample.time > end - span);
    this.#samples = merged(recent, span / POINTS_MAX);
    this.#span = span;
    if (!this.#samples.includes(this.#pointed)) {
      this.#pointed = null;
    }
    this.#draw();
  }

  #onKey(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") {
      this.#pointAt(null);
    } else if (step && this.#samples.length > 0) {
      event.preventDefault();
      const last = this.#samples.length - 1;
      const index = this.#pointed ? this.#samples.indexOf(this.#pointed) : last;
      this.#pointAt(this.#samples[Math.min(last, Math.max(0, index + step))]);
    }
  }

  #nearest({ clientX }) {
    if (this.#samples.length === 0) {
      return null;
    }
    const at = clientX - this.#picture.getBoundingClientRect().left;
    const distance = (sample) => Math.abs(this.#scale.x(sample.time) - at);
    return this.#samples.reduce((best, sample) => (distance(sample) < distance(best) ? sample : best));
  }

  #pointAt(sample) {
    if (sample !== this.#pointed) {
      this.#pointed = sample;
      this.#draw();
    }
  }

  #draw() {
    const width = this.#picture.clientWidth;
    if (width === 0) {
      return;
    }
    this.#picture.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    if (this.#samples.length === 0) {
      const text = shape("text", { x: width / 2, y: HEIGHT / 2, "text-anchor": "middle" }, "no samples yet");
      this.#picture.replaceChildren(text);
      return;
    }
    this.#scale = this.#scaled(width);
    this.#picture.replaceChildren(...this.#axes(width), ...this.#lines(), ...this.#cursor());
    this.#tell();
  }

  #scaled(width) {
    const values = this.#chart.series.flatMap(({ value }) => this.#samples.map(value));
    const limit = this.#chart.limit?.(this.#samples.at(-1)) ?? Infinity;
    const most = Math.max(...values, 0) || Math.min(limit, this.#chart.base);
    const step = valueStep(most, this.#chart.base);
    const top = Math.max(...values, Math.min(limit, step * Math.ceil((most * 1.05) / step)));
    const end = this.#samples.at(-1).time;
    const start = Math.min(this.#samples[0].time, end - Math.min(SPAN_MIN, this.#span));
    return {
      start,
      end,
      top,
      step,
      x: (time) => LEFT + ((time - start) / (end - start)) * (width - LEFT - RIGHT),
      y: (value) => HEIGHT - BOTTOM - (value / top) * (HEIGHT - TOP - BOTTOM),
    };
  }

  #axes(width) {
    const { start, end, top, step, x, y } = this.#scale;
    const drawn = [];
    for (let value = 0; value <= top; value += step) {
      drawn.push(
        shape("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }),
        shape("text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, this.#chart.text(value)),
      );
    }
    const places = Math.max(2, Math.floor((width - LEFT) / 80));
    const distance = TIME_STEPS.find((one) => (end - start) / one <= places) ?? TIME_STEPS.at(-1);
    const zone = new Date(end * 1000).getTimezoneOffset() * 60;
    const first = Math.ceil((start - zone) / distance) * distance + zone;
    for (let time = first; time <= end; time += distance) {
      const text = format.clock(new Date(time * 1000), distance < 60);
      // Half of it is on either side, and the last must not be cut off.
      const place = Math.min(x(time), width - text.length * 3.5);
      drawn.push(shape("text", { x: place, y: HEIGHT - 5, "text-anchor": "middle" }, text));
    }
    return drawn;
  }

  #lines() {
    const { x, y } = this.#scale;
    return this.#chart.series.flatMap(({ value }, index) => {
      const known = this.#samples.filter((sample) => value(sample) !== null);
      if (known.length === 0) {
        return [];
      }
      const place = (sample) => `${x(sample.time).toFixed(1)},${y(value(sample)).toFixed(1)}`;
      const line = `M${known.map(place).join("L")}`;
      const drawn = [shape("path", { class: `series-${index}`, d: line })];
      if (this.#chart.limit) {
        const area = `${line}V${y(0)}H${x(known[0].time).toFixed(1)}Z`;
        drawn.unshift(shape("path", { class: "area", d: area }));
      }
      const last = known.at(-1);
      drawn.push(shape("circle", { class: `series-${index}`, cx: x(last.time), cy: y(value(last)), r: 2.5 }));
      return drawn;
    });
  }

  #cursor() {
    const sample = this.#pointed;
    if (!sample) {
      return [];
    }
    const { x, y } = this.#scale;
    const at = x(sample.time);
    const drawn = [shape("line", { class: "cursor", x1: at, x2: at, y1: TOP, y2: HEIGHT - BOTTOM })];
    this.#chart.series.forEach(({ value }, index) => {
      if (value(sample) !== null) {
        drawn.push(shape("circle", { class: `series-${index}`, cx: at, cy: y(value(sample)), r: 3.5 }));
      }
    });
    return drawn;
  }

  /** Says the values pointed at, or else the latest, with words for those who do not see the picture. */
  #tell() {
    const sample = this.#pointed ?? this.#samples.at(-1);
    const limit = this.#chart.limit?.(sample);
    const values = this.#chart.series.map(({ name, value }, index) => {
      const known = value(sample);
      const share = limit && known !== null ? ` (${format.percent(known / limit)})` : "";
      const text = `${name} ${known === null ? "–" : this.#chart.text(known)}${share}`;
      return element("span", { class: `value series-${index}` }, text);
    });
    const at = format.clock(new Date(sample.time * 1000), true);
    const time = element("span", { class: "at" }, this.#pointed ? at : "");
    this.#readout.replaceChildren(time, ...values);
    const words = values.map((value) => value.textContent).join(", ");
    this.#picture.setAttribute("aria-label", `${this.#chart.title} at ${at}: ${words}. Arrow keys move in time.`);
  }
}

/** As the daemon makes one sample of several: the last of levels, the sum of what was done, the most that waited. */
function merged(samples, seconds) {
  const pieces = Map.groupBy(samples, (sample) => Math.floor(sample.time / seconds));
  return [...pieces.values()].map((piece) => piece.reduce((earlier, later) => {
    const sums = SUMS.map((key) => [key, earlier[key] + later[key]]);
    const queuedWrites = Math.max(earlier.queued_writes, later.queued_writes);
    return { ...later, ...Object.fromEntries(sums), queued_writes: queuedWrites };
  }));
}

/** A round distance of marks, so that three or so fit below this value. */
function valueStep(most, base) {
  const wanted = most / 3;
  const unit = base ** Math.floor(Math.log(wanted) / Math.log(base));
  const round = base === 10 ? [1, 2, 5] : [1, 2, 4, 8, 16, 32, 64, 128, 256, 512];
  const step = unit * (round.find((one) => one * unit >= wanted) ?? base);
  // There is no part of a request or of a byte to mark.
  return Math.max(step, 1);
}
