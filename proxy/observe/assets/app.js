// The page: joins what is known (store.js), where it comes from (feed.js) and how it is shown.
//
// What is chosen (tab, filters, order, the open flow) stands behind the # of the address, so that a
// link shows somebody else the same. The page is drawn once for any number of changes, and not more
// often than the eye can follow.

import { Chart } from "./chart.js";
import {
  CLOSED_COLUMNS, FLOW_COLUMNS, LIMIT_COLUMNS, LISTENER_COLUMNS, UPSTREAM_COLUMNS, limitRows,
} from "./columns.js";
import { Detail } from "./detail.js";
import { byId, element, offer, setText } from "./dom.js";
import { Feed } from "./feed.js";
import { rate, whole } from "./format.js";
import { Grid } from "./grid.js";
import { Store } from "./store.js";

const DRAW_EVERY = 500; // milliseconds
const SERIES_SHOWN = 120;
const FILTERS = ["text", "listener", "transport", "state", "reason"];
const THEMES = ["", "light", "dark"];

class App {
  constructor() {
    this.store = new Store();
    this.feed = new Feed(this.store, () => this.changed());
    this.tab = "flows";
    this.isPaused = false;
    this.isDue = false;
    this.drawn = 0;
    this.charts = {
      flows: new Chart(byId("chart-flows"), "Live flows", { flows: "flows" }, whole),
      bytes: new Chart(byId("chart-bytes"), "Payload",
        { original: "→ from clients", reply: "← to clients" }, rate, 1024),
    };
    this.detail = new Detail(() => this.wrote());
    this.grids = this.makeGrids();
    this.listen();
    this.read();
    this.feed.start();
    setInterval(() => this.changed(), 1000); // ages and idle times go on by themselves
  }

  makeGrids() {
    const sorted = () => this.wrote();
    const open = ({ row }) => this.openFlow(row.id);
    const key = ({ row }) => row.id;
    return {
      flows: new Grid("Live flows", FLOW_COLUMNS, { key, open, sorted, sort: "id",
        empty: () => this.emptyWords("No flow is live.") }),
      closed: new Grid("Closed flows", CLOSED_COLUMNS, { key, open, sorted, sort: "-closed",
        empty: () => this.emptyWords("No flow has ended.") }),
      listeners: new Grid("Listeners", LISTENER_COLUMNS, { key: (row) => row.listener,
        open: (row) => this.showListener(row.listener), sorted, sort: "listener",
        empty: () => "There is no listener." }),
      upstreams: new Grid("Upstreams", UPSTREAM_COLUMNS, {
        key: ({ upstream, endpoint, address }) =>
          `${upstream} ${endpoint.endpoint} ${address?.address}`,
        open: ({ endpoint, address }) => this.showEndpoint(address?.address ?? endpoint.endpoint),
        sorted, sort: "upstream",
        empty: () => "There is no endpoint." }),
      limits: new Grid("Limits", LIMIT_COLUMNS, {
        key: (row) => `${row.origin} ${row.for} ${row.limit}`, sorted, sort: "for",
        empty: () => "There is no limit." }),
    };
  }

  listen() {
    for (const tab of Object.keys(this.grids)) {
      byId(`tab-${tab}`).addEventListener("click", () => this.show(tab));
    }
    byId("tabs").addEventListener("keydown", (event) => this.tabKeyed(event));
    const form = byId("filters");
    form.addEventListener("input", () => this.filtered());
    form.addEventListener("reset", () => setTimeout(() => this.filtered()));
    form.addEventListener("submit", (event) => event.preventDefault());
    byId("theme").addEventListener("click", () => this.nextTheme());
    document.addEventListener("keydown", (event) => this.keyed(event));
    window.addEventListener("hashchange", () => this.read());
    this.dress(localStorage.getItem("theme") ?? "");
  }

  /** Something is new: draw, but not too often. */
  changed() {
    if (this.isDue) return;
    this.isDue = true;
    const wait = Math.max(0, this.drawn + DRAW_EVERY - performance.now());
    setTimeout(() => requestAnimationFrame(() => {
      this.isDue = false;
      this.drawn = performance.now();
      this.draw();
    }), wait);
  }

