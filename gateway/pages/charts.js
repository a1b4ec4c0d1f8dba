// Rows of the past to curves, drawn by uPlot. A row holds what was counted since the one before it, so
// rows add up to the steps of whatever range is looked at.

import { count, minutes, seconds, share, time } from "./format.js";
import { el, keyed, say, table, text } from "./tables.js";

const STEPS = 30;
const LEVELS = ["response", "semantic", "negative", "prefix", "none"];
const SAID = {
  response: "Stored answer", semantic: "Similar question", prefix: "Reused prefix",
  negative: "Remembered refusal", none: "Computed whole",
};
const TIMES = [
  { name: "Stored, median", group: "stored", q: 0.5, color: "response" },
  { name: "Stored, p95", group: "stored", q: 0.95, color: "response", dash: [2, 4] },
  { name: "Computed, median", group: "computed", q: 0.5, color: "prefix" },
  { name: "Computed, p95", group: "computed", q: 0.95, color: "prefix", dash: [2, 4] },
];

export class Past {
  constructor(facts) {
    this.columns = facts.columns;
    this.bounds = facts.buckets_s;
    this.kept = facts.kept_s;
    this.rows = [];
  }

  add(rows) {
    this.rows.push(...rows);
    const last = this.rows.at(-1);
    while (last && this.rows[0][0] < last[0] - this.kept) this.rows.shift();
  }

  // The last `range` seconds: sums by column, and answer times by bucket.
  over(range) {
    const last = this.rows.at(-1)?.[0] ?? 0;
    return this.sum(this.rows.filter((row) => row[0] > last - range));
  }

  // The same in steps, the oldest first: { starts, step, sums }.
  steps(range) {
    const step = range / STEPS;
    const end = Math.floor((this.rows.at(-1)?.[0] ?? Date.now() / 1000) / step) * step + step;
    const begin = end - range;
    const slots = Array.from({ length: STEPS }, () => []);
    for (const row of this.rows) {
      const slot = Math.floor((row[0] - begin) / step);
      if (slot >= 0 && slot < STEPS) slots[slot].push(row);
    }
    return { step, starts: slots.map((_, i) => begin + i * step), sums: slots.map((rows) => this.sum(rows)) };
  }

  sum(rows) {
    const wide = this.columns.length + 2 * (this.bounds.length + 1);
    const sums = new Array(wide).fill(0);
    for (const [, counts] of rows) for (let i = 0; i < wide; i += 1) sums[i] += counts[i];
    const named = Object.fromEntries(this.columns.map((name, index) => [name, sums[index]]));
    const times = sums.slice(this.columns.length);
    return {
      ...named,
      calls: LEVELS.reduce((all, level) => all + named[level], 0),
      kept: named.response + named.semantic,
      stored: times.slice(0, this.bounds.length + 1),
      computed: times.slice(this.bounds.length + 1),
    };
  }

  // The time within which a share `q` of calls was answered; straight within a bucket, null without any.
  quantile(within, q) {
    const total = within.reduce((one, other) => one + other, 0);
    if (!total) return null;
    let below = 0;
    for (let i = 0; i < within.length; i += 1) {
      if (below + within[i] >= q * total) {
        const from = i ? this.bounds[i - 1] : 0;
        const to = this.bounds[Math.min(i, this.bounds.length - 1)];
        return Math.max(from + (to - from) * (q * total - below) / within[i], 1e-4);
      }
      below += within[i];
    }
    return null;
  }
}

