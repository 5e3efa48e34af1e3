// Numbers and times as people read them. Nothing here touches the document.

const SIZES = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/** Bytes with three digits that matter: "1.25 MiB". */
export function size(bytes) {
  let unit = 0;
  while (bytes >= 1024 && unit < SIZES.length - 1) {
    bytes /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? Math.round(bytes) : digits(bytes)} ${SIZES[unit]}`;
}

/** Bytes a second; nothing at all where nothing moves, so that the eye finds what does. */
export function rate(bytes) {
  return bytes < 0.5 ? "" : `${size(bytes)}/s`;
}

/** A whole number with its thousands apart. */
export function whole(number) {
  return Math.round(number).toLocaleString("en-US");
}

/** Seconds as "80 µs", "350 ms", "12.3 s", "4m 05s", "3h 20m" or "2d 4h". */
export function duration(seconds) {
  if (seconds <= 0) return "0 s";
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 0.01) return `${(seconds * 1000).toFixed(1)} ms`;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const [big, small, divisor] = seconds < 3600 ? ["m", "s", 60]
    : seconds < 86400 ? ["h", "m", 3600] : ["d", "h", 86400];
  const rest = Math.floor((seconds % divisor) / (divisor === 86400 ? 3600 : divisor / 60));
  return `${Math.floor(seconds / divisor)}${big} ${String(rest).padStart(2, "0")}${small}`;
}

/** Unix seconds as the local time of day, with the date where it is another day. */
export function clock(unix) {
  const date = new Date(unix * 1000);
  const time = date.toLocaleTimeString(undefined, { hour12: false });
  return date.toDateString() === new Date().toDateString()
    ? time : `${date.toLocaleDateString()} ${time}`;
}

/** A word of ours for people: "half_closed_timeout" is "half closed timeout". */
export function words(text) {
  return text === null || text === undefined ? "" : String(text).replaceAll("_", " ");
}

function digits(number) {
  return number >= 100 ? number.toFixed(0) : number >= 10 ? number.toFixed(1) : number.toFixed(2);
}
