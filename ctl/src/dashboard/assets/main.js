// Looks at the daemon every two seconds and shows one of its pools. While it does not answer, the page keeps what
// it had, says so, and goes on trying.

import { CHARTS, Chart } from "./charts.js";
import { ask, sleep, visible } from "./daemon.js";
import { Devices, latency } from "./devices.js";
import { bar, byId, element, setData, setText } from "./dom.js";
import { Events } from "./events.js";
import * as format from "./format.js";
import { Rates, quantile } from "./rates.js";

const LOOK_INTERVAL = 2000;

/** Samples of more than a day, at one in ten seconds, are not kept. */
const SAMPLES_MAX = 8640;

const devices = new Devices();
const events = new Events();
const charts = CHARTS.map((chart) => new Chart(chart));

/** What is shown: of which daemon, which pool, and what is remembered of it. */
let shown = { daemon: null, name: null, samples: [], rates: new Rates() };
/** The daemon's last answer, and when that came. */
let last = null;

const addressOf = (name) => `#${encodeURIComponent(name)}`;

function chosenPool(pools) {
  const isWanted = (pool) => location.hash === addressOf(pool.name);
  return pools.find(isWanted) ?? pools[0];
}

/** Whatever was remembered belongs to another daemon or pool. */
function startAnew(daemon, name) {
  if (shown.name !== name) {
    devices.reset();
  }
  shown = { daemon, name, samples: [], rates: new Rates() };
  drawCharts();
  events.follow(name);
}

async function look() {
  const status = await ask("/api/status");
  const pool = chosenPool(status.pools);
  const daemon = `${status.daemon_pid} ${status.started}`;
  if (shown.daemon !== daemon || shown.name !== pool.name) {
    startAnew(daemon, pool.name);
  }
  last = { status, at: new Date() };
  shown.rates.look(pool.devices, status.latency_bounds_us);
  showStatus(status, pool);
  const asked = shown;
  const news = await ask("/api/history", { pool: pool.name, after: asked.samples.at(-1)?.number ?? 0 });
  // Another pool may have been chosen meanwhile.
  if (news.length > 0 && asked === shown) {
    shown.samples = [...shown.samples, ...news].slice(-SAMPLES_MAX);
    drawCharts();
  }
}

function showStatus(status, { name, pool, devices: list }) {
  byId("loading").hidden = true;
  byId("pool").hidden = false;
  showPools(status.pools, name);
  showState(name, pool);
  showUsage("data", pool.data_used_bytes, pool.data_total_bytes, pool.space.low_water_percent);
  const metadataUsed = pool.metadata_used_bytes;
  showUsage("metadata", metadataUsed, pool.metadata_total_bytes, pool.space.low_water_percent,
    pool.metadata_reserve_bytes);
  const bounds = status.latency_bounds_us;
  const rows = list.map((device) => ({ device, rates: shown.rates.of(device.uuid) }));
  showRates(Rates.total(rows.map((row) => row.rates)), bounds);
  setText(byId("device-counts"),
    `${format.plural(pool.volumes, "volume")}, ${format.plural(pool.snapshots, "snapshot")}`);
  devices.show(pool, rows, bounds);
  setText(byId("about"), `thinpoold ${status.version}, process ${status.daemon_pid}, since ` +
    `${format.moment(new Date(status.started))}. Rates and latencies are those of the last ten seconds.`);
}

function showPools(pools, name) {
  const links = pools.map(({ name: other, pool }) => {
    const attributes = { href: addressOf(other), class: severity(pool), title: stateOf(pool) };
    const link = element("a", attributes, other);
    if (other === name) {
      link.setAttribute("aria-current", "page");
    }
    return link;
  });
  const signature = links.map((link) => link.outerHTML).join();
  // Whoever has the focus on a link keeps it.
  if (byId("pools").dataset.shown !== signature) {
    byId("pools").dataset.shown = signature;
    byId("pools").replaceChildren(...(links.length > 1 ? links : []));
  }
}

function severity(pool) {
  if (pool.mode !== "write" || pool.needs_check) {
    return "bad";
  }
  return pool.queued_writes > 0 ? "warn" : "good";
}

function stateOf(pool) {
  const mode = pool.mode.replaceAll("_", " ");
  return pool.needs_check ? `${mode}, needs check` : mode;
}

function showState(name, pool) {
  setText(byId("name"), name);
  byId("mode").className = `badge ${severity(pool)}`;
  setText(byId("mode"), stateOf(pool));
  setText(byId("place"), pool.path);
  const share = format.percent(pool.data_used_bytes / pool.data_total_bytes);
  document.title = `${severity(pool) === "good" ? "" : "! "}${name} ${share} – thinpool`;
  const mode = pool.mode === "write" ? [] : [`${stateOf(pool)}: ${pool.mode_reason}`];
  const queued = pool.queued_writes;
  const waiting = queued > 0 ? [`${format.plural(queued, "write")} waiting for data space`] : [];
  showNotice([...mode, ...waiting].join("; "), severity(pool));
}

function showNotice(text, kind) {
  byId("notice").hidden = text === "";
  byId("notice").className = `notice ${kind}`;
  setText(byId("notice"), text);
}

/** `reserve` is kept back, and not to be had by whoever wants more. */
function showUsage(store, used, total, lowWater, reserve = 0) {
  setData(byId(`${store}-used`), used, format.size(used));
  setText(byId(`${store}-total`), `of ${format.size(total)}`);
  const free = Math.max(0, total - used - reserve);
  const isLow = free * 100 < total * lowWater;
  const drawn = bar(used / total, 1 - lowWater / 100 - reserve / total);
  drawn.classList.toggle("low", isLow);
  const note = `${format.percent(used / total)} used, ${format.size(free)} free${isLow ? ": low" : ""}`;
  byId(`${store}-bar`).replaceChildren(drawn, element("span", { class: "bar-note" }, note));
}

function showRates(total, bounds) {
  const quick = (share) => latency(quantile(share, total.latencies, bounds), bounds);
  setText(byId("requests"), format.count(total.requests));
  setText(byId("throughput"),
    `${format.size(total.readBytes)}/s read, ${format.size(total.writtenBytes)}/s written`);
  setText(byId("p99"), quick(0.99));
  setText(byId("p50"), `p50 ${quick(0.5)}`);
}

function drawCharts() {
  const span = Number(document.querySelector("input[name=span]:checked").value);
  charts.forEach((chart) => chart.show(shown.samples, span));
}

function showConnection(isThere) {
  document.body.classList.toggle("gone", !isThere && last !== null);
  byId("connection").className = isThere ? "good" : "bad";
  setText(byId("connection"), isThere ? "live" : "no answer");
  if (isThere) {
    return;
  }
  if (last) {
    showNotice(`The daemon has not answered since ${format.clock(last.at, true)}. This is how things were then; ` +
      "asking again every two seconds.", "bad");
  } else {
    setText(byId("loading"), "The daemon does not answer. Asking again every two seconds.");
  }
}

async function run() {
  for (;;) {
    await visible();
    try {
      await look();
      showConnection(true);
    } catch (cause) {
      console.warn(`no answer: ${cause}`);
      showConnection(false);
    }
    await sleep(LOOK_INTERVAL);
  }
}

byId("charts").append(...charts.map((chart) => chart.figure));
byId("span").addEventListener("change", drawCharts);
window.addEventListener("hashchange", () => {
  if (last) {
    const pool = chosenPool(last.status.pools);
    startAnew(shown.daemon, pool.name);
    shown.rates.look(pool.devices, last.status.latency_bounds_us);
    showStatus(last.status, pool);
  }
});
run();
