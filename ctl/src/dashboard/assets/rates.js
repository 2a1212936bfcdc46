// What is done now: the difference between this look at the daemon's counters and one some seconds ago.

/** The time that rates and latencies are about, in milliseconds. */
const WINDOW = 10_000;

const READS = ["read"];
const WRITES = ["write", "write_zeroes"];

export class Rates {
  /** Earlier looks, oldest first: `{ at, counters }`, the counters by device. */
  #looks = [];
  #bounds = [];

  /** Takes a look at a pool's devices. */
  look(devices, bounds, at = performance.now()) {
    this.#bounds = bounds;
    const counters = new Map(devices.map((device) => [device.uuid, new Map(
      device.operations.map((operation) => [operation.operation, operation]),
    )]));
    this.#looks.push({ at, counters });
    while (this.#looks.length > 2 && this.#looks[1].at <= at - WINDOW) {
      this.#looks.shift();
    }
  }

  /** What is done with a device; nothing is known at the first look. */
  of(uuid) {
    const first = this.#looks[0];
    const last = this.#looks.at(-1);
    const seconds = (last.at - first.at) / 1000;
    const now = last.counters.get(uuid) ?? new Map();
    const before = first.counters.get(uuid) ?? new Map();
    const rate = (names, value) => sum(names.map((name) => {
      const done = value(now.get(name)) - value(before.get(name));
      return seconds > 0 ? Math.max(0, done) / seconds : 0;
    }));
    const all = [...now.keys()];
    return {
      requests: rate(all, (operation) => operation?.count ?? 0),
      readBytes: rate(READS, (operation) => operation?.bytes ?? 0),
      writtenBytes: rate(WRITES, (operation) => operation?.bytes ?? 0),
      latencies: this.#latencies(now, before),
    };
  }

  /** How many reads and writes took how long. */
  #latencies(now, before) {
    const counts = new Array(this.#bounds.length + 1).fill(0);
    for (const name of [...READS, ...WRITES]) {
      const earlier = before.get(name)?.latency_counts;
      now.get(name)?.latency_counts.forEach((count, index) => {
        counts[index] += Math.max(0, count - (earlier?.[index] ?? 0));
      });
    }
    return counts;
  }

  /** The sum of what is done with several devices. */
  static total(rates) {
    const [first] = rates;
    return {
      requests: sum(rates.map((one) => one.requests)),
      readBytes: sum(rates.map((one) => one.readBytes)),
      writtenBytes: sum(rates.map((one) => one.writtenBytes)),
      latencies: (first?.latencies ?? []).map((_, index) => sum(rates.map((one) => one.latencies[index]))),
    };
  }
}

function sum(values) {
  return values.reduce((total, value) => total + value, 0);
}

/**
 * The time, in microseconds, that this share of requests did not exceed, evenly spread within a bucket;
 * `null` of no requests, `Infinity` beyond the last bound.
 */
export function quantile(share, counts, bounds) {
  const total = sum(counts);
  if (total === 0) {
    return null;
  }
  const wanted = share * total;
  let [below, low] = [0, 0];
  for (const [index, high] of bounds.entries()) {
    if (counts[index] > 0 && below + counts[index] >= wanted) {
      return low + ((high - low) * (wanted - below)) / counts[index];
    }
    below += counts[index];
    low = high;
  }
  return Infinity;
}
