// The page: the key, the stream, and what each section of it shows. Nothing here decides anything: the
// numbers are those of /v1/cache/stats, sent as server-sent events (gateway/dashboard.py).

import { Latency, Levels, Past } from "./charts.js";
import { bytes, count, money, seconds, share, time } from "./format.js";
import { bars, el, fill, keyed, say, table, text } from "./tables.js";

const KEY = "kvgate-key";
const THEME = "kvgate-theme";
const SILENT_MS = 70000;
const HIDDEN_MS = 10000;
const RECENT_S = 300;

const $ = (id) => document.getElementById(id);
const state = { facts: null, past: null, sections: {}, wait: 1000, stream: null, range: 300 };
const levels = new Levels();
const latency = new Latency();

// ---- the key and the stream

// Beside the page, wherever a proxy has put it.
function there(path) {
  return new URL(path, document.baseURI);
}

function headers(more = {}) {
  const key = sessionStorage.getItem(KEY);
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

async function refusal(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The gateway answered ${response.status}.`;
  }
}

async function connect() {
  state.stream?.abort();
  const stream = state.stream = new AbortController();
  let ended = "The stream ended.";
  try {
    const response = await fetch(there("dashboard/live"), {
      headers: headers({ Accept: "text/event-stream" }), cache: "no-store", signal: stream.signal,
    });
    if (response.status === 401 || response.status === 403) {
      const why = sessionStorage.getItem(KEY) ? await refusal(response) : "";
      sessionStorage.removeItem(KEY);
      askForKey(why);
      return;
    }
    if (!response.ok) throw new Error(await refusal(response));
    await read(response.body, stream);
  } catch (error) {
    if (stream !== state.stream || document.hidden) return;
    ended = error.message || "The gateway cannot be reached.";
  }
  if (stream !== state.stream) return;
  status("bad", `Reconnecting: ${ended}`);
  setTimeout(() => stream === state.stream && connect(), state.wait);
  state.wait = Math.min(state.wait * 2, 15000);
}

async function read(body, stream) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const silent = setTimeout(() => stream.abort(), SILENT_MS);
    const { value, done } = await reader.read().finally(() => clearTimeout(silent));
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) take(event);
  }
}

function take(event) {
  const at = event.indexOf("\ndata: ");
  const name = event.slice("event: ".length, at);
  const data = JSON.parse(event.slice(at + "\ndata: ".length));
  if (name === "hello") {
    hello(data);
    return;
  }
  if (name === "whole") {
    state.sections = {};
    state.past = new Past(state.facts);
  }
  Object.assign(state.sections, data.sections);
  state.past.add(data.rows);
  state.wait = 1000;
  status("good", "Live");
  for (const section of Object.keys(data.sections)) shows[section]?.(state.sections[section]);
  overTime();
}

function hello(facts) {
  state.facts = facts;
  $("login").hidden = true;
  $("board").hidden = false;
  $("sign-out").hidden = facts.open;
  say($("scope"), facts.open ? "" : `tenant ${facts.tenant}`);
  const several = facts.workers > 1;
  for (const note of document.querySelectorAll(".here")) note.hidden = !several;
  const workers = several
    ? ` Counters, tiers and keys are the sum of ${facts.workers} workers; what the curves remember is worker ${facts.worker}'s, which answers this page.`
    : "";
  say($("facts"), `kvgate ${facts.version}, up since ${new Date(facts.started * 1000).toLocaleString()}.${workers}`);
  patterns(facts.patterns);
}

function askForKey(why) {
  $("board").hidden = true;
  $("login").hidden = false;
  $("sign-out").hidden = true;
  say($("login-error"), why);
  status("warn", "Key needed");
  $("key").focus();
}

function status(kind, said) {
  $("status").dataset.state = kind;
  say($("status"), said);
}

// ---- at a glance, and over time

const shows = {
  stats(stats) {
    stat("stored_rate", share(stats.stored_rate));
    stat("reuse_rate", share(stats.reuse_rate));
    stat("requests", count(stats.requests));
    document.title = stats.requests ? `${share(stats.stored_rate)} from the store · kvgate` : "kvgate dashboard";
    const net = stats.savings.net;
    stat("seconds_saved", seconds(net.seconds));
    stat("tokens_saved", count(net.tokens));
    stat("money_saved", money(net.money));
    const spent = stats.savings.spent;
    const warming = spent.warming.calls + spent.revalidation.calls;
    note("seconds_saved", warming ? `net of ${seconds(spent.warming.seconds + spent.revalidation.seconds)} spent` : "of backend time");
    note("tokens_saved", warming ? `net of ${count(spent.warming.tokens + spent.revalidation.tokens)} spent` : "not computed again");
    note("money_saved", "at the configured prices");
    tiers(stats.tiers);
    misses(stats);
    savings(stats.savings);
    speed(stats.latency.levels, stats.levels);
  },
  keys: (keys) => list("keys", keys.slice(0, 8)),
  jobs: (jobs) => list("jobs", jobs.data, jobs),
  contexts: (contexts) => list("contexts", contexts.data, contexts),
  conversations: (said) => list("conversations", said.data.slice(0, 8), said),
  backends(said) {
    bars($("backends"), said.data.map((one) => ({ ...backend(one) })));
  },
};

// The mean time of stored answers, and of computed ones.
function speed(times, levels) {
  const mean = (names) => {
    const found = names.filter((name) => times[name]);
    const calls = found.reduce((all, name) => all + levels[name].requests, 0);
    return calls ? found.reduce((all, name) => all + times[name].seconds, 0) / calls : null;
  };
  const hit = mean(["response", "semantic", "negative"]);
  const computed = mean(["prefix", "none"]);
  stat("speed", hit === null ? "–" : seconds(hit));
  note("speed", computed === null ? "stored, on average" : `stored; computed ${seconds(computed)}`);
}

function stat(name, said) {
  say(document.querySelector(`[data-stat="${name}"]`), said);
}

function note(name, said) {
  say(document.querySelector(`[data-note="${name}"]`), said);
}

function overTime() {
  const recent = state.past.over(RECENT_S);
  const stats = state.sections.stats;
  note("stored_rate", recent.calls ? `of calls; ${share(recent.kept / recent.calls)} in the last 5\u00a0min` : "none asked in the last 5\u00a0min");
  note("reuse_rate", recent.prompt_tokens
    ? `of computed prompts; ${share(recent.prompt_tokens_reused / recent.prompt_tokens)} in the last 5\u00a0min`
    : "none computed in the last 5\u00a0min");
  const failed = stats?.errors ? `, ${count(stats.errors)} failed` : "";
  note("requests", `${(recent.calls / RECENT_S).toFixed(recent.calls < 3000 ? 2 : 0)} a second${failed}`);
  const steps = state.past.steps(state.range);
  latency.past = state.past;
  levels.show(steps);
  latency.show(steps);
}

// ---- the sections

function tiers(all) {
  bars($("tiers"), Object.entries(all).map(([name, tier]) => ({
    name,
    said: `${bytes(tier.size_bytes)}${tier.max_bytes ? ` of ${bytes(tier.max_bytes)}` : ""}`,
    part: tier.max_bytes ? tier.size_bytes / tier.max_bytes : null,
    below: `${tier.store}: ${count(tier.entries)} entries, ${count(tier.evictions)} evicted, ` +
      `${count(tier.stored_answers)} of ${count(tier.requests)} calls answered`,
  })));
}

const REASONS = {
  cold: "cold: never asked before",
  expired: "expired: past its lifetime",
  evicted: "evicted: no room for it",
  invalidated: "invalidated: cleared away",
  fingerprint: "fingerprint: asked a little differently",
  scope: "scope: stored under another scope",
  disabled: "disabled: the cache was not asked",
  too_short: "too short for the strategy",
};

function misses(stats) {
  const missed = Object.entries(stats.miss_reasons).sort((one, other) => other[1] - one[1]);
  const all = missed.reduce((sum, [, calls]) => sum + calls, 0);
  $("misses-empty").hidden = all > 0;
  bars($("misses"), missed.slice(0, 8).map(([reason, calls]) => ({
    name: REASONS[reason] ?? reason, said: `${count(calls)} · ${share(calls / all)}`, part: calls / all, below: null,
  })));
}

const saved = table($("savings"), {
  caption: "What was saved by level, what warming cost, and what is left",
  key: (row) => row.name,
  columns: [
    { title: "By", cell: text((row) => row.name) },
    { title: "Calls", num: true, cell: text((row) => (row.calls === undefined ? "" : count(row.calls))) },
    { title: "Time", num: true, cell: text((row) => (row.seconds === null ? "–" : seconds(row.seconds))) },
    { title: "Tokens", num: true, cell: text((row) => count(row.tokens)) },
    { title: "Money", num: true, cell: text((row) => money(row.money)) },
  ],
});

function savings(by) {
  const less = (row) => ({ calls: row.calls, seconds: -row.seconds, tokens: -row.tokens, money: -row.money });
  saved([
    { name: "Stored answers", ...by.response },
    { name: "Shared flights", ...by.collapsed },
    { name: "Reused prefixes", ...by.prefix },
    { name: "Warming", ...less(by.spent.warming) },
    { name: "Renewals", ...less(by.spent.revalidation) },
    { name: "Net", ...by.net, total: true },
  ]);
}

const lists = {
  keys: table($("keys"), {
    caption: "The stored answers whose hits saved most backend time",
    key: (one) => one.tenant + one.key,
    wide: true,
    columns: [
      { title: "Key", free: true, cell: (one, td) => fill(td, [
        ["div", one.cache_key ?? "no name", "name"],
        ["div", [whose(one), one.model, one.tier].filter(Boolean).join(" · "), "sub"],
        ["div", one.key, "mono muted"]]) },
      { title: "Hits", num: true, cell: text((one) => count(one.hits)) },
      { title: "Tokens saved", num: true, cell: text((one) => count(one.tokens_saved)) },
      { title: "Time saved", num: true, cell: text((one) => seconds(one.seconds_saved)) },
    ],
  }),
  jobs: table($("jobs"), {
    caption: "Warm jobs, the latest first",
    key: (job) => job.tenant + job.id,
    wide: true,
    columns: [
      { title: "Job", free: true, cell: job },
      { title: "Action", num: true, cell: cancelCell },
    ],
  }),
  contexts: table($("contexts"), {
    caption: "Shared contexts that are held",
    key: (one) => one.tenant + one.id,
    wide: true,
    columns: [
      { title: "Context", cell: text((one) => one.id) },
      { title: "Tenant", cell: text((one) => one.tenant) },
      { title: "Open to", cell: text((one) => (one.allowed_users ? `${count(one.allowed_users)} users` : "the whole tenant")) },
      { title: "Priority", cell: text((one) => one.priority) },
      { title: "Used", num: true, cell: text((one) => (one.used ? `${count(one.used)} times` : "not yet")) },
      { title: "Users", num: true, cell: text((one) => count(one.users)) },
      { title: "Time left", num: true, cell: text((one) => seconds(Math.max(0, one.ttl_left_s))) },
    ],
  }),
  conversations: table($("conversations"), {
    caption: "Conversations, the latest first, with what their numbers recommend",
    key: (one) => JSON.stringify([one.tenant, one.user, one.id]),
    wide: true,
    columns: [
      { title: "Conversation", free: true, cell: (one, td) => fill(td, [
        ["div", one.id, "name"], ["div", [whose(one), one.user, one.class].filter(Boolean).join(" · "), "sub"]]) },
      { title: "Calls", num: true, cell: text((one) => count(one.calls)) },
      { title: "From the store", num: true, cell: text((one) => share(one.stored_rate)) },
      { title: "Reuse potential", num: true, cell: text((one) => share(one.reuse_potential)) },
      { title: "Time saved", num: true, cell: text((one) => seconds(one.seconds_saved)) },
      { title: "Last call", num: true, cell: text((one) => time(one.last_seen)) },
      { title: "Recommended", free: true, cell: advice },
    ],
  }),
};

// The tenant, where there are several.
function whose(one) {
  return state.facts.tenants.length > 1 ? one.tenant : null;
}

function list(name, items, said = {}) {
  lists[name](items);
  const empty = $(`${name}-empty`);
  empty.dataset.none ??= empty.textContent;
  empty.hidden = items.length > 0 && !said.error && !said.more;
  say(empty, said.error ? `Not up to date: ${said.error}` : said.more ? `and ${count(said.more)} more` : empty.dataset.none);
}

// The tiers of KV below an engine's pool.
const BELOW = { warm: "host memory", cold: "disk" };

function backend(one) {
  const ailing = one.state !== "up" && one.state !== "not asked yet";
  const engine = one.engine && one.engine !== "ready" ? `, engine ${one.engine}` : "";
  const kv = one.kv;
  const said = [`${ailing ? "⚠ " : ""}${one.state}${engine}`];
  if (one.error && !engine) said.push(one.error);
  const below = [one.models.join(", ")];
  if (kv) {
    if (kv.capacity_tokens !== null) below.push(`KV ${count(kv.held_tokens)} of ${count(kv.capacity_tokens)} tokens`);
    if (kv.used_bytes) below.push(bytes(kv.used_bytes));
    for (const [name, tier] of Object.entries(kv.below)) {
      below.push(`${BELOW[name] ?? name} ${bytes(tier.bytes ?? 0)} of ${bytes(tier.max_bytes ?? 0)}`);
    }
    if (kv.hit_rate !== null) below.push(`${share(kv.hit_rate)} of prompt tokens reused`);
    if (kv.evictions !== null) below.push(`${count(kv.evictions)} blocks evicted`);
    if (kv.running !== null) below.push(`${count(kv.running)} running, ${count(kv.waiting ?? 0)} waiting`);
  } else if (!one.error) below.push("says nothing of its KV cache");
  return {
    name: one.name,
    said: said.join(", "),
    tone: ailing || engine || one.error ? "warn" : "",
    part: kv && kv.capacity_tokens ? kv.held_tokens / kv.capacity_tokens : null,
    below: below.filter(Boolean).join(" · "),
  };
}

const ADVICE = { enable: "Cache it", disable: "Do not cache it", ttl: "ttl", tier: "Tier", chunking: "Cut it at" };

function advice(one, td) {
  const box = td.firstElementChild ?? td.appendChild(el("div", { class: "advice" }));
  keyed(box, one.recommendations, {
    key: (it) => it.action,
    make: () => el("details", {}, el("summary"), el("div", { class: "sub" })),
    update: (node, it) => {
      const value = it.action === "ttl" ? seconds(it.value) : it.action === "tier" ? it.value
        : it.action === "chunking" ? `${it.value} messages` : "";
      say(node.firstChild, `${ADVICE[it.action] ?? it.action} ${value}`.trim());
      say(node.lastChild, it.because);
    },
  });
}

// ---- warm jobs

function patterns(all) {
  keyed($("patterns"), all, {
    key: (one) => one.id,
    make: (one) => el("button", { type: "button", onclick: () => start({ pattern: one.id }) }),
    update: (node, one) => say(node, `Warm ${one.id} (${count(one.items)})`),
  });
}

function job(one, td) {
  if (!td.firstChild) {
    td.append(el("div", { class: "row" }, el("span", { class: "name" }), el("span", { class: "sub" })),
      el("progress", { max: 1, "aria-label": `Progress of ${one.id}` }), el("div", { class: "sub" }));
  }
  const [head, progress, below] = td.children;
  const counts = one.counts;
  const through = counts.done + counts.skipped + counts.failed;
  say(head.firstChild, one.patterns?.join(", ") || one.id);
  say(head.lastChild, ` ${one.status}, begun ${time(one.created_at)}`);
  progress.value = counts.total ? through / counts.total : 1;
  below.className = counts.failed ? "sub warn" : "sub";
  say(below, `${count(through)} of ${count(counts.total)}: ${count(counts.done)} answered, ` +
    `${count(counts.skipped)} fresh already, ${count(counts.failed)} failed` +
    (whose(one) ? ` · ${one.tenant}` : ""));
}

function cancelCell(one, td) {
  const running = one.status === "running";
  if (running && !td.firstChild) {
    td.append(el("button", {
      type: "button", class: "small", text: "Cancel", "aria-label": `Cancel warm job ${one.id}`,
      onclick: (event) => cancel(one, event.currentTarget),
    }));
  }
  if (!running) {
    if (td.contains(document.activeElement)) $("jobs-title").closest("section").querySelector("summary").focus();
    td.replaceChildren();
  }
}

async function send(method, path, body) {
  const response = await fetch(there(path), {
    method, headers: headers({ "Content-Type": "application/json" }), body: body && JSON.stringify(body),
  });
  if (!response.ok) throw new Error(await refusal(response));
  return response.json();
}

// At once, what the stream will say a moment later.
function remember(changed, tenant) {
  const jobs = state.sections.jobs ?? { data: [] };
  const old = jobs.data.find((one) => one.id === changed.id && one.tenant === tenant);
  const names = [...new Set((changed.items ?? []).map((item) => item.pattern))];
  const job = { ...old, ...changed, tenant, patterns: old?.patterns ?? names };
  state.sections.jobs = { ...jobs, data: [job, ...jobs.data.filter((one) => one !== old)] };
  shows.jobs(state.sections.jobs);
}

async function start(wish) {
  try {
    const taken = await send("POST", "v1/cache/warm", wish);
    remember(taken, state.facts.tenant);
    say($("jobs-said"), `Started: ${count(taken.counts.total)} questions.`);
    return true;
  } catch (error) {
    say($("jobs-said"), `Not started: ${error.message}`);
    return false;
  }
}

async function cancel(one, button) {
  button.disabled = true;
  try {
    const path = `v1/cache/warm/${encodeURIComponent(one.id)}?tenant=${encodeURIComponent(one.tenant)}`;
    const ended = await send("DELETE", path);
    remember(ended, one.tenant);
    say($("jobs-said"), `Cancelled after ${count(ended.counts.done)} of ${count(ended.counts.total)} questions.`);
  } catch (error) {
    button.disabled = false;
    say($("jobs-said"), `Not cancelled: ${error.message}`);
  }
}

$("warm-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const questions = $("questions").value.split("\n").map((line) => line.trim()).filter(Boolean);
  if (!questions.length) return;
  const tier = $("warm-tier").value;
  if (await start(tier ? { questions, tier } : { questions })) $("questions").value = "";
});

