// Where the page's knowledge comes from: the API of the proxy that serves it, and nothing else.
//
// Flows come by the event stream: first the table, then whatever happens, and once a second what
// was moved. The house as a whole (status, listeners, upstreams, limits) is asked for again and again. Both
// rest while nobody looks. An answer that does not come is said at once, and asked for ever later.

const OVERVIEW_EVERY = 2000; // milliseconds
const RETRY_MOST = 15000;
const FLOWS_MOST = 10000; // rows of the table that are asked for, the largest first
const CLOSED_MOST = 1000;
const STREAM = `/api/v1/events?counters=true&sort=bytes&limit=${FLOWS_MOST}`;
const CHANGES = ["opened", "established", "assured", "half_closed", "limited", "closed"];

export class Feed {
  /**
   * @param {Store} store What is learned goes there.
   * @param {Function} changed Called when there is something new.
   */
  constructor(store, changed) {
    this.store = store;
    this.changed = changed;
    this.problems = new Map(); // by what was asked for
    this.stream = null;
    this.detail = null; // what shows one flow
    this.failures = 0; // of the stream, one after the other
  }

  start() {
    this.repeat("overview", OVERVIEW_EVERY);
    this.listen();
    document.addEventListener("visibilitychange", () => this.listen());
  }

  /** Have the stream while somebody looks. */
  listen() {
    this.stream?.close();
    this.stream = document.hidden ? null : this.open();
  }

  open() {
    const stream = new EventSource(STREAM);
    let rows = [];
    const on = (name, take) => stream.addEventListener(name, ({ data }) => {
      take(JSON.parse(data));
      this.changed();
    });
    on("snapshot", ({ matched, silent }) => {
      rows = [];
      this.store.silent = silent;
      this.store.missing = Math.max(0, matched - FLOWS_MOST);
    });
    on("flow", ({ flow }) => rows.push(flow));
    on("live", () => {
      this.store.reset(rows, seconds());
      rows = [];
      this.failures = 0;
      this.problems.delete("events");
      this.recent();
    });
    for (const name of CHANGES) {
      on(name, (event) => this.store.happen(event, seconds()));
    }
    on("counters", ({ flows }) => this.store.countAll(flows, seconds()));
    stream.addEventListener("error", () => this.broke(stream));
    return stream;
  }

  /** The stream has ended: the browser opens it again, unless it was refused. */
  broke(stream) {
    this.problems.set("events", "the stream of events broke");
    this.changed();
    if (stream !== this.stream || stream.readyState !== EventSource.CLOSED) return;
    this.failures += 1;
    setTimeout(() => this.listen(), delay(OVERVIEW_EVERY, this.failures));
  }

  /** What had ended before the stream began. */
  async recent() {
    try {
      const { flows } = await ask(`/api/v1/flows?recent=true&sort=opened&limit=${CLOSED_MOST}`);
      this.store.remember(flows, seconds());
      this.changed();
    } catch {
      // The overview asks the same server, and says what is wrong.
    }
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

  /** Ask for one flow, for its detail: now, and again and again while that is open. */
  async watch(id, detail) {
    this.detail = detail;
    try {
      const row = await ask(`/api/v1/flows/${id}`);
      const entry = this.store.find(id);
      if (entry !== undefined) entry.update(row);
      else if (row.closed) this.store.close(row, seconds());
      else this.store.change("opened", row, row.opened, seconds());
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
      await pause(delay(every, failures));
    }
  }

  async overview() {
    const status = await ask("/api/v1/status");
    const { listeners } = await ask("/api/v1/listeners");
    const { upstreams } = await ask("/api/v1/upstreams");
    const limits = await ask("/api/v1/limits");
    this.store.overview(status, listeners, upstreams, limits, seconds());
    const { id } = this.detail ?? { id: null };
    if (this.store.flows.has(id)) await this.watch(id, this.detail);
  }
}

/** Ask the API; the error of a refusal is its own words. */
async function ask(path) {
  const answer = await fetch(path, { headers: { Accept: "application/json" } });
  const value = await answer.json();
  if (!answer.ok) throw new Error(value.error ?? `${answer.status} ${answer.statusText}`);
  return value;
}

/** How long to wait, in milliseconds, after so many failures. */
function delay(every, failures) {
  return Math.min(every * 2 ** Math.min(failures, 5), RETRY_MOST);
}

function seconds() {
  return Date.now() / 1000;
}

function pause(milliseconds) {
  return new Promise((resolve) => { setTimeout(resolve, milliseconds); });
}
