/** One job: its way, its log as it comes, and what it left. */

import { call, events, get, jobPath } from "./api.mjs";
import { bytes, clock, duration, fill, h, notice, since, status, time } from "./dom.mjs";
import { shortJson } from "./json.mjs";
import { LogView } from "./log.mjs";
import { Plot } from "./plot.mjs";
import { keepDraft } from "./submit.mjs";

const TOGETHER_MS = 50; // status events that come at once are one question for the record
const MOST_CHARACTERS = 20_000; // of a text in the document
const MOST_ITEMS = 200;
const TERMINAL = ["completed", "failed", "timeout", "cancelled"];

/** The page of a job. Returns what ends it. */
export function jobPage(main, id) {
  const path = jobPath(id);
  const head = h("div", { class: "job-head" });
  const steps = h("ol", { class: "steps", ariaLabel: "Workflow", hidden: true });
  const line = h("ol", { class: "way", ariaLabel: "The job's way" });
  const progress = h("p", { class: "progress muted", hidden: true });
  const outcome = h("div", { class: "outcome" });
  const log = new LogView(`${path}/log`);
  const plot = new Plot();
  const changes = []; // status events
  const ended = () => TERMINAL.includes(changes.at(-1)?.status);
  let job = null; // as the API has it
  let closed = false;
  let timer = null;
  let fleet = null; // the events of all jobs

  main.replaceChildren(head, steps, line, progress, h("div", { class: "job" }, log.element, h("aside", {}, outcome, plot.element)));

  async function load() {
    try {
      job = await get(path);
    } catch (error) {
      if (!closed) notice(error.message);
      if (error.code === 404) source.close();
      return;
    }
    if (closed) return;
    drawHead();
    outcome.replaceChildren(...outcomeOf(job));
    drawSteps();
  }

  function drawHead() {
    const over = TERMINAL.includes(job.status);
    fill(
      head,
      status(job.status),
      h("h1", { class: "id", title: "The job's id" }, job.id),
      h("span", { class: "grow" }),
      !over && h("button", { class: "danger", onclick: cancel }, "Cancel"),
      over && h("button", { onclick: runAgain }, "Run again"),
      h("button", { class: "quiet", onclick: edit }, "Edit as new"),
    );
    document.title = `${job.status} · ${job.id.slice(0, 12)} · cronium`;
  }

  /** The workflow's; those of other jobs change while this one does not. */
  function drawSteps() {
    steps.hidden = job.workflow.length === 0;
    fill(steps, job.workflow.map((step) => stepOf(step, id)));
    const others = job.workflow.some((step) => step.job_id !== id && !TERMINAL.includes(step.status));
    if (others && !fleet) fleet = events("events", { listening: load, status: (event) => job.workflow.some((step) => step.job_id === event.job_id) && loadSoon() });
  }

  async function cancel(event) {
    event.target.disabled = true;
    await acting("DELETE", path, "It is being cancelled; its script has its grace period.");
  }

  async function runAgain(event) {
    event.target.disabled = true;
    const made = await acting("POST", `${path}/rerun`);
    if (made) location.hash = `#/${jobPath(made.id)}`;
    else event.target.disabled = false;
  }

  function edit() {
    keepDraft(job.job);
    location.hash = "#/new";
  }

  function onStatus(event) {
    changes.push(event);
    line.replaceChildren(...wayOf(changes));
    if (ended()) {
      source.close();
      progress.hidden = true;
    }
    loadSoon();
  }

  function loadSoon() {
    clearTimeout(timer);
    timer = setTimeout(load, TOGETHER_MS);
  }

  const source = events(
    `${path}/events`,
    {
      status: onStatus,
      log: (event) => log.add(event.stream, event.data),
      metrics: (event) => plot.add(event),
      progress: (event) => {
        progress.textContent = event.message;
        progress.hidden = false;
        progress.classList.toggle("warning", Boolean(event.gap));
      },
    },
    { onOpen: () => notice(), onLost: () => closed || ended() || notice("The connection is lost; it is taken up again where it was.") },
  );
  load();
  return () => {
    closed = true;
    clearTimeout(timer);
    source.close();
    fleet?.close();
    document.title = "cronium";
  };
}

async function acting(method, path, said) {
  try {
    const { data } = await call(method, path);
    if (said) notice(said, { isError: false });
    return data;
  } catch (error) {
    notice(error.message);
    return null;
  }
}

/** What has happened, each with the time that it took until the next. */
function wayOf(changes) {
  return changes.map((step, index) => {
    const next = changes[index + 1];
    const took = next ? duration(since(step.ts, Date.parse(next.ts))) : clock(step.ts);
    const attempt = step.attempt > 1 ? ` · attempt ${step.attempt}` : "";
    return h("li", { class: step.status, title: `${step.ts}\n${step.message}` }, status(step.status), h("span", { class: "muted" }, took), h("span", { class: "message" }, step.message + attempt));
  });
}