// A colour of the style sheet, as the theme has it now.
function color(name) {
  const probe = el("span");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

class Chart {
  constructor(name, items) {
    this.box = document.getElementById(`${name}-chart`);
    this.list = document.getElementById(`${name}-legend`);
    this.details = document.getElementById(`${name}-table`).parentElement;
    this.items = items;
    this.steps = null;
    this.plot = null;
    this.seen = new ResizeObserver(() => this.fit());
    this.seen.observe(this.box);
    this.details.addEventListener("toggle", () => this.tell());
  }

  fit() {
    if (this.plot && this.box.clientWidth) this.plot.setSize({ width: this.box.clientWidth, height: 220 });
  }

  // Anew, with the theme's colours and what is measured now.
  redraw() {
    this.plot?.destroy();
    this.plot = null;
    if (this.steps) this.draw();
  }

  show(steps) {
    this.steps = steps;
    this.draw();
    this.tell();
  }

  draw() {
    if (!this.box.clientWidth) return;
    const data = this.data();
    if (this.plot) this.plot.setData(data);
    else this.plot = new uPlot(this.options(), data, this.box);
    this.legend();
  }

  base(y, marks) {
    const axis = { stroke: color("muted"), grid: { stroke: color("line"), width: 1 }, ticks: { show: false },
      font: "12px system-ui, sans-serif" };
    return {
      width: this.box.clientWidth,
      height: 220,
      padding: [8, 18, 0, 0],
      legend: { show: false },
      cursor: { y: false, points: { show: false }, drag: { x: false, y: false } },
      scales: { x: { time: true, range: () => this.ends() }, y },
      axes: [
        { ...axis, grid: { show: false }, space: 36, size: 28, incrs: [60, 120, 300, 600, 900],
          values: (_, ticks) => ticks.map(minutes) },
        { ...axis, size: 56, ...marks },
      ],
      hooks: { setCursor: [() => this.legend()] },
    };
  }

  ends() {
    const { starts, step } = this.steps;
    return [starts[0], starts.at(-1) + step];
  }

  // The step under the pointer, else the latest one in which anything was answered.
  pointed() {
    const under = this.plot?.cursor.idx;
    if (under !== null && under !== undefined) return under;
    const last = this.steps.sums.findLastIndex((sum) => sum.calls > 0);
    return last < 0 ? STEPS - 1 : last;
  }

  legend() {
    const step = this.pointed();
    keyed(this.list, this.items(), {
      key: (item) => item.name,
      make: (item) => el("li", {}, el("span", { class: `swatch ${item.kind}`, "aria-hidden": "true" }),
        el("span", { text: item.name }), el("b")),
      update: (node, item) => say(node.lastChild, item.value(this.steps.sums[step])),
    });
    const latest = this.items().map((item) => `${item.name} ${item.value(this.steps.sums[step])}`);
    const label = `${this.title}, at ${time(this.steps.starts[step])}: ${latest.join(", ")}`;
    if (this.box.getAttribute("aria-label") !== label) this.box.setAttribute("aria-label", label);
  }

  // The curves as a table, when somebody wants it.
  tell() {
    if (!this.details.open || !this.steps) return;
    const { starts, sums } = this.steps;
    const rows = starts.map((start, index) => ({ start, sum: sums[index] })).filter((row) => row.sum.calls);
    const columns = [{ title: "From", cell: text((row) => time(row.start)) },
      ...this.items().map((item) => ({ title: item.name, num: true, cell: text((row) => item.value(row.sum)) }))];
    table(this.details.lastElementChild, { caption: this.title, columns, key: (row) => row.start, wide: true })(
      rows.slice(-12).reverse());
  }
}

export class Levels extends Chart {
  constructor() {
    super("levels", () => LEVELS.map((level) => ({
      name: SAID[level],
      kind: level,
      value: (sum) => this.measure === "share"
        ? (sum.calls ? share(sum[level] / sum.calls) : "–") : count(sum[level]),
    })));
    this.title = "Where answers came from";
    this.measure = "share";
  }

  // Each level on top of those before it, all calls in sum; the highest is drawn first.
  data() {
    const { starts, sums } = this.steps;
    const stacked = LEVELS.map((_, upTo) => sums.map((sum) => {
      if (!sum.calls) return null;
      const height = LEVELS.slice(0, upTo + 1).reduce((all, level) => all + sum[level], 0);
      return this.measure === "share" ? height / sum.calls : height;
    }));
    return [starts, ...stacked.reverse()];
  }

  options() {
    const bars = uPlot.paths.bars({ size: [0.82, 40], align: 1 });
    const y = this.measure === "share" ? { range: [0, 1] } : { range: (_, low, high) => [0, Math.max(1, high * 1.08)] };
    const values = (_, ticks) => ticks.map((tick) => this.measure === "share"
      ? `${Math.round(tick * 100)} %` : Number.isInteger(tick) ? count(tick) : "");
    const series = LEVELS.map((level) => ({
      fill: color(level), stroke: color(level), width: 0, paths: bars, points: { show: false },
    }));
    return { ...this.base(y, { values }), series: [{}, ...series.reverse()] };
  }
}

export class Latency extends Chart {
  constructor() {
    super("latency", () => TIMES.map((one) => ({
      name: one.name,
      kind: `${one.color} line${one.dash ? " dashed" : ""}`,
      value: (sum) => {
        const found = this.past.quantile(sum[one.group], one.q);
        return found === null ? "–" : seconds(found);
      },
    })));
    this.title = "Answer time";
    this.past = null;
  }

  data() {
    const { starts, step, sums } = this.steps;
    return [starts.map((start) => start + step / 2),
      ...TIMES.map((one) => sums.map((sum) => this.past.quantile(sum[one.group], one.q)))];
  }

  options() {
    const range = (_, low, high) => (low === null ? [1e-3, 1]
      : [10 ** Math.floor(Math.log10(low)), 10 ** Math.ceil(Math.log10(high) + 1e-9)]);
    const marks = {
      splits: (_, __, low, high) => decades(low, high),
      values: (_, ticks) => ticks.map(seconds),
    };
    const series = TIMES.map((one) => ({
      stroke: color(one.color), width: 2, dash: one.dash, spanGaps: false,  // without calls there is no time
      points: { show: true, size: one.dash ? 3 : 5, fill: color(one.color), stroke: color(one.color) },
    }));
    return { ...this.base({ distr: 3, range }, marks), series: [{}, ...series] };
  }
}

// 1 ms, 10 ms, 100 ms …
function decades(low, high) {
  const first = Math.ceil(Math.log10(low) - 1e-9);
  const last = Math.floor(Math.log10(high) + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, index) => 10 ** (first + index));
}
