// What is known of the proxy at this moment. Everything that grows has a bound.
//
// A flow is kept as an entry: its row, as the API tells it, and what only comes of watching it: the
// rates of its two directions, the last of them for a chart, and its history.

const CLOSED_MAX = 2000; // closed flows that can be looked at; the newest are kept
const HISTORY_MAX = 50; // of what happened to one flow
const RATES_MAX = 90; // samples for the chart of one flow
const SERIES_MAX = 120; // samples of the charts above

class Entry {
  constructor(row, now) {
    this.row = row;
    this.rates = { original: 0, reply: 0 };
    this.samples = []; // {at, original, reply}, bytes a second
    this.history = []; // {at, event, ...}
    this.counted = now;
  }

  /** Take over a newer row, or parts of one. */
  update(row) {
    this.row = { ...this.row, ...row };
  }

  /** Take over newer counters; what they rose by since is the rate. */
  count(original, reply, now) {
    const seconds = Math.max(now - this.counted, 0.001);
    this.rates = {
      original: Math.max(0, original - this.row.original.bytes) / seconds,
      reply: Math.max(0, reply - this.row.reply.bytes) / seconds,
    };
    this.counted = now;
    push(this.samples, { at: now, ...this.rates }, RATES_MAX);
  }

  /** Write down what happened. */
  note(event, at) {
    push(this.history, { at, event }, HISTORY_MAX);
  }
}

export class Store {
  constructor() {
    this.flows = new Map(); // by id
    this.closed = new Map(); // by id, oldest first
    this.silent = []; // workers that did not answer then, whose flows the table did not tell
    this.missing = 0; // live flows that the table did not tell, because there are too many
    this.listeners = [];
    this.upstreams = [];
    this.limits = { configured: [], orders: [] };
    this.status = null;
    this.series = []; // {at, flows, original, reply, opened, refused}
    this.totals = null;
  }

  /** Begin anew with these rows; the entries of flows that are still there live on. */
  reset(rows, now) {
    const before = this.flows;
    this.flows = new Map();
    for (const row of rows) {
      const entry = before.get(row.id) ?? new Entry(row, now);
      entry.update(row);
      this.flows.set(row.id, entry);
    }
  }

  /** Something happened to a flow; its row is as it was then. */
  happen({ event, flow, time, limit }, now) {
    if (event === "closed") this.close(flow, now);
    else this.change(limit ? `limited: ${limit}` : event, flow, time, now);
  }

  change(event, row, at, now) {
    const entry = this.flows.get(row.id) ?? new Entry(row, now);
    entry.update(row);
    entry.note(event, at);
    this.flows.set(row.id, entry);
  }

  /** A flow has ended. */
  close(row, now) {
    const entry = this.flows.get(row.id) ?? this.closed.get(row.id) ?? new Entry(row, now);
    this.flows.delete(row.id);
    entry.update(row);
    entry.rates = { original: 0, reply: 0 };
    entry.note(row.close_reason, row.closed);
    this.closed.delete(row.id);
    this.closed.set(row.id, entry);
    this.forget();
  }

  /** Flows that ended before we came, or while we were away; the newest first. */
  remember(rows, now) {
    const later = this.closed;
    this.closed = new Map();
    for (const row of [...rows].reverse()) {
      this.closed.set(row.id, later.get(row.id) ?? new Entry(row, now));
    }
    for (const [id, entry] of later) if (!this.closed.has(id)) this.closed.set(id, entry);
    this.forget();
  }

  forget() {
    while (this.closed.size > CLOSED_MAX) this.closed.delete(this.closed.keys().next().value);
  }

  /** What some flows have moved so far; the others have moved nothing since the last time. */
  countAll(flows, now) {
    const moved = new Set();
    for (const { id, original, reply, last_active } of flows) {
      const entry = this.flows.get(id);
      if (entry === undefined) continue;
      moved.add(id);
      entry.count(original.bytes, reply.bytes, now);
      entry.update({ original, reply, last_active });
    }
    for (const [id, entry] of this.flows) {
      if (!moved.has(id) && (entry.rates.original || entry.rates.reply)) {
        entry.count(entry.row.original.bytes, entry.row.reply.bytes, now);
      }
    }
  }

  /** The house as a whole, as it is now. */
  overview(status, listeners, upstreams, limits, now) {
    this.status = status;
    this.limits = limits;
    this.listeners = listeners;
    this.upstreams = upstreams;
    const totals = total(status, listeners, now);
    const before = this.totals;
    this.totals = totals;
    if (before === null) return;
    const seconds = Math.max(now - before.at, 0.001);
    const rise = (key) => Math.max(0, totals[key] - before[key]) / seconds;
    push(this.series, {
      at: now,
      flows: totals.flows,
      original: rise("original"),
      reply: rise("reply"),
      opened: rise("opened"),
      refused: rise("refused"),
    }, SERIES_MAX);
  }

  /** An entry, live or closed. */
  find(id) {
    return this.flows.get(id) ?? this.closed.get(id);
  }
}

function total(status, listeners, now) {
  const sum = (value) => listeners.reduce((all, each) => all + value(each), 0);
  return {
    at: now,
    flows: status.flows,
    original: sum((each) => each.original.received),
    reply: sum((each) => each.reply.received),
    opened: sum((each) => each.opened),
    refused: sum((each) => added(each.refused)),
  };
}

/** The sum of counts by word. */
export function added(counts) {
  return Object.values(counts).reduce((all, count) => all + count, 0);
}

function push(list, item, most) {
  list.push(item);
  if (list.length > most) list.shift();
}
