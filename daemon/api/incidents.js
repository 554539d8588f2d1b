// The incidents of the live page: GET incidents, then new alerts from GET events. Uses functions of page.js.
// Answers are POSTs; a GET never changes anything. Text from a log line is only ever set as textContent.
"use strict";

const SHOWN = 50;
const REFRESH_MS = 15000; // picks up what the stream left out, and which incidents are over
const KIND_VERDICTS = { rule: "attack", new: "novel" }; // all other kinds: anomaly

const items = new Map(); // incident id -> its item on the page
const recordsHeld = new Map(); // alert id -> record, for texts and reasons of incidents listed later
let answered = new Map(); // cause -> the answer in force
let stream = null; // the EventSource

// ---- receiving -----------------------------------------------------------------------------

async function follow() {
  await refresh();
  stream = new EventSource("events");
  stream.onopen = refresh;
  stream.onmessage = (event) => takeRecord(JSON.parse(event.data));
  stream.onerror = () => {
    showStream();
    // The browser gives up for good on an answer that is not a stream, such as 503.
    if (stream.readyState === EventSource.CLOSED) setTimeout(follow, 5 * POLL_MS);
  };
}

async function read(path) {
  const response = await fetch(path, { signal: AbortSignal.timeout(TIMEOUT_MS), cache: "no-store" });
  const body = await response.json();
  if (!response.ok) throw new Error(body.error ? body.error.message : `HTTP ${response.status}`);
  return body;
}

async function refresh() {
  let alerts, listed, answers;
  try {
    [alerts, listed, answers] = await Promise.all([
      read("anomalies?limit=200"), read(`incidents?limit=${SHOWN}`), read("feedback")]);
  } catch (error) {
    put("stream", error.name === "TimeoutError" ? "no answer in time" : error.message);
    return;
  }
  answered = new Map(answers.feedback.map((answer) => [answer.cause, answer]));
  for (const incident of listed.incidents.reverse()) takeIncident(incident);
  for (const record of alerts.anomalies) takeRecord(record);
  for (const item of items.values()) showAnswer(item);
  $("nothing").hidden = items.size > 0;
  showStream();
  lookUp();
}

// An incident of thousands of alerts crowds the first alerts of others out of the latest: fetch those, each once.
async function lookUp() {
  for (const item of [...items.values()]) {
    if (item.lookedUp || (item.record && item.record.id === item.incident.id)) continue;
    item.lookedUp = true;
    try {
      takeRecord(await read(`anomalies/${item.incident.id}`));
    } catch (error) { // its file was rotated away; the listing has the rest
    }
  }
}

function showStream() {
  const live = stream && stream.readyState === EventSource.OPEN;
  put("stream", live ? "live" : stream ? "reconnecting" : "");
}

function takeIncident(incident) {
  const item = itemOf(incident.id, incident.digest);
  Object.assign(item.incident, incident, { count: Math.max(item.incident.count || 0, incident.count) });
  item.record = item.record || recordsHeld.get(incident.id);
  showItem(item);
}

function takeRecord(record) {
  if (!record.flagged) return;
  const id = record.incident || record.id, opens = id === record.id;
  if (opens) hold(record);
  const known = items.has(id);
  const item = itemOf(id, record.digest);
  const incident = item.incident;
  if (opens || (!item.record && !record.stands_for)) item.record = record;
  incident.count = Math.max(incident.count || 0, record.incident_count || 1);
  incident.what = incident.what || record.what || whyOf(record);
  incident.cause = incident.cause || record.cause;
  incident.first_time = incident.first_time || record.time;
  if (!known || !(incident.last_line >= record.line)) { // else the listing tells whether it is over
    incident.last_line = record.line;
    // A line's time may lie before that of a line before it; an incident's does not go back.
    incident.last_time = Math.max(incident.last_time || incident.first_time || 0, record.time || 0);
    incident.open = true;
  }
  showItem(item);
}

function hold(record) {
  recordsHeld.set(record.id, record);
  if (recordsHeld.size > 4 * SHOWN) recordsHeld.delete(recordsHeld.keys().next().value);
}

// ---- items -------------------------------------------------------------------------------------

const orderOf = (id) => id.split(".").map(Number);
const isBefore = ([line, k = 0], [otherLine, otherK = 0]) => line < otherLine || (line === otherLine && k < otherK);