// ---- what the reader chooses

$("login-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("key").value.trim());
  $("key").value = "";
  say($("login-error"), "");
  connect();
});

$("sign-out").addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  location.reload(); // with it goes every number that was shown
});

$("range").addEventListener("change", (event) => {
  state.range = Number(event.target.value);
  if (state.past) overTime();
});

$("measure").addEventListener("change", (event) => {
  levels.measure = event.target.value;
  levels.redraw();
  levels.tell();
});

const THEMES = ["auto", "light", "dark"];

function theme(name) {
  document.documentElement.dataset.theme = name;
  say($("theme").lastChild, name);
  $("theme").setAttribute("aria-label", `Theme: ${name}`);
  for (const chart of [levels, latency]) chart.redraw();
}

$("theme").addEventListener("click", () => {
  const now = THEMES.indexOf(document.documentElement.dataset.theme);
  const next = THEMES[(now + 1) % THEMES.length];
  localStorage.setItem(THEME, next);
  theme(next);
});

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const chart of [levels, latency]) chart.redraw();
});

// Nobody looks at a hidden page: the gateway need not count for it.
let hiding = null;
document.addEventListener("visibilitychange", () => {
  clearTimeout(hiding);
  if (document.hidden) {
    hiding = setTimeout(() => state.stream?.abort(), HIDDEN_MS);
  } else if (state.stream?.signal.aborted && $("login").hidden) {
    connect();
  }
});

theme(THEMES.includes(localStorage.getItem(THEME)) ? localStorage.getItem(THEME) : "auto");
connect();
