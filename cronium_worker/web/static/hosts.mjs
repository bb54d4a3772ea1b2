/** The hosts of the fleet. */

import { call, get } from "./api.mjs";
import { bytes, duration, h, notice, since, status } from "./dom.mjs";

const EVERY_MS = 3000;

export function hostsPage(main) {
  const list = h("div", { class: "hosts" });
  main.replaceChildren(h("h1", { class: "unseen" }, "Hosts"), list);
  let closed = false;
  let timer = null;
  const open = new Set(); // hosts whose images are shown

  async function load() {
    clearTimeout(timer);
    try {
      const hosts = (await get("hosts")).sort((a, b) => (a.state === "gone") - (b.state === "gone")); // otherwise by name
      if (closed) return;
      for (const details of list.querySelectorAll("details")) open[details.open ? "add" : "delete"](details.dataset.host);
      list.replaceChildren(...(hosts.length ? hosts.map((host) => card(host, open, load)) : [h("p", { class: "empty" }, "No host yet: start one with cronium worker.")]));
    } catch (error) {
      if (!closed) notice(error.message);
    }
    if (!closed) timer = setTimeout(load, EVERY_MS);
  }

  load();
  return () => {
    closed = true;
    clearTimeout(timer);
  };
}

function card(host, open, reload) {
  const { jobs, agent } = host.nodes;
  const { cleanup, prepull } = host.housekeeping;
  const whole = jobs?.capacity?.whole;
  const reserved = jobs?.capacity?.reserved;
  const rows = [
    ["Queues", jobs?.queues?.join(", ")],
    ["Sandboxes that wait", jobs?.pool && poolOf(jobs.pool)],
    ["Engine", agent?.engine && `${agent.engine}, cgroup v${agent.cgroup}`],
    ["Version", jobs?.version],
    ["Free disk", jobs?.free_bytes && Object.entries(jobs.free_bytes).map(([path, free]) => `${bytes(free)} in ${path}`).join(", ")],
    ["Heard of", host.last_beat_s == null ? null : `${duration(host.last_beat_s)} ago`],
    ["Cleaned up", cleanup?.at && `${duration(since(cleanup.at))} ago${cleanup.error ? `: ${cleanup.error}` : ""}`],
  ];
  const images = prepull?.images ?? [];
  return h(
    "section",
    { class: "host" },
    h("header", {}, h("h2", {}, host.name), status(host.state), h("span", { class: "grow" }), drainButton(host, reload)),
    jobs?.unfit && h("p", { class: "problem" }, jobs.unfit),
    jobs && meter("Jobs", jobs.running, jobs.slots, String),
    whole && meter("Cores promised", reserved.millicores / 1000, whole.millicores / 1000, (cores) => cores.toFixed(1)),
    whole && meter("Memory promised", reserved.memory, whole.memory, bytes),
    h("dl", {}, rows.filter(([, value]) => value).map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    images.length > 0 && h("details", { "data-host": host.name, open: open.has(host.name) }, h("summary", {}, `${images.length} images`), h("ul", {}, images.map((row) => h("li", {}, row.image, row.error && h("span", { class: "problem" }, ` ${row.error}`))))),
  );
}

function poolOf({ waiting, hits, misses }) {
  return `${waiting}; ${hits} of ${hits + misses} jobs had one`;
}

function meter(name, value, most, show) {
  const part = most ? Math.min(1, value / most) : 0;
  const bar = h("span", { class: `bar${part > 0.9 ? " full" : ""}` });
  bar.style.width = `${part * 100}%`;
  return h("div", { class: "meter", role: "meter", ariaLabel: name, ariaValueNow: value, ariaValueMax: most }, h("span", {}, name), h("span", { class: "track" }, bar), h("span", { class: "muted" }, `${show(value)} of ${show(most)}`));
}

function drainButton(host, reload) {
  const drained = host.state === "draining";
  const act = async (event) => {
    event.target.disabled = true;
    try {
      await call(drained ? "DELETE" : "PUT", `hosts/${encodeURIComponent(host.name)}/drain`);
      notice(drained ? `${host.name} takes jobs again.` : `${host.name} takes no more jobs; what runs there runs on.`, { isError: false });
    } catch (error) {
      notice(error.message);
    }
    setTimeout(reload, 700);
  };
  return h("button", { class: "quiet", onclick: act }, drained ? "Take jobs again" : "Drain");
}