  draw() {
    this.drawHead();
    if (!this.isPaused) this.drawTable();
    if (this.detail.isOpen) this.drawDetail();
  }

  drawHead() {
    const { status, series } = this.store;
    const { kind, words } = this.feed.health;
    const health = byId("health");
    health.dataset.kind = kind;
    setText(health, words);
    if (status === null) return;
    const now = series.at(-1);
    const totals = {
      flows: `${whole(status.flows)} of ${whole(status.table_limit)}`,
      opened: now ? `${now.opened.toFixed(1)}/s` : "",
      refused: now ? `${now.refused.toFixed(1)}/s` : "",
      workers: String(status.workers.length),
    };
    byId("totals").replaceChildren(...Object.entries(totals).map(([name, value]) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, value))));
    this.charts.flows.show(series, SERIES_SHOWN);
    this.charts.bytes.show(series, SERIES_SHOWN);
    setText(byId("version"), `sockpair ${status.version}, process ${status.pid}`);
  }

  drawTable() {
    this.offerFilters();
    const { shown, all } = this.items();
    this.grids[this.tab].show(shown);
    const count = shown.length === all ? whole(all) : `${whole(shown.length)} of ${whole(all)}`;
    const { missing, silent } = this.tab === "flows" ? this.store : { missing: 0, silent: [] };
    setText(byId("count"), `${count} ${this.tab === "closed" ? "closed flows" : this.tab}`
      + (missing > 0 ? `, ${whole(missing)} smaller ones not shown` : "")
      + (silent.length > 0 ? `, none of worker ${silent.join(", ")}, which does not answer` : "")
      + (this.isPaused ? ", paused" : ""));
  }

  drawDetail() {
    const entry = this.store.find(this.detail.id);
    if (entry !== undefined) this.detail.show(entry);
  }

  /** What the table lists, and how many there would be without filters. */
  items() {
    const { store, tab } = this;
    if (tab === "listeners") return { shown: store.listeners, all: store.listeners.length };
    if (tab === "limits") {
      const rows = limitRows(store.limits);
      return { shown: rows, all: rows.length };
    }
    if (tab === "upstreams") {
      const rows = store.upstreams.flatMap(({ upstream, endpoints }) =>
        endpoints.flatMap((endpoint) => addresses(upstream, endpoint)));
      return { shown: rows, all: rows.length };
    }
    const entries = [...store[tab].values()];
    return { shown: entries.filter(this.filter()), all: entries.length };
  }

  /** The filters, as one question to an entry. */
  filter() {
    const wanted = this.wanted();
    const words = wanted.text.toLowerCase().split(/\s+/).filter(Boolean);
    return ({ row }) =>
      (!wanted.listener || row.listener === wanted.listener)
      && (!wanted.transport || row.transport === wanted.transport)
      && (this.tab !== "flows" || !wanted.state || row.state === wanted.state)
      && (this.tab !== "closed" || !wanted.reason || row.close_reason === wanted.reason)
      && (words.length === 0 || holds(row, words));
  }

  /** Why the table is empty: of what there is, or of what is looked for. */
  emptyWords(nothing) {
    if (this.store.status === null) return "asking…";
    return Object.values(this.wanted()).some(Boolean) ? "Nothing is left by the filters." : nothing;
  }

  wanted() {
    return Object.fromEntries(FILTERS.map((name) => [name, byId(`filter-${name}`).value]));
  }

  offerFilters() {
    const isFlows = this.tab === "flows" || this.tab === "closed";
    byId("filters").hidden = !isFlows;
    byId("filter-state").hidden = this.tab !== "flows";
    byId("filter-reason").hidden = this.tab !== "closed";
    const of = (read) => [...new Set(this.store.listeners.flatMap(read))].sort();
    offer(byId("filter-listener"), "every listener", of((each) => each.listener));
    offer(byId("filter-transport"), "every transport", of((each) => each.transport));
    offer(byId("filter-state"), "every state", of((each) => Object.keys(each.live)));
    offer(byId("filter-reason"), "every reason", of((each) => Object.keys(each.closed)));
    if (this.pending) this.fill(this.pending);
  }

  filtered() {
    this.pending = null;
    this.wrote();
    this.drawTable();
  }

  show(tab) {
    this.tab = tab;
    for (const each of Object.keys(this.grids)) {
      const button = byId(`tab-${each}`);
      button.setAttribute("aria-selected", each === tab);
      button.tabIndex = each === tab ? 0 : -1;
    }
    const main = byId("main");
    main.setAttribute("aria-labelledby", `tab-${tab}`);
    main.replaceChildren(this.grids[tab].node);
    this.wrote();
    this.drawTable();
  }

  showListener(name) {
    this.fill({ listener: name });
    this.show("flows");
  }

  showEndpoint(endpoint) {
    this.fill({ text: endpoint });
    this.show("flows");
  }

  /** Set the filters; those that are not named are emptied. */
  fill(values) {
    this.pending = null;
    for (const name of FILTERS) {
      const input = byId(`filter-${name}`);
      input.value = values[name] ?? "";
      // The words of a select come with the first answer: until then its value cannot be set.
      if ((values[name] ?? "") !== input.value) this.pending = values;
    }
  }

  async openFlow(id) {
    this.detail.open(id);
    this.wrote();
    await this.feed.watch(id, this.detail);
    this.changed();
  }

  /** Write what is chosen into the address. */
  wrote() {
    const params = new URLSearchParams();
    const wanted = this.pending ?? this.wanted();
    for (const [name, value] of Object.entries(wanted)) if (value) params.set(name, value);
    const { sort } = this.grids[this.tab];
    params.set("sort", sort);
    if (this.detail.isOpen) params.set("flow", this.detail.id);
    const hash = `#${this.tab}?${params}`;
    if (hash !== location.hash) history.replaceState(null, "", hash);
  }

  /** Choose what stands in the address. */
  read() {
    const [tab, query] = location.hash.slice(1).split("?");
    const params = new URLSearchParams(query ?? "");
    const chosen = Object.fromEntries(params);
    const shown = tab in this.grids ? tab : "flows";
    if (chosen.sort) this.grids[shown].order(chosen.sort);
    this.fill(chosen);
    const flow = /^\d{1,18}$/.test(chosen.flow ?? "") ? Number(chosen.flow) : null;
    if (flow !== null) this.openFlow(flow);
    this.show(shown);
  }

  tabKeyed(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step === undefined) return;
    const tabs = Object.keys(this.grids);
    const next = tabs[(tabs.indexOf(this.tab) + step + tabs.length) % tabs.length];
    this.show(next);
    byId(`tab-${next}`).focus();
    event.preventDefault();
  }

  keyed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || this.detail.isOpen) return;
    if (event.target.closest("input, select")) {
      if (event.key === "Escape") this.grids[this.tab].table.focus();
      return;
    }
    const tab = Object.keys(this.grids)[Number(event.key) - 1];
    if (event.key === "/") byId("filter-text").focus();
    else if (event.key === "p") this.pause();
    else if (tab !== undefined && event.key !== " ") this.show(tab);
    else return;
    event.preventDefault();
  }

  pause() {
    this.isPaused = !this.isPaused;
    this.drawTable();
  }

  nextTheme() {
    const now = document.documentElement.dataset.theme ?? "";
    const next = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
    localStorage.setItem("theme", next);
    this.dress(next);
  }

  dress(theme) {
    if (theme && THEMES.includes(theme)) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
    setText(byId("theme"), { light: "☀ light", dark: "☾ dark" }[theme] ?? "◐ auto");
  }
}

/** The rows of an endpoint: one for each address, and one where there is none. */
function addresses(upstream, endpoint) {
  const found = endpoint.addresses?.length ? endpoint.addresses : [null];
  return found.map((address) => ({ upstream, endpoint, address }));
}

/** Whether every word is somewhere in what a row names. */
function holds(row, words) {
  const text = [row.id, row.listener, row.upstream, row.client.remote, row.client.local,
    row.endpoint.local, row.endpoint.remote, row.source, row.server_name ?? ""].join(" ")
    .toLowerCase();
  return words.every((word) => text.includes(word));
}

new App();
