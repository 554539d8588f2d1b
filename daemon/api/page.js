// The numbers of the live page: GET status every second. Incidents are in incidents.js.
// Text from a log line is only ever set as textContent.
"use strict";

const POLL_MS = 1000;
const TIMEOUT_MS = 4000;
const RATES_SHOWN = 60;

const $ = (id) => document.getElementById(id);
const put = (id, text) => { $(id).textContent = text; };
const count = (n) => (Number.isFinite(n) ? Math.round(n).toLocaleString("en-US") : "–");
const part = (status, name) => status[name] || {};

// ---- token -------------------------------------------------------------------------------------

// `vigilctl page` prints this page's address with a token in the fragment, which no request has in it. It is kept for
// this tab, so that a reload has it, and goes as a header with what changes something.
const TOKEN_KEY = "vigild token", IN_FRAGMENT = /^#token=([\w-]+)$/;

function takeToken() {
  const found = IN_FRAGMENT.exec(location.hash);
  if (!found) return;
  sessionStorage.setItem(TOKEN_KEY, found[1]);
  history.replaceState(null, "", location.pathname + location.search);
  showHint();
}

// Without a token of its own a daemon may still let this page in by a password, which the browser then sends.
let byPassword = false;

function authorization() {
  const token = sessionStorage.getItem(TOKEN_KEY);
  return token === null ? {} : { Authorization: `Bearer ${token}` };
}

function dropToken() { // it is of a daemon that has been restarted since
  sessionStorage.removeItem(TOKEN_KEY);
  showHint();
}

const mayAnswer = () => byPassword || sessionStorage.getItem(TOKEN_KEY) !== null;

function showHint() {
  $("hint").hidden = mayAnswer();
  for (const button of document.querySelectorAll(".foot button")) button.disabled = !mayAnswer();
}

// ---- status ------------------------------------------------------------------------------------

let last = null; // {lines, at} of the poll before
let rates = [];
let failures = 0;

async function poll() {
  try {
    const response = await fetch("status", { signal: AbortSignal.timeout(TIMEOUT_MS), cache: "no-store" });
    const body = await response.json();
    if (!response.ok) throw new Error(body.error ? body.error.message : `HTTP ${response.status}`);
    failures = 0;
    showStatus(body);
  } catch (error) {
    failures += 1;
    if (failures >= 2) showLost(error);
  }
  setTimeout(poll, POLL_MS);
}

function showStatus(status) {
  document.body.classList.remove("stale");
  const state = status.status || "serving";
  showHealth(state, state === "serving" ? "good" : status.serving === false && state === "degraded" ? "bad" : "warn");
  put("version", status.version ? `version ${status.version}` : "");
  showNotice(failuresOf(status, state));
  showPhase(status);
  showNumbers(status);
  showMembers(status);
  byPassword = part(status, "places").token_of === "settings";
  showHint();
}

function showLost(error) {
  document.body.classList.add("stale");
  showHealth("disconnected", "bad");
  showNotice([`The daemon does not answer (${error.name === "TimeoutError" ? "no answer in time" : error.message}). `
    + "The numbers below are the last ones received; this page keeps trying."], true);
  last = null;
}

function showHealth(text, tone) {
  put("health", text);
  $("health").className = `pill ${tone}`;
  document.title = tone === "good" ? "vigild" : `${text} · vigild`;
}

let noticed = "";

function showNotice(sentences, bad = false) {
  $("notice").classList.toggle("bad", bad);
  if (noticed === sentences.join("\n")) return; // or a screen reader would read it out again each time
  noticed = sentences.join("\n");
  $("notice").hidden = sentences.length === 0;
  $("notice").replaceChildren(...sentences.map((sentence) => {
    const line = document.createElement("p");
    line.textContent = sentence;
    return line;
  }));
}

const asSentence = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;

function failuresOf(status, state) {
  const found = [];
  const alarms = part(status, "alarms"), training = part(status, "training"), recovery = part(status, "recovery");
  const reasons = (status.reasons || []).map((reason) => reason.text);
  if (state !== "serving" && state !== "starting" && !reasons.length) reasons.push(status.reason || `${state}, for no known reason`);
  found.push(...reasons.map(asSentence));
  if (alarms.records_lost > 0)
    found.push(`${count(alarms.records_lost)} alerts and verdicts could not be written and are lost.`);
  if (training.refusal) found.push(`The last model trained was refused, the one before stays: ${training.refusal}.`);
  if (recovery.lost_lines > 0) found.push(`The last start lost ${count(recovery.lost_lines)} lines.`);
  if (recovery.set_aside && recovery.set_aside.length)
    found.push(`Damaged files set aside: ${recovery.set_aside.map(nameOf).join(", ")}.`);
  return found;
}

const nameOf = (item) => (typeof item === "string" ? item : item.name || item.path || JSON.stringify(item));

const withdrawnFrom = (status) => (part(status, "training").withdrawn || []).map((one) => one.member);