function stepOf(step, id) {
  const link = h("a", { href: `#/${jobPath(step.job_id)}`, ariaCurrent: step.job_id === id ? "page" : null }, step.name);
  const order = step.after && h("span", { class: "muted" }, `on ${step.on.replace("_", " ")} of ${step.after}`);
  return h("li", {}, step.status ? link : h("span", {}, step.name), step.status ? status(step.status) : h("span", { class: "muted" }, "to come"), order);
}

function outcomeOf({ result, job, ...record }) {
  const parts = [];
  if (result?.error) parts.push(errorOf(result.error));
  if (result) {
    const { data, variables, condition, files, notes } = result.output;
    if (data !== null) parts.push(section("Output", json(data)));
    if (condition !== null) parts.push(section("Condition", h("p", { class: `condition ${condition}` }, String(condition))));
    if (Object.keys(variables).length) parts.push(section("Variables", json(variables)));
    if (Object.keys(files).length) parts.push(section("Files", fileList(files)));
    if (notes.length) parts.push(section("Notes", items("", notes, (text) => h("li", {}, text))));
  }
  parts.push(section("Details", details(record, result)));
  if (job?.script) parts.push(definition(job));
  return parts;
}

const section = (name, ...children) => h("section", {}, h("h2", {}, name), ...children);
const json = (value) => code("json", shortJson(value, MOST_CHARACTERS));

/** A text of a job's. All of it is in the API's answer. */
function code(name, text) {
  const more = text.length > MOST_CHARACTERS && h("p", { class: "muted" }, "This is its beginning; all of it is in the API's answer.");
  return [h("pre", { class: name, tabIndex: 0 }, text.slice(0, MOST_CHARACTERS)), more];
}

function errorOf(error) {
  return h(
    "section",
    { class: "error-box" },
    h("h2", {}, error.type, error.retryable && h("span", { class: "muted" }, " may succeed when it is run again")),
    h("p", {}, error.message.slice(0, MOST_CHARACTERS)),
    Object.keys(error.details).length > 0 && h("details", {}, h("summary", {}, "Details"), json(error.details)),
  );
}

function fileList(files) {
  const link = (name, file) => h("a", { href: file.url.replace(/^\//, ""), download: "", title: `SHA-256 ${file.sha256}` }, name);
  return items("files", Object.entries(files), ([name, file]) =>
    h("li", {}, file.url ? link(name, file) : h("span", { title: "over the limits of a result" }, name), " ", h("span", { class: "muted" }, bytes(file.size))),
  );
}

/** A list, of which some hundred are shown at first. */
function items(name, values, item) {
  const list = h("ul", { class: name });
  const more = h("button", { class: "quiet", onclick: show });
  let shown = 0;
  function show() {
    list.append(...values.slice(shown, shown + MOST_ITEMS).map(item));
    shown = list.childElementCount;
    more.textContent = `${(values.length - shown).toLocaleString()} more`;
    more.hidden = shown >= values.length;
  }
  show();
  return [list, more];
}

function details(record, result) {
  const rows = [
    ["Type", record.type],
    ["Host", record.host],
    ["Queue", record.queue],
    ["Image", result?.image],
    ["Exit code", result?.exit_code],
    ["Attempt", record.attempt],
    ["Created", time(record.created_at)],
    ["Started", record.started_at && time(record.started_at)],
    ["Ended", record.finished_at && time(record.finished_at)],
  ];
  if (result) {
    const { timings, metrics, log } = result;
    rows.push(
      ["Queue · set-up · run · collect", [timings.queue_s, timings.setup_s, timings.run_s, timings.collect_s].map(duration).join(" · ")],
      ["Processor", metrics.cpu_seconds == null ? null : duration(metrics.cpu_seconds)],
      ["Memory, at most", metrics.memory_peak_bytes == null ? null : bytes(metrics.memory_peak_bytes)],
      ["Processes, at most", metrics.pids_peak],
      ["Network, in · out", metrics.network_rx_bytes == null ? null : `${bytes(metrics.network_rx_bytes)} · ${bytes(metrics.network_tx_bytes)}`],
      ["Disk, read · written", metrics.disk_read_bytes == null ? null : `${bytes(metrics.disk_read_bytes)} · ${bytes(metrics.disk_write_bytes)}`],
      ["Log", `${log.lines.toLocaleString()} lines, ${bytes(log.bytes)}${log.truncated ? ", cut" : ""}${log.gap ? ", a part may be missing" : ""}`],
    );
  }
  return h("dl", {}, rows.filter(([, value]) => value != null && value !== "").map(([name, value]) => [h("dt", {}, name), h("dd", {}, typeof value === "object" ? value : String(value))]));
}

function definition({ script, ...rest }) {
  return h("details", { class: "definition" }, h("summary", {}, "The job as it was given"), code("code", script.content), Object.keys(rest).length > 1 && json(rest));
}
