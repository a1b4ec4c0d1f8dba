// Numbers to text. Every unit is one that /v1/cache/stats uses: seconds, tokens, bytes.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const few = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const short = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

const MINUS = "\u2212";
const SPACE = "\u00a0";

export function count(number) {
  return Math.abs(number) < 100000 ? signed(whole, number) : signed(compact, number);
}

export function share(part) {
  return `${(part * 100).toFixed(1)}${SPACE}%`;
}

export function money(amount) {
  return Math.abs(amount) >= 1 ? signed({ format: (one) => one.toFixed(2) }, amount) : signed(few, amount);
}

export function seconds(time) {
  const size = Math.abs(time);
  if (size === 0) return `0${SPACE}s`;
  if (size < 1) return `${signed(few, time * 1000)}${SPACE}ms`;
  if (size < 120) return `${signed(few, time)}${SPACE}s`;
  if (size < 7200) return `${signed(few, time / 60)}${SPACE}min`;
  return `${signed(size < 3.6e6 ? few : compact, time / 3600)}${SPACE}h`;
}

export function bytes(size) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (size >= 1024 && unit < units.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return `${few.format(size)}${SPACE}${units[unit]}`;
}

export function time(unix) {
  return clock.format(new Date(unix * 1000));
}

export function minutes(unix) {
  return short.format(new Date(unix * 1000));
}

function signed(format, number) {
  const text = format.format(Math.abs(number));
  return number < 0 && /[1-9]/.test(text) ? MINUS + text : text;
}
