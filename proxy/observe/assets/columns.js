// The columns of each table: what stands in them, and what they are sorted by.
//
// name: for the address of the page; title and about: for people; text: what stands there; value:
// what it is sorted by; number: whether the large are looked for first; wide: only where there is
// room; tone: "good", "warn", "bad" or "" for the colour.

import { clock, duration, rate, size, whole, words } from "./format.js";
import { added } from "./store.js";

const BUSY_STATES = new Set(["established", "assured"]);
const NEW_STATES = new Set(["connecting", "unreplied"]);
const GOOD_REASONS = new Set(["finished"]);
const ORDERED_REASONS = new Set(["killed", "drained", "evicted", "idle_timeout",
  "half_closed_timeout", "max_duration", "byte_budget"]);

const seconds = () => Date.now() / 1000;

/** How a state looks. */
export function stateTone(state) {
  return BUSY_STATES.has(state) ? "good" : NEW_STATES.has(state) ? "" : "warn";
}

/** How an end looks. */
export function reasonTone(reason) {
  return GOOD_REASONS.has(reason) ? "good" : ORDERED_REASONS.has(reason) ? "warn" : "bad";
}

/** The text of a socket address; a dash where there is no socket. */
export function place(address) {
  return address ?? "–";
}

const ID = {
  name: "id", title: "Id", about: "The flow's id", number: true,
  text: ({ row }) => String(row.id), value: ({ row }) => row.id,
};

const WHO = [
  text("transport", "Transport", "tcp, udp, unix or unixgram", ({ row }) => row.transport),
  text("listener", "Listener", "Which listener took it", ({ row }) => row.listener),
  text("client", "Client", "Who connected", ({ row }) => place(row.client.remote)),
  { ...text("client_local", "Local", "The listener's address that the client hit",
    ({ row }) => place(row.client.local)), wide: true },
  { ...text("endpoint_local", "Outbound", "Our own address towards the endpoint",
    ({ row }) => place(row.endpoint.local)), wide: true },
  text("endpoint", "Endpoint", "Where it goes", ({ row }) => place(row.endpoint.remote)),
];

const BYTES = [
  number("original", "→ bytes", "From the client to the endpoint",
    ({ row }) => size(row.original.bytes), ({ row }) => row.original.bytes),
  number("reply", "← bytes", "From the endpoint to the client",
    ({ row }) => size(row.reply.bytes), ({ row }) => row.reply.bytes),
];

export const FLOW_COLUMNS = [
  ID,
  { ...text("state", "State", "Where it is in its life", ({ row }) => words(row.state)),
    tone: ({ row }) => stateTone(row.state) },
  ...WHO,
  BYTES[0],
  number("original_rate", "→ rate", "From the client, now",
    ({ rates }) => rate(rates.original), ({ rates }) => rates.original),
  BYTES[1],
  number("reply_rate", "← rate", "To the client, now",
    ({ rates }) => rate(rates.reply), ({ rates }) => rates.reply),
  number("age", "Age", "Since it was opened",
    ({ row }) => duration(seconds() - row.opened), ({ row }) => -row.opened),
  { ...number("idle", "Idle", "Since bytes last moved",
    ({ row }) => duration(seconds() - row.last_active), ({ row }) => -row.last_active),
  wide: true },
];

export const CLOSED_COLUMNS = [
  ID,
  { ...text("reason", "Reason", "Why it ended", ({ row }) => words(row.close_reason)),
    tone: ({ row }) => reasonTone(row.close_reason) },
  text("side", "Side", "Who moved first", ({ row }) => words(row.close_side)),
  ...WHO,
  ...BYTES,
  number("lasted", "Lasted", "From its opening to its end",
    ({ row }) => duration(row.closed - row.opened), ({ row }) => row.closed - row.opened),
  number("closed", "Ended", "When it ended",
    ({ row }) => clock(row.closed), ({ row }) => row.closed),
];

export const LISTENER_COLUMNS = [
  text("listener", "Listener", "Its name", (row) => row.listener),
  text("transport", "Transport", "tcp, udp, unix or unixgram", (row) => row.transport),
  { ...text("listening", "Listens on", "Its sockets", (row) => row.listening.join(" ") || "nothing"),
    tone: (row) => (row.listening.length ? "" : "bad") },
  text("upstream", "Upstream", "Where its flows go", (row) => row.upstream),
  number("flows", "Flows", "Live now", (row) => whole(added(row.live)), (row) => added(row.live)),
  number("opened", "Opened", "Since the start", (row) => whole(row.opened), (row) => row.opened),
  counts("refused", "Refused", "Since the start, by reason", (row) => row.refused),
  counts("hits", "Limits hit", "Since the start, by limit", (row) => row.hits),
  counts("dropped", "Dropped", "Datagrams since the start, by reason", (row) => row.dropped),
  { ...text("slowed_by", "Slowed by", "For whom its bytes waited most, as far as sampled",
    (row) => words(row.slowed_by) || "–"), wide: true },
  number("original", "→ bytes", "From clients since the start",
    (row) => size(row.original.received), (row) => row.original.received),
  number("reply", "← bytes", "From endpoints since the start",
    (row) => size(row.reply.received), (row) => row.reply.received),
];

