// One flow, whole: both socket pairs, its counters and rates, its limits, what the kernel says of
// both legs, what happened to it, and why it ended.

import { Chart } from "./chart.js";
import { reasonTone, place, stateTone } from "./columns.js";
import { byId, element, setText } from "./dom.js";
import { clock, duration, rate, size, whole, words } from "./format.js";

const RATES_SHOWN = 90;
const LEG_WORDS = { client: "Client’s leg", endpoint: "Endpoint’s leg" };

// How values are written, by their key; others are written as they are.
const WRITTEN = {
  rtt: duration,
  min_rtt: duration,
  busy: duration,
  rwnd_limited: duration,
  sndbuf_limited: duration,
  blocked: duration,
  held: duration,
  delivery_rate: rate,
  half_closed: clock,
  unsent: ({ original, reply }) => `${size(original)} from the client, ${size(reply)} to it`,
};

export class Detail {
  /** @param {Function} left Called when the person has left the detail. */
  constructor(left) {
    this.dialog = byId("detail");
    this.title = byId("detail-title");
    this.body = byId("detail-body");
    this.id = null;
    byId("detail-close").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.dialog.close();
    });
    this.dialog.addEventListener("close", () => {
      this.id = null;
      left();
    });
  }

  get isOpen() {
    return this.dialog.open;
  }

  /** Show a flow from now on. */
  open(id) {
    this.id = id;
    this.body.replaceChildren(element("p", { class: "empty" }, "asking…"));
    setText(this.title, `Flow ${id}`);
    this.parts = null;
    if (!this.dialog.open) this.dialog.showModal();
  }

  close() {
    this.dialog.close();
  }

  /** Say why there is nothing to show. */
  fail(message) {
    this.parts = null;
    this.body.replaceChildren(element("p", { class: "empty" }, message));
  }

  /** Show what is known of the flow now. */
  show(entry) {
    if (this.parts === null) this.furnish();
    const { row } = entry;
    setText(this.title, `Flow ${row.id} · ${row.transport} · ${row.listener}`);
    this.parts.pairs.replaceChildren(...pairs(row));
    this.parts.facts.replaceChildren(...facts(entry));
    this.parts.legs.replaceChildren(...legs(row));
    this.parts.history.replaceChildren(...history(entry));
    this.parts.chart.show(entry.samples, RATES_SHOWN);
  }

  furnish() {
    const figure = element("figure");
    this.parts = {
      pairs: element("div", { class: "pairs" }),
      facts: element("dl", { class: "facts" }),
      legs: element("div", { class: "legs" }),
      history: element("ol", { class: "history" }),
      chart: new Chart(figure, "Rates", { original: "→ from client", reply: "← to client" }, rate,
        1024),
    };
    this.body.replaceChildren(this.parts.pairs, this.parts.facts, figure, this.parts.legs,
      element("h3", {}, "History"), this.parts.history,
      element("p", {}, element("a", { href: `/api/v1/flows/${this.id}` }, "this flow as JSON")));
  }
}

function pairs(row) {
  const pair = (name, from, to) => element("p", { class: "pair" },
    element("span", { class: "pair-name" }, name),
    element("code", {}, place(from)), element("span", { "aria-label": "to" }, "→"),
    element("code", {}, place(to)));
  return [
    pair("client’s pair", row.client.remote, row.client.local),
    pair("endpoint’s pair", row.endpoint.local, row.endpoint.remote),
  ];
}

function facts(entry) {
  const { row, rates } = entry;
  const now = Date.now() / 1000;
  const isLive = row.closed === null || row.closed === undefined;
  const found = [
    isLive ? ["State", words(row.state), stateTone(row.state)]
      : ["Ended", `${words(row.close_reason)}, by ${words(row.close_side) || "nobody"}`,
        reasonTone(row.close_reason)],
    ["Upstream", row.upstream],
    ["Source", row.source],
    ["From client", traffic(row.original, rates.original)],
    ["To client", traffic(row.reply, rates.reply)],
    ["Opened", `${clock(row.opened)}, ${duration((isLive ? now : row.closed) - row.opened)} `
      + (isLive ? "ago" : "before its end")],
    ["Last active", clock(row.last_active)],
    ["Limits", limits(row.limits)],
  ];
  for (const [key, value] of Object.entries(row)) {
    if (SHOWN.has(key) || value === null || value === "") continue;
    found.push([capital(words(key)), plain(value, key)]);
  }
  return found.flatMap(([name, value, tone]) => [
    element("dt", {}, name), element("dd", { "data-tone": tone ?? null }, value),
  ]);
}

const SHOWN = new Set(["id", "listener", "upstream", "transport", "state", "client", "endpoint",
  "opened", "last_active", "closed", "original", "reply", "close_reason", "close_side", "limits",
  "source", "legs"]);

function traffic(direction, perSecond) {
  const packets = direction.packets === null ? "" : `, ${whole(direction.packets)} datagrams`;
  const now = rate(perSecond);
  return `${size(direction.bytes)}${packets}${now ? `, ${now}` : ""}`;
}

function limits(values) {
  return Object.entries(values).map(([name, value]) => `${words(name)} ${limit(name, value)}`)
    .join(", ");
}

function limit(name, value) {
  if (name === "bytes") return size(value);
  if (name.startsWith("bandwidth")) return `${size(value)}/s`;
  if (name === "datagram_rate") return `${whole(value)}/s`;
  if (name === "amplification") return `${value} times`;
  return duration(value);
}

/** What the kernel says of the flow's two sockets, and when it was asked. */
function legs({ legs: known }) {
  if (!known) return [];
  const sections = Object.entries(LEG_WORDS).filter(([leg]) => known[leg]).map(([leg, name]) =>
    element("section", {}, element("h3", {}, name),
      element("dl", { class: "facts" }, ...Object.entries(known[leg]).flatMap(([key, value]) => [
        element("dt", {}, capital(words(key))), element("dd", {}, plain(value, key)),
      ]))));
  const asked = element("p", { class: "asked" }, `The kernel was asked at ${clock(known.sampled)}.`);
  return known.sampled ? [...sections, asked] : sections;
}

function history({ row, history: events }) {
  const told = events.length && events[0].event === "opened" ? events
    : [{ at: row.opened, event: "opened" }, ...events];
  const isTold = told.some(({ event }) => event === row.close_reason);
  const whole = row.close_reason && !isTold
    ? [...told, { at: row.closed, event: row.close_reason }] : told;
  return whole.map(({ at, event }) =>
    element("li", {}, element("time", {}, clock(at)), ` ${words(event)}`));
}

function plain(value, key = "") {
  if (value === null) return "–";
  if (key in WRITTEN) return WRITTEN[key](value) || "0";
  if (Array.isArray(value)) return value.map((each) => plain(each)).join("; ");
  if (typeof value === "object") {
    return Object.entries(value).map(([name, each]) => `${words(name)} ${plain(each, name)}`)
      .join(", ");
  }
  return words(value);
}

function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
