// Small line charts, drawn as SVG: one or two lines over the last minutes, with the highest value
// of the scale and the newest value of each line written beside them.

import { drawing, element, setText } from "./dom.js";

const WIDTH = 300;
const HEIGHT = 72;
const ROUND = [1, 2, 5, 10, 20, 50, 100, 200, 500];

export class Chart {
  /**
   * @param {Element} figure Where it is drawn.
   * @param {string} title What it shows.
   * @param {Object} lines From the key of a sample to the line's name.
   * @param {Function} write From a value to text.
   * @param {number} thousand What the units of that text are apart: 1000, or 1024 for bytes.
   */
  constructor(figure, title, lines, write, thousand = 1000) {
    this.write = write;
    this.thousand = thousand;
    this.paths = new Map();
    this.newest = new Map();
    const legend = element("ul", { class: "legend" });
    Object.entries(lines).forEach(([key, name], place) => {
      const value = element("output");
      legend.append(element("li", { class: `line-${place}` }, `${name} `, value));
      this.newest.set(key, value);
      this.paths.set(key, drawing("path", { class: `line-${place}` }));
    });
    this.top = element("span", { class: "top" });
    this.svg = drawing("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none",
      role: "img", "aria-label": title },
    drawing("path", { class: "base", d: `M0 ${HEIGHT - 0.5}H${WIDTH}M0 .5H${WIDTH}` }),
    ...this.paths.values());
    figure.replaceChildren(element("figcaption", {}, title, legend), this.top, this.svg);
  }

  /** Draw samples: objects with the keys of the lines; the newest is the last. */
  show(samples, most) {
    const keys = [...this.paths.keys()];
    const values = samples.flatMap((each) => keys.map((key) => each[key]));
    const highest = niceTop(Math.max(0, ...values), this.thousand);
    setText(this.top, this.write(highest) || "0");
    for (const key of keys) {
      this.paths.get(key).setAttribute("d", line(samples.map((each) => each[key]), highest, most));
      setText(this.newest.get(key), samples.length ? this.write(samples.at(-1)[key]) || "0" : "");
    }
  }
}

/** The path through values, of which there are at most so many; the newest is at the right. */
function line(values, highest, most) {
  const step = WIDTH / Math.max(1, most - 1);
  const left = WIDTH - step * (values.length - 1);
  return values.map((value, place) => {
    const x = left + step * place;
    const y = HEIGHT - 1 - (HEIGHT - 3) * (value / highest);
    return `${place ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
  }).join("");
}

/** The end of a scale: a round number of its unit, and not below the value. */
function niceTop(value, thousand) {
  let unit = 1;
  while (value > 500 * unit) unit *= thousand;
  return ROUND.map((step) => step * unit).find((step) => step >= value);
}