// A row is one address of an endpoint: its configured name may stand for several, or for none yet.
export const UPSTREAM_COLUMNS = [
  text("upstream", "Upstream", "Its name", ({ upstream }) => upstream),
  text("endpoint", "Endpoint", "As the configuration names it", ({ endpoint }) => endpoint.endpoint),
  text("address", "Address", "What that is now", ({ address }) => address?.address ?? "none yet"),
  { ...text("condition", "Condition", "Whether new flows go there, and why not",
    (row) => [words(condition(row)), row.address?.reason].filter(Boolean).join(": ")),
  tone: (row) => CONDITION_TONES[condition(row)] ?? "warn" },
  number("since", "For", "How long it has been so",
    ({ address }) => (address?.since ? duration(seconds() - address.since) : ""),
    ({ address }) => -(address?.since ?? 0)),
  number("weight", "Weight", "Its part of new flows beside the others",
    ({ address }) => (address ? `${address.weight}${address.backup ? " backup" : ""}` : ""),
    ({ address }) => address?.weight ?? 0),
  number("flows", "Flows", "Live now, and the ceiling",
    (row) => whole(live(row)) + (row.address?.ceiling ? ` of ${whole(row.address.ceiling)}` : ""),
    live),
  number("attempts", "Attempts", "Of the endpoint, since the start",
    ({ endpoint }) => whole(endpoint.attempts), ({ endpoint }) => endpoint.attempts),
  counts("failures", "Failures", "Of the endpoint, since the start, by reason",
    ({ endpoint }) => endpoint.failures),
  { ...text("check", "Last check", "Its result, and how long it took", check), wide: true },
];

const CONDITION_TONES = { up: "good", unknown: "", down: "bad", ejected: "bad" };

/** Limits in force: those of the configuration, and those that were ordered while it runs. */
export const LIMIT_COLUMNS = [
  text("for", "For", "The listener, or the flows it is for", (row) => row.for),
  text("limit", "Limit", "Its key, as in the configuration, or how it was ordered", (row) => row.limit),
  text("value", "Value", "How much", (row) => row.value),
  text("origin", "From", "The configuration, or an order and its number", (row) => row.origin),
  number("matched", "Flows", "Live ones that an order is for",
    (row) => (row.matched === null ? "" : whole(row.matched)), (row) => row.matched ?? -1),
  number("until", "Until", "When an order lifts itself",
    (row) => (row.until === null ? "" : clock(row.until)), (row) => row.until ?? Infinity),
];

/** The rows of that table, from the answer of the API. */
export function limitRows({ configured, orders }) {
  return [
    ...configured.map(({ listener, key, value }) =>
      ({ for: listener, limit: key, value, origin: "configuration", matched: null, until: null })),
    ...orders.flatMap((order) => ORDERED.filter(([key]) => order[key] !== null).map(([key, write]) => ({
      for: TARGETS.filter((name) => order[name] !== null)
        .map((name) => `${name} ${order[name]}`).join(", ") || "every flow",
      limit: words(key),
      value: write(order[key]),
      origin: `order ${order.number}`,
      matched: order.matched,
      until: order.until,
    }))),
  ];
}

const TARGETS = ["listener", "client", "endpoint", "id"];
const ORDERED = [["bandwidth", (value) => `${size(value)}/s`],
  ["flow_bandwidth", (value) => `${size(value)}/s`], ["flows", whole], ["bytes", size]];

function condition({ endpoint, address }) {
  return address?.condition ?? (endpoint.draining ? "draining" : endpoint.up ? "up" : "down");
}

function live({ endpoint, address }) {
  return (address ?? endpoint).flows;
}

function check({ address }) {
  const last = address?.check;
  return last ? `${last.reason || last.result}, ${duration(last.duration)}` : "";
}

function text(name, title, about, read) {
  return { name, title, about, text: read, value: read };
}

function number(name, title, about, write, value) {
  return { name, title, about, number: true, text: write, value };
}

/** Counts by word: those that are not nothing, by name. */
function counts(name, title, about, read) {
  return {
    name, title, about, number: true,
    text: (row) => Object.entries(read(row)).filter(([, count]) => count > 0)
      .map(([word, count]) => `${words(word)} ${whole(count)}`).join(", ") || "0",
    value: (row) => added(read(row)),
    tone: (row) => (added(read(row)) ? "warn" : ""),
  };
}
