// Numbers, times and sizes for people.

const WHOLE = new Intl.NumberFormat("en");
const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

const NONE = "–";

export function whole(number) {
  return number === null || number === undefined ? NONE : WHOLE.format(number);
}

export function short(number) {
  return number === null || number === undefined ? NONE : SHORT.format(number);
}

/** How often in a second. */
export function rate(number) {
  return number === null || number === undefined ? NONE : SHORT.format(number < 10 ? number : Math.round(number));
}

export function counted(number, thing) {
  return `${whole(number)} ${thing}${number === 1 ? "" : "s"}`;
}

/** Microseconds. */
export function duration(us) {
  if (us === null || us === undefined) return NONE;
  if (us < 1000) return `${WHOLE.format(us)} µs`;
  return us < 1_000_000 ? `${SHORT.format(us / 1000)} ms` : `${SHORT.format(us / 1_000_000)} s`;
}

export function bytes(size) {
  if (size === null || size === undefined) return NONE;
  if (size < 1024) return `${size} B`;
  const at = Math.min(4, Math.floor(Math.log2(size) / 10));
  return `${SHORT.format(size / 1024 ** at)} ${["B", "KiB", "MiB", "GiB", "TiB"][at]}`;
}

/** Seconds, the two largest units. */
export function span(seconds) {
  if (seconds === null || seconds === undefined) return NONE;
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const from = Math.max(0, units.findIndex(([, size]) => seconds >= size));
  if (seconds < 1) return "0 s";
  let left = Math.floor(seconds);
  return units.slice(from, from + 2).map(([name, size]) => {
    const count = Math.floor(left / size);
    left -= count * size;
    return count || name === "s" ? `${count} ${name}` : "";
  }).filter(Boolean).join(" ");
}

/** Milliseconds since the epoch, in local time. */
export function moment(ms) {
  const date = new Date(ms);
  return Number.isNaN(date.getTime()) ? NONE : date.toLocaleString("sv-SE");
}

/** What `preview` of the server gives. */
export function data(piece) {
  if (!piece.size) return "empty";
  return (piece.text ?? piece.hex) + (piece.cut ? " …" : "");
}