function itemOf(id, digest) {
  const known = items.get(id);
  if (known) return known;
  const item = newItem(id);
  items.set(id, item);
  const list = $(digest ? "digest-incidents" : "incidents");
  // Newest first, from the listing and the stream alike.
  const later = [...list.children].find((other) => isBefore(orderOf(other.dataset.id), orderOf(id)));
  list.insertBefore(item.element, later || null);
  while (list.children.length > SHOWN) { // this one may be the oldest
    items.delete(list.lastElementChild.dataset.id);
    list.lastElementChild.remove();
  }
  $("nothing").hidden = true;
  const waiting = $("digest-incidents").children.length;
  $("digest").hidden = waiting === 0;
  put("digest-summary", `${waiting === SHOWN ? `${SHOWN} and more` : waiting} over the alarm budget: listed, not announced`);
  return item;
}

function newItem(id) {
  const item = { incident: { id }, record: null, element: document.createElement("li"), parts: {} };
  item.element.dataset.id = id;
  const head = div("head"), foot = div("foot"), text = document.createElement("code");
  for (const name of ["verdict", "what", "times", "where"]) head.append(item.parts[name] = span("", name));
  item.parts.where.classList.add("quiet");
  item.parts.text = text;
  for (const answer of ["normal", "anomaly"]) foot.append(item.parts[answer] = button(answer, () => sendAnswer(item, answer)));
  foot.append(item.parts.undo = button("undo", () => sendAnswer(item, "undo")), item.parts.said = span("", "said quiet"));
  item.parts.reasons = reasons(item);
  foot.append(item.parts.reasons);
  item.element.append(head, text, foot);
  return item;
}

function showItem(item) {
  const { incident, record, parts } = item;
  const verdict = record && ["attack", "anomaly", "novel"].includes(record.verdict) ? record.verdict
    : KIND_VERDICTS[incident.kind] || "anomaly";
  parts.verdict.textContent = verdict;
  parts.verdict.className = `verdict ${verdict}`;
  parts.what.textContent = incident.what || "unusual";
  parts.times.textContent = incident.count > 1 ? `× ${count(incident.count)}` : "";
  const where = [`line ${count(orderOf(incident.id)[0])}`];
  if (record && record.session) where.unshift(record.session);
  if (incident.first_time) where.push(clock(incident.first_time));
  if (incident.count > 1 && incident.last_time) where.push(`last ${clock(incident.last_time)}`);
  parts.where.textContent = where.join(" · ");
  parts.text.textContent = record ? record.text || record.template || "" : "";
  parts.text.hidden = !parts.text.textContent;
  parts.text.title = record ? record.template || "" : "";
  parts.reasons.hidden = !(record && record.explain);
  item.element.classList.toggle("over", incident.open === false);
  showAnswer(item);
}

function whyOf(record) { // for a record that an earlier version wrote
  if (record.attack_types && record.attack_types.length) return record.attack_types.join(", ").replaceAll("_", " ");
  const members = Object.entries(record.members || {}).filter(([, m]) => m && Number.isFinite(m.p));
  members.sort(([, a], [, b]) => a.p - b.p);
  const names = members.slice(0, 2).map(([name, m]) => `${memberName(name)} p ${shortP(m.p)}`);
  return (record.closed ? "session closed: " : "") + (names.join(", ") || "unusual");
}

// ---- answers -----------------------------------------------------------------------------------

function showAnswer(item) {
  const { incident, parts } = item, answer = answered.get(incident.cause);
  const answerable = Boolean(incident.cause) && !answer;
  parts.normal.hidden = parts.anomaly.hidden = !answerable;
  parts.undo.hidden = !answer;
  for (const each of [parts.normal, parts.anomaly, parts.undo]) each.disabled = !mayAnswer();
  if (answer) parts.said.textContent = `answered ${answer.answer}${answer.note ? `: ${answer.note}` : ""}`;
  else if (!parts.said.classList.contains("bad")) parts.said.textContent = "";
}

