/** The list of jobs. */

import { call, events, jobPath } from "./api.mjs";
import { clock, duration, h, notice, since, status } from "./dom.mjs";

const STATUSES = ["pending", "preparing", "running", "completed", "failed", "timeout", "cancelled"];
const TYPES = ["bash", "python", "node"];
const LIMIT = 100;
const SECONDS_EVERY_MS = 1000;

/** The page, for a query (URLSearchParams of the API's filters). Returns what ends it. */
export function jobsPage(main, query) {
  const body = h("tbody");
  const more = h("button", { class: "quiet", hidden: true, onclick: older }, "Older jobs");
  const empty = h("p", { class: "empty", hidden: true });
  let shown = []; // rows of the API
  let next = null;
  let closed = false;

  main.replaceChildren(
    h("h1", { class: "unseen" }, "Jobs"),
    filters(query),
    h(
      "table",
      { class: "jobs" },
      h("thead", {}, h("tr", {}, ["Status", "Job", "Type", "Host", "Queue", "Created", "Took", "Attempt"].map((name) => h("th", { scope: "col" }, name)))),
      body,
    ),
    empty,
    more,
  );

  // The newest are asked for again when a job's status changes: once at a time, and with time between for the rest.
  let busy = false;
  let again = false;
  async function load() {
    if (busy) {
      again = true;
      return;
    }
    busy = true;
    const started = performance.now();
    try {
      const answer = await call("GET", `jobs?${withLimit(query, Math.max(LIMIT, shown.length))}`);
      if (closed) return;
      shown = answer.data;
      next = answer.next;
      draw();
    } catch (error) {
      if (!closed) notice(error.message);
    }
    setTimeout(() => {
      busy = false;
      if (again && !closed) {
        again = false;
        load();
      }
    }, Math.max(500, 4 * (performance.now() - started)));
  }

  async function older() {
    more.disabled = true;
    try {
      const answer = await call("GET", next);
      shown = shown.concat(answer.data);
      next = answer.next;
      draw();
    } catch (error) {
      notice(error.message);
    }
    more.disabled = false;
  }

  function draw() {
    // A row that has not changed stays the same element: the reader's selection and focus stay, too.
    const old = new Map([...body.children].map((row) => [row.dataset.key, row]));
    body.replaceChildren(...shown.map((job) => old.get(keyOf(job)) ?? jobRow(job)));
    more.hidden = !next;
    empty.hidden = shown.length > 0;
    empty.textContent = [...query].length ? "No job is like that." : "No job yet: make one with “New job”, or with cronium run FILE.";
  }

  const source = events("events", { listening: load, status: load });
  const timer = setInterval(() => {
    for (const cell of body.querySelectorAll("[data-since]")) cell.textContent = duration(since(cell.dataset.since));
  }, SECONDS_EVERY_MS);
  return () => {
    closed = true;
    source.close();
    clearInterval(timer);
  };
}

const keyOf = (job) => JSON.stringify(job);

function withLimit(query, limit) {
  const all = new URLSearchParams(query);
  all.set("limit", Math.min(limit, 10_000));
  return all;
}

function jobRow(job) {
  const running = job.started_at && !job.finished_at;
  const took = job.started_at ? since(job.started_at, job.finished_at ? Date.parse(job.finished_at) : Date.now()) : null;
  const cell = (name, ...children) => h("td", { "data-name": name }, ...children);
  const time = cell("Took", duration(took));
  if (running) time.dataset.since = job.started_at;
  return h(
    "tr",
    { "data-key": keyOf(job) },
    cell("Status", status(job.status)),
    cell("Job", h("a", { class: "id", href: `#/${jobPath(job.id)}` }, job.id)),
    cell("Type", job.type ?? "–"),
    cell("Host", job.host ?? "–"),
    cell("Queue", job.queue ?? "–"),
    cell("Created", h("time", { dateTime: job.created_at, title: job.created_at }, clock(job.created_at))),
    time,
    cell("Attempt", job.attempt > 1 ? String(job.attempt) : ""),
  );
}

function filters(query) {
  const change = (name, values) => {
    const changed = new URLSearchParams(query);
    changed.delete(name);
    for (const value of values) changed.append(name, value);
    location.hash = `#/jobs${[...changed].length ? `?${changed}` : ""}`;
  };
  const chosen = query.getAll("status");
  const text = (name, label) =>
    h("input", { type: "search", placeholder: label, ariaLabel: label, value: query.get(name) ?? "", onchange: (event) => change(name, event.target.value ? [event.target.value] : []) });
  return h(
    "form",
    { class: "filters", onsubmit: (event) => event.preventDefault() },
    h(
      "div",
      { class: "chips", role: "group", ariaLabel: "Status" },
      STATUSES.map((name) => {
        const on = chosen.includes(name);
        const values = on ? chosen.filter((other) => other !== name) : [...chosen, name];
        return h("button", { type: "button", class: `chip ${name}`, ariaPressed: String(on), onclick: () => change("status", values) }, name);
      }),
    ),
    h(
      "select",
      { ariaLabel: "Type", onchange: (event) => change("type", event.target.value ? [event.target.value] : []) },
      h("option", { value: "" }, "any type"),
      TYPES.map((name) => h("option", { value: name, selected: query.get("type") === name }, name)),
    ),
    text("host", "Host"),
    text("queue", "Queue"),
    h("input", { type: "search", placeholder: "Go to a job's id", ariaLabel: "Go to a job's id", onchange: (event) => event.target.value && (location.hash = `#/${jobPath(event.target.value.trim())}`) }),
  );
}
