// Where the page's knowledge comes from: the API of the proxy that serves it, and nothing else.
//
// Flows are read again and again while the page can be seen; so are the listeners, the upstreams
// and the status. An answer that does not come is said at once, and asked for again ever later.

const OVERVIEW_EVERY = 2000; // milliseconds
const FLOWS_EVERY = 2000;
const RETRY_MOST = 15000;
const FLOWS_MOST = 10000; // rows asked for; the table says how many there are beyond
const CLOSED_MOST = 1000;

export class Feed {
  /**
   * @param {Store} store What is learned goes there.
   * @param {Function} changed Called when there is something new.
   */
  constructor(store, changed) {
    this.store = store;
    this.changed = changed;
    this.problems = new Map(); // by what was asked for
  }

  start() {
    this.repeat("overview", OVERVIEW_EVERY);
    this.repeat("flows", FLOWS_EVERY);
  }

  /** How the proxy is, or why that is not known: a kind for the colour, and words. */
  get health() {
    const { status } = this.store;
    const [problem] = this.problems.values();
    if (problem !== undefined) return { kind: "bad", words: `no answer: ${problem}` };
    if (status === null) return { kind: "wait", words: "connecting…" };
    if (status.draining) return { kind: "wait", words: "draining" };
    if (status.not_ready.length) return { kind: "bad", words: status.not_ready.join("; ") };
    return { kind: "good", words: "ready" };
  }

  /** Ask for one flow, for its detail. */
  async watch(id, detail) {
    try {
      const row = await ask(`/api/v1/flows/${id}`);
      const entry = this.store.find(id);
      if (entry === undefined) this.store[row.closed ? "close" : "open"](row, seconds());
      else entry.update(row);
    } catch (error) {
      if (detail.id === id && this.store.find(id) === undefined) detail.fail(error.message);
    }
  }

  /** Do something again and again: after a failure ever later, and not while nobody looks. */
  async repeat(step, every) {
    for (let failures = 0; ;) {
      try {
        if (!document.hidden) await this[step]();
        failures = 0;
        this.problems.delete(step);
      } catch (error) {
        failures += 1;
        this.problems.set(step, error.message);
      }
      this.changed();
      await pause(Math.min(every * 2 ** Math.min(failures, 5), RETRY_MOST));
    }
  }

  async overview() {
    const status = await ask("/api/v1/status");
    const { listeners } = await ask("/api/v1/listeners");
    const { upstreams } = await ask("/api/v1/upstreams");
    this.store.overview(status, listeners, upstreams, seconds());
  }

  async flows() {
    const { flows } = await ask(`/api/v1/flows?sort=bytes&limit=${FLOWS_MOST}`);
    const now = seconds();
    for (const row of flows) {
      this.store.count(row.id, row.original, row.reply, row.last_active, now);
    }
    const recent = await ask(`/api/v1/flows?recent=true&sort=opened&limit=${CLOSED_MOST}`);
    this.store.reset(flows, now);
    for (const row of recent.flows.reverse()) {
      if (!this.store.closed.has(row.id)) this.store.close(row, now);
    }
  }
}

/** Ask the API; the error of a refusal is its own words. */
async function ask(path) {
  const answer = await fetch(path, { headers: { Accept: "application/json" } });
  const value = await answer.json();
  if (!answer.ok) throw new Error(value.error ?? `${answer.status} ${answer.statusText}`);
  return value;
}

function seconds() {
  return Date.now() / 1000;
}

function pause(milliseconds) {
  return new Promise((resolve) => { setTimeout(resolve, milliseconds); });
}