async function sendAnswer(item, what) {
  const { incident, parts } = item, buttons = [parts.normal, parts.anomaly, parts.undo];
  for (const each of buttons) each.disabled = true;
  parts.said.className = "said quiet";
  try {
    const given = answered.get(incident.cause);
    const [path, body] = what === "undo"
      ? [`feedback/${given.id}/undo`, undefined] : ["feedback", JSON.stringify({ id: incident.id, answer: what })];
    const response = await fetch(path, { method: "POST", body, headers: authorization(), signal: AbortSignal.timeout(TIMEOUT_MS) });
    if (response.status === 401) dropToken();
    const reply = await response.json();
    if (!response.ok) throw new Error(reply.error ? reply.error.message : `HTTP ${response.status}`);
    await refresh();
  } catch (error) {
    parts.said.className = "said bad";
    parts.said.textContent = error.name === "TimeoutError" ? "no answer in time" : error.message;
  } finally {
    for (const each of buttons) each.disabled = !mayAnswer();
  }
}

// ---- reasons -----------------------------------------------------------------------------------

function reasons(item) {
  const details = document.createElement("details"), summary = document.createElement("summary");
  details.className = "reasons";
  summary.className = "quiet";
  summary.textContent = "why";
  details.append(summary);
  // Built when it is opened: most never are.
  details.addEventListener("toggle", () => {
    if (details.open) details.replaceChildren(summary, ...explained(item.record.explain));
  });
  return details;
}

function explained(explain) {
  const parts = [];
  const add = (title, ...nodes) => { const head = document.createElement("h3"); head.textContent = title; parts.push(head, ...nodes); };
  const list = (name) => explain[name] || [];
  if (list("members").length) add("detectors", table(["", "score", "p", "threshold"], list("members").map((member) => [
    [memberName(member.name), short(member.score), Number.isFinite(member.p) ? shortP(member.p) : "–", limit(member.threshold)],
    Number.isFinite(member.threshold) && member.score > member.threshold ? "over" : ""])));
  for (const rule of list("rules")) {
    const line = pre(""), match = document.createElement("mark");
    match.textContent = rule.text || "";
    line.append(rule.before || "", match, rule.after || "");
    add(`rule ${rule.name} in ${rule.field}`, line);
  }
  if (list("expected").length) {
    const rows = list("expected").map((one) => [[one.template, share(one.p)], ""]);
    if (explain.found) rows.push([[`${explain.found.template} (came)`, share(explain.found.p)], "over"]);
    const likeliest = explain.found && list("expected").every((one) => one.p <= explain.found.p);
    add(likeliest ? "came as expected; the next likely" : "expected instead", table([], rows));
  }
  if (explain.value) add("the oddest value", pre(explain.value.text
    + (explain.value.characters ? `   odd in it: ${explain.value.characters}` : "")));
  const compared = (features) => table(["", "here", "usually", "at most"], features.map((one) => [[
    one.name.replaceAll("_", " "), short(one.value), short(one.usual), short(one.high)], ""]));
  if (list("features").length) add("stands out", compared(list("features")));
  const much = list("source").filter((counter) => counter.value > counter.usual); // a quiet source is not unusual
  if (much.length) add("its source", compared(much));
  if (list("lines").length) {
    const lines = pre("");
    for (const one of list("lines"))
      lines.append(span(`${one.odd ? "▸" : " "} ${count(one.line)}  ${one.text}\n`, one.odd ? "odd" : ""));
    add("the session's last lines", lines);
  }
  return parts;
}

const short = (value) => (Number.isFinite(value) ? String(Number(value.toPrecision(3))) : "–");

// No threshold: no score of this member alone is a reason to flag.
const limit = (threshold) => (threshold === null ? "none" : short(threshold));

const share = (p) => (p > 0 && p < 0.001 ? "< 0.1 %" : `${(100 * p).toFixed(1)} %`);

function table(titles, rows) {
  const made = document.createElement("table");
  const row = (cells, kind, className) => {
    const line = made.insertRow();
    line.className = className;
    for (const cell of cells) { const each = document.createElement(kind); each.textContent = cell; line.append(each); }
  };
  if (titles.length) row(titles, "th", "");
  for (const [cells, className] of rows) row(cells, "td", className);
  return made;
}

function pre(text) {
  const element = document.createElement("pre");
  element.textContent = text;
  return element;
}

function div(className) {
  const element = document.createElement("div");
  element.className = className;
  return element;
}

function button(text, act) {
  const element = document.createElement("button");
  element.type = "button";
  element.textContent = text;
  element.addEventListener("click", act);
  return element;
}

follow();
setInterval(refresh, REFRESH_MS);
