// Making elements. Text from the network only ever becomes a text node, so it cannot become markup.

/**
 * Make an element.
 * @param {string} tag Its name.
 * @param {Object} attributes Its attributes; those that are null, undefined or false are left out.
 * @param {...(Node|string|number)} children What it holds.
 */
export function element(tag, attributes = {}, ...children) {
  return furnish(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function drawing(tag, attributes = {}, ...children) {
  return furnish(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

/** The element of the page with this id. */
export function byId(id) {
  return document.getElementById(id);
}

/** Set text, if it is another: an assignment costs a layout even where nothing changes. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Have a select offer these values, and keep what is chosen; the first one means "any". */
export function offer(select, any, values) {
  const known = [...select.options].slice(1).map((option) => option.value);
  if (select.options.length > 0 && known.join("\n") === values.join("\n")) return;
  const chosen = select.value;
  const options = values.map((value) => element("option", { value }, value.replaceAll("_", " ")));
  select.replaceChildren(element("option", { value: "" }, any), ...options);
  select.value = values.includes(chosen) ? chosen : "";
}

function furnish(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}
