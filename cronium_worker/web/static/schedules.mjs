/** The schedules: jobs that run again and again. */

import { call, get, jobPath } from "./api.mjs";
import { fill, h, notice, status, time } from "./dom.mjs";

const EVERY_MS = 5000;

export function schedulesPage(main) {
  const body = h("tbody");
  const empty = h("p", { class: "empty", hidden: true }, "No schedule yet: make one with “New job”, or with cronium schedule add.");
  const columns = ["Schedule", "When", "Next", "Last", "Status", "Note", ""];
  const table = h("table", {}, h("thead", {}, h("tr", {}, columns.map((name) => h("th", { scope: "col" }, name)))), body);
  main.replaceChildren(h("h1", { class: "unseen" }, "Schedules"), h("div", { class: "wide" }, table), empty);
  let closed = false;
  let timer = null;

  async function load() {
    clearTimeout(timer);
    try {
      const schedules = await get("schedules");
      if (closed) return;
      fill(body, schedules.map((schedule) => row(schedule, act)));
      empty.hidden = schedules.length > 0;
    } catch (error) {
      if (!closed) notice(error.message);
    }
    if (!closed) timer = setTimeout(load, EVERY_MS);
  }

  async function act(event, method, path) {
    event.target.disabled = true;
    try {
      await call(method, path);
    } catch (error) {
      notice(error.message);
    }
    load();
  }

  load();
  return () => {
    closed = true;
    clearTimeout(timer);
  };
}

function row(schedule, act) {
  const path = `schedules/${encodeURIComponent(schedule.name)}`;
  const when = schedule.cron ? `${schedule.cron} · ${schedule.timezone}` : `every ${schedule.every} s`;
  const remove = (event) => confirm(`Remove the schedule ${schedule.name}? Runs that have begun go on.`) && act(event, "DELETE", path);
  return h(
    "tr",
    {},
    h("td", { class: "id" }, schedule.name),
    h("td", {}, h("code", {}, when), h("div", { class: "muted" }, `overlap: ${schedule.overlap} · missed: ${schedule.missed}`)),
    h("td", {}, schedule.paused ? "paused" : time(schedule.next_at)),
    h("td", {}, schedule.last_job_id ? h("a", { href: `#/${jobPath(schedule.last_job_id)}` }, time(schedule.last_due_at)) : "–"),
    h("td", {}, schedule.status ? status(schedule.status) : "–"),
    h("td", { class: "note" }, schedule.note ?? ""),
    h(
      "td",
      { class: "acts" },
      h("button", { class: "quiet", onclick: (event) => act(event, schedule.paused ? "DELETE" : "PUT", `${path}/pause`) }, schedule.paused ? "Resume" : "Pause"),
      h("button", { class: "quiet", onclick: remove }, "Remove"),
    ),
  );
}