function showPhase(status) {
  const order = ["warmup", "training", "ensemble"];
  const starting = status.status === "starting";
  const now = starting ? -1 : order.indexOf(status.phase); // unknown while the state is being read
  for (const step of $("steps").children) {
    const place = order.indexOf(step.dataset.phase);
    step.className = place < now ? "done" : place === now ? "now" : "";
    if (place === now) step.setAttribute("aria-current", "step"); else step.removeAttribute("aria-current");
  }
  const training = part(status, "training");
  const failed = [...withdrawnFrom(status), ...Object.keys(training.unfitted || {})];
  const scoring = failed.length ? `All detectors score but ${failed.join(", ")}` : "All detectors score";
  let percent = null, text = `${scoring}.`, detail = "";
  if (starting) {
    percent = status.reading ? status.reading.percent : null;
    text = asSentence(status.reason || "starting");
  } else if (status.training_in_progress) {
    percent = training.percent;
    text = status.phase === "ensemble" ? `${scoring}; the next generation is in training` : "Training";
    if (Number.isFinite(percent)) text += ` · ${Math.floor(percent)} %`;
    const facts = [];
    if (training.epoch != null) facts.push(`epoch ${training.epoch}${training.epochs ? ` of ${training.epochs}` : ""}`);
    if (Number.isFinite(training.loss)) facts.push(`loss ${training.loss.toFixed(3)}`);
    if (Number.isFinite(training.seconds_left)) facts.push(`${duration(training.seconds_left)} left`);
    detail = facts.join(" · ");
  } else if (status.phase === "warmup") {
    percent = status.warmup_target ? Math.min(100, (100 * status.logs_processed) / status.warmup_target) : null;
    text = `Learning what is normal: ${count(status.logs_processed)} of ${count(status.warmup_target)} lines`;
    const rate = rates[rates.length - 1];
    if (rate > 0) detail = `about ${duration(Math.max(0, status.warmup_target - status.logs_processed) / rate)} left`;
  } else if (status.phase === "training") {
    text = "Training is about to start.";
  }
  put("phase-text", text);
  put("phase-detail", detail);
  $("bar").hidden = percent === null || percent === undefined;
  $("bar").setAttribute("aria-valuenow", Math.round(percent || 0));
  $("bar-fill").style.width = `${percent || 0}%`;
}

function showNumbers(status) {
  if (status.status === "starting") {
    put("lines", status.logs_processed > 0 ? count(status.logs_processed) : "–");
    for (const id of ["flagged", "risk", "tier"]) put(id, "–");
    for (const id of ["rate", "flagged-detail", "budget", "checkpoint", "recovery"]) put(id, "\u00a0");
    last = null;
    return;
  }
  const lines = status.logs_processed, at = performance.now();
  if (last && at > last.at) {
    rates.push(Math.max(0, (1000 * (lines - last.lines)) / (at - last.at)));
    rates = rates.slice(-RATES_SHOWN);
    const recent = rates.slice(-3);
    put("rate", `${count(recent.reduce((sum, rate) => sum + rate, 0) / recent.length)} lines/s`);
    drawRates();
  }
  last = { lines, at };
  put("lines", count(lines));

  const alarms = part(status, "alarms"), checkpoint = part(status, "checkpoint"), recovery = part(status, "recovery");
  const incidents = alarms.incidents || {};
  put("flagged", count(incidents.opened != null ? incidents.opened : alarms.flagged));
  put("flagged-detail", incidents.opened != null
    ? [`${count(incidents.open)} open`, `${count(alarms.flagged)} alerts`].join(" · ") : "");
  put("budget", alarms.floor_binding ? "too few sessions yet to keep the budget"
    : alarms.per_day != null ? `budget ${alarms.per_day} a day` : "");
  put("risk", count(checkpoint.lines_at_risk));
  $("risk-tile").classList.toggle("alarm", Boolean(checkpoint.error));
  put("checkpoint", checkpoint.error ? "last checkpoint failed"
    : checkpoint.last_time ? `checkpoint ${ago(checkpoint.last_time)}` : "no checkpoint yet");
  put("tier", recovery.tier || "–");
  put("recovery", recovery.tier === "fresh" ? "nothing was there to load"
    : recovery.snapshot_line != null
      ? `line ${count(recovery.snapshot_line)} + ${count(recovery.replayed_lines || 0)} replayed` : "");
}

function drawRates() {
  const top = Math.max(1, ...rates), step = 120 / (RATES_SHOWN - 1), start = 120 - (rates.length - 1) * step;
  const points = rates.map((rate, i) => `${(start + i * step).toFixed(1)},${(31 - (29 * rate) / top).toFixed(1)}`);
  const line = `M${points.join("L")}`;
  $("spark").querySelector(".line").setAttribute("d", line);
  $("spark").querySelector(".area").setAttribute("d", `${line}L120,32L${start.toFixed(1)},32Z`);
}

const MEMBER_NAMES = {
  rule_based: "Rules", isolation_forest: "Isolation Forest", transformer: "Transformer",
  ngram: "N-grams", counts: "Counts", values: "Values", sources: "Sources",
};

function showMembers(status) {
  const members = Object.entries(status.active_models || {}), starting = status.status === "starting";
  const withdrawn = new Set(withdrawnFrom(status)), unfitted = part(status, "training").unfitted || {};
  $("members").replaceChildren(...members.map(([name, ready]) => {
    const item = document.createElement("li");
    item.className = ready ? "ready" : "";
    const failed = withdrawn.has(name) ? "withdrawn" : name in unfitted ? "not fitted" : "learning";
    const condition = ready ? "ready" : starting ? "being read" : failed;
    item.append(span(memberName(name)), span(condition, "quiet"));
    return item;
  }));
}

// ---- text ---------------------------------------------------------------------------------------

const shortP = (p) => (p === 0 ? "0" : p >= 0.001 ? p.toFixed(3) : p.toExponential(0));
const memberName = (name) => MEMBER_NAMES[name] || name.replaceAll("_", " ");

function span(text, className = "") {
  const element = document.createElement("span");
  element.className = className;
  element.textContent = text;
  return element;
}

function clock(time) { // epoch seconds, or text as the record has it
  const date = new Date(typeof time === "number" ? time * 1000 : time);
  return Number.isNaN(date.getTime()) ? String(time) : date.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium", hourCycle: "h23" });
}

function ago(time) {
  const seconds = Date.now() / 1000 - time;
  return seconds < 2 ? "just now" : `${duration(seconds)} ago`;
}

function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 129600 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} d`;
}

takeToken();
addEventListener("hashchange", takeToken);
poll();
