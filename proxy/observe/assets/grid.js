// A table of any number of rows, of which only those that can be seen exist as elements.
//
// The rows on the screen are a pool that is written anew when the data changes or the table is
// scrolled; two empty rows above and below are as high as all the others would be. So five thousand
// rows cost what thirty do. Rows have one fixed height (--row in the style sheet) for that.
//
// By keyboard it is one place to tab to, in which the arrow keys move from row to row.

import { element, setText } from "./dom.js";

const MARGIN = 6; // rows made beyond each edge, so that scrolling shows no gap

let serial = 0;

export class Grid {
  /**
   * @param {string} label What it lists, for those who hear it.
   * @param {Array} columns See columns.js.
   * @param {Object} options
   *   key: from an item to what it is known by;
   *   open: called with an item that was chosen; null where there is nothing to open;
   *   sort: the name of the column it is sorted by at first, with "-" before it for falling;
   *   sorted: called when another order was chosen;
   *   empty: from nothing to the words where no row is to be seen.
   */
  constructor(label, columns, { key, open = null, sort, sorted = () => {}, empty }) {
    this.columns = columns;
    this.key = key;
    this.open = open;
    this.empty = empty;
    this.sorted = sorted;
    this.items = [];
    this.pool = [];
    this.active = null; // the key of the row that the keyboard is at
    this.name = `grid-${serial += 1}`;
    this.heads = new Map();
    this.above = space();
    this.below = space();
    this.body = element("tbody", {}, this.above, this.below);
    this.table = element("table", { role: "grid", tabindex: "0", "aria-label": label },
      element("thead", {}, element("tr", {}, ...columns.map((column) => this.head(column)))),
      this.body);
    this.nothing = element("p", { class: "empty" });
    this.node = element("div", { class: "scroll" }, this.table, this.nothing);
    this.node.addEventListener("scroll", () => this.draw(), { passive: true });
    this.table.addEventListener("keydown", (event) => this.keyed(event));
    this.body.addEventListener("click", (event) => this.clicked(event));
    new ResizeObserver(() => this.draw()).observe(this.node);
    this.order(sort);
  }

  /** Sort by a column: its name, with "-" before it for falling. */
  order(sort) {
    this.falling = sort.startsWith("-");
    this.by = this.columns.find((column) => column.name === sort.replace(/^-/, ""))
      ?? this.columns[0];
    this.sort = (this.falling ? "-" : "") + this.by.name;
    for (const [column, head] of this.heads) {
      const here = column === this.by;
      head.setAttribute("aria-sort",
        here ? (this.falling ? "descending" : "ascending") : "none");
    }
  }

  /** Show these items, in the order that was chosen. */
  show(items) {
    const { value } = this.by;
    const sign = this.falling ? -1 : 1;
    this.items = items
      .map((item) => [value(item), item])
      .sort(([one], [other]) => sign * compare(one, other))
      .map(([, item]) => item);
    this.table.setAttribute("aria-rowcount", this.items.length + 1);
    setText(this.nothing, this.items.length ? "" : this.empty());
    this.draw();
  }

  /** Write the rows that can be seen. */
  draw() {
    const height = this.rowHeight();
    const first = Math.max(0, Math.floor(this.node.scrollTop / height) - MARGIN);
    const fitting = Math.ceil(this.node.clientHeight / height) + 2 * MARGIN;
    const last = Math.min(this.items.length, first + fitting);
    this.above.style.height = `${first * height}px`;
    this.below.style.height = `${Math.max(0, this.items.length - last) * height}px`;
    while (this.pool.length < last - first) this.pool.push(this.makeRow());
    this.pool.forEach((row, place) => {
      const index = first + place;
      if (index < last) {
        this.write(row, this.items[index], index);
        if (!row.node.isConnected) this.body.insertBefore(row.node, this.below);
      } else {
        row.node.remove();
      }
    });
    this.point();
  }

  rowHeight() {
    return parseFloat(getComputedStyle(this.table).getPropertyValue("--row")) || 34;
  }

  head(column) {
    const button = element("button", { type: "button", title: column.about }, column.title);
    button.addEventListener("click", () => {
      const falling = column === this.by ? !this.falling : column.number === true;
      this.order((falling ? "-" : "") + column.name);
      this.sorted(this.sort);
      this.show(this.items);
    });
    const head = element("th", { scope: "col", class: kind(column) }, button);
    this.heads.set(column, head);
    return head;
  }

  makeRow() {
    const cells = this.columns.map((column) =>
      element("td", { class: kind(column), "data-column": column.title }));
    const node = element("tr", {}, ...cells);
    return { node, cells, item: null };
  }

  write(row, item, index) {
    row.item = item;
    row.node.id = `${this.name}-${index}`;
    row.node.setAttribute("aria-rowindex", index + 2);
    this.columns.forEach((column, place) => {
      const cell = row.cells[place];
      setText(cell, column.text(item));
      if (column.tone) cell.dataset.tone = column.tone(item);
    });
    const isActive = this.active !== null && this.key(item) === this.active;
    row.node.classList.toggle("active", isActive);
    row.node.setAttribute("aria-selected", isActive);
  }

  /** Say which row the keyboard is at. */
  point() {
    const row = this.pool.find(({ node, item }) =>
      node.isConnected && item !== null && this.key(item) === this.active);
    if (row) this.table.setAttribute("aria-activedescendant", row.node.id);
    else this.table.removeAttribute("aria-activedescendant");
  }

  clicked(event) {
    const node = event.target.closest("tr");
    const row = this.pool.find((each) => each.node === node);
    if (row === undefined || window.getSelection().toString() !== "") return;
    this.choose(row.item);
  }

  choose(item) {
    this.active = this.key(item);
    this.draw();
    if (this.open !== null) this.open(item);
  }

  keyed(event) {
    if (event.target !== this.table || event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(1, Math.floor(this.node.clientHeight / this.rowHeight()) - 2);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page,
      Home: -Infinity, End: Infinity };
    const at = this.items.findIndex((item) => this.key(item) === this.active);
    if (event.key === "Enter" && at >= 0) this.choose(this.items[at]);
    else if (event.key in steps && this.items.length) this.move(at, steps[event.key]);
    else return;
    event.preventDefault();
  }

  move(at, step) {
    const next = Math.min(Math.max(at + step, 0), this.items.length - 1);
    this.active = this.key(this.items[next]);
    const height = this.rowHeight();
    const headed = this.table.tHead.offsetHeight;
    const top = next * height;
    const view = this.node;
    if (top < view.scrollTop) view.scrollTop = top;
    const room = view.clientHeight - headed - height;
    if (top > view.scrollTop + room) view.scrollTop = top - room;
    this.draw();
  }
}

function space() {
  return element("tr", { class: "space", "aria-hidden": "true" });
}

function kind(column) {
  return [column.number ? "number" : "", column.wide ? "wide" : ""].join(" ").trim() || null;
}

function compare(one, other) {
  return one < other ? -1 : one > other ? 1 : 0;
}
