// Values for people.

const UNITS = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/** As `thinctl` has it: at most four digits, and never more than it is. */
export function size(bytes) {
  if (bytes < 1024) {
    return `${Math.floor(bytes)} B`;
  }
  let [value, unit] = [bytes / 1024, 0];
  while (value >= 1024 && unit + 1 < UNITS.length) {
    value /= 1024;
    unit += 1;
  }
  const digits = value < 10 ? 2 : value < 100 ? 1 : 0;
  const scale = 10 ** digits;
  return `${(Math.floor(value * scale) / scale).toFixed(digits)} ${UNITS[unit]}`;
}

/** A number of things, or of things a second. */
export function count(value) {
  if (value >= 1e6) {
    return `${(value / 1e6).toFixed(value < 1e7 ? 1 : 0)} M`;
  }
  if (value >= 1e4) {
    return `${(value / 1e3).toFixed(value < 1e5 ? 1 : 0)} k`;
  }
  const digits = value < 10 && !Number.isInteger(value) ? 1 : 0;
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

export function percent(share) {
  const value = share * 100;
  return `${value < 10 ? Math.floor(value * 10) / 10 : Math.floor(value)} %`;
}

/** A time that something took, in microseconds. */
export function duration(microseconds) {
  for (const [limit, factor, unit] of [[1e3, 1, "µs"], [1e6, 1e3, "ms"], [Infinity, 1e6, "s"]]) {
    if (microseconds < limit) {
      const value = microseconds / factor;
      return `${value.toFixed(value < 10 ? 1 : 0)} ${unit}`;
    }
  }
}

/** An hour and minute, with seconds if wanted, as the clocks here have it. */
export function clock(date, seconds = false) {
  const parts = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
  return date.toLocaleTimeString([], seconds ? { ...parts, second: "2-digit" } : parts);
}

/** The clock, and the day unless it is today. */
export function moment(date) {
  const isToday = date.toDateString() === new Date().toDateString();
  const day = date.toLocaleDateString([], { day: "numeric", month: "short", year: "numeric" });
  return isToday ? clock(date, true) : `${day}, ${clock(date, true)}`;
}

export function plural(number, word) {
  return `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;
}
