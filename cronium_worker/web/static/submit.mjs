/** A new job. */

import { call, jobPath, newId } from "./api.mjs";
import { h, notice } from "./dom.mjs";

const DRAFT = "cronium-draft"; // of this tab alone
const EXAMPLES = {
  bash: 'name=$(cronium_input | jq -r \'.name // "world"\')\necho "hello $name"\ncronium_output "$(jq -n --arg name "$name" \'{greeted: $name}\')"\n',
  python: 'name = cronium.input().get("name", "world")\nprint(f"hello {name}")\ncronium.output({"greeted": name})\n',
  node: 'const { name = "world" } = cronium.input();\nconsole.log(`hello ${name}`);\ncronium.output({ greeted: name });\n',
};
const INDENT = { bash: "  ", python: "    ", node: "  " };

/** Keep a job for the next visit of the page: what the API has of one, or what was typed. Secrets are not kept. */
export function keepDraft(job) {
  sessionStorage.setItem(DRAFT, JSON.stringify(job));
}

function draft() {
  try {
    return JSON.parse(sessionStorage.getItem(DRAFT)) ?? {};
  } catch {
    return {};
  }
}

const lines = (values) => Object.entries(values ?? {}).map(([name, value]) => `${name}=${value}`).join("\n");
const shownJson = (value) => (value == null || (typeof value === "object" && !Object.keys(value).length) ? "" : JSON.stringify(value, null, 2));

export function submitPage(main) {
  const old = draft();
  const { resources = {}, network = {}, retry = {} } = old;
  const given = old.script?.content;
  let type = old.script?.type ?? "bash";

  const editor = h("textarea", { class: "code", name: "script.content", spellcheck: false, autocapitalize: "off", ariaLabel: "Script", rows: 18, value: given ?? EXAMPLES[type], onkeydown: typed });
  const field = (name, label, options = {}) => h("label", {}, h("span", {}, label), h("input", { name, autocomplete: "off", ...options }));
  const area = (name, label, options) => h("label", {}, h("span", {}, label), h("textarea", { name, class: "code", rows: 4, spellcheck: false, ...options }));
  const choice = (name, label, values) => h("label", {}, h("span", {}, label), h("select", { name }, values.map((value) => h("option", { value }, value))));
  const problem = h("p", { class: "problem", role: "alert", hidden: true });
  const button = h("button", { class: "primary", type: "submit" }, "Run");

  const form = h(
    "form",
    { class: "submit", onsubmit: (event) => (event.preventDefault(), send()) },
    h(
      "div",
      { class: "editor" },
      h(
        "div",
        { class: "chips", role: "radiogroup", ariaLabel: "Language" },
        Object.keys(EXAMPLES).map((name) => h("label", { class: "chip" }, h("input", { type: "radio", name: "type", value: name, checked: name === type, onchange: () => choose(name) }), { bash: "Bash", python: "Python", node: "Node.js" }[name])),
      ),
      editor,
      problem,
      h("div", { class: "row" }, button, h("span", { class: "muted" }, "Ctrl+Enter")),
    ),
    h(
      "aside",
      {},
      area("input_data", "Input (JSON)", { placeholder: '{"name": "Ada"}', value: shownJson(old.input_data) }),
      area("variables", "Variables (JSON object)", { rows: 2, value: shownJson(old.variables) }),
      area("environment", "Environment (NAME=value, a line each)", { rows: 2, value: lines(old.environment) }),
      area("secrets", "Secrets (NAME=value, a line each)", { rows: 2, autocomplete: "off" }),
      h(
        "fieldset",
        {},
        h("legend", {}, "Limits"),
        field("timeout", "Time, s", { type: "number", min: 1, placeholder: "3600", value: old.timeout ?? "" }),
        field("cpu", "Cores", { type: "number", min: 0.01, step: "any", placeholder: "0.5", value: resources.cpu ?? "" }),
        field("memory", "Memory", { placeholder: "512m", value: resources.memory ?? "" }),
        field("disk", "Disk", { placeholder: "1g", value: resources.disk ?? "" }),
        field("pids", "Processes", { type: "number", min: 1, placeholder: "100", value: resources.pids ?? "" }),
        field("max_attempts", "Attempts", { type: "number", min: 1, placeholder: "1", value: retry.max_attempts ?? "" }),
      ),
      h(
        "details",
        { class: "schedule" },
        h("summary", {}, "Again and again"),
        field("name", "Schedule's name", { placeholder: "nightly", oninput: () => (button.textContent = form.elements.namedItem("name").value.trim() ? "Keep schedule" : "Run") }),
        field("cron", "Cron expression", { placeholder: "30 2 * * *" }),
        field("every", "or every", { placeholder: "5m" }),
        field("timezone", "Time zone", { placeholder: "UTC" }),
        choice("overlap", "If the last has not ended", ["allow", "skip", "cancel-previous"]),
        choice("missed", "If no beat ran", ["skip", "run-once"]),
      ),
      h(
        "details",
        { open: Boolean(old.queue || old.image || network.mode) },
        h("summary", {}, "Where and how"),
        field("mode", "Network", { placeholder: "isolated", value: network.mode ?? "" }),
        field("image", "Image", { placeholder: "the fleet's", value: old.image ?? "" }),
        field("queue", "Queue", { placeholder: "cronium.jobs", value: old.queue ?? "" }),
        field("priority", "Priority (0–9)", { type: "number", min: 0, max: 9, placeholder: "5", value: old.priority ?? "" }),
        field("id", "Id", { placeholder: "made for it" }),
      ),
    ),
  );
  main.replaceChildren(h("h1", { class: "unseen" }, "New job"), form);
  editor.focus();
  editor.setSelectionRange(0, 0);

  function choose(name) {
    if (editor.value === EXAMPLES[type] || !editor.value.trim()) editor.value = EXAMPLES[name];
    type = name;
  }

  function typed(event) {
    if ((event.ctrlKey || event.metaKey) && event.key === "Enter") send();
    if (event.key !== "Tab" || event.shiftKey || event.ctrlKey || event.altKey) return;
    event.preventDefault();
    editor.setRangeText(INDENT[type], editor.selectionStart, editor.selectionEnd, "end");
  }

  async function send() {
    let job;
    try {
      job = jobOf(form, old, type, editor.value);
    } catch (error) {
      return say(error.message);
    }
    button.disabled = true;
    try {
      const schedule = scheduleOf(form, job);
      const { data } = await call("POST", schedule ? "schedules" : "jobs", schedule ?? { ...job, id: job.id ?? newId() });
      keepDraft({ ...job, id: undefined, secrets: undefined });
      location.hash = schedule ? "#/schedules" : `#/${jobPath(data.id)}`;
    } catch (error) {
      say(error.message);
    }
    button.disabled = false;
  }

  function say(text) {
    notice();
    problem.textContent = text;
    problem.hidden = false;
    const name = text.split(":")[0].split(".").at(-1);
    form.elements.namedItem(name)?.focus?.();
  }
}

/** The job of the form; fields that it does not have (`old`) stay. Throws Error with the field's name. */
function jobOf(form, old, type, content) {
  const text = (name) => form.elements.namedItem(name).value.trim();
  const number = (name) => (text(name) === "" ? undefined : Number(text(name)));
  const size = (name) => (/^\d+$/.test(text(name)) ? Number(text(name)) : text(name) || undefined);
  const some = (values) => (Object.values(values).some((value) => value !== undefined) ? values : undefined);
  return {
    ...old,
    id: text("id") || undefined,
    script: { ...old.script, type, content },
    input_data: jsonOf("input_data", text("input_data")),
    variables: jsonOf("variables", text("variables")),
    environment: pairsOf("environment", form.elements.namedItem("environment").value),
    secrets: pairsOf("secrets", form.elements.namedItem("secrets").value),
    timeout: number("timeout"),
    resources: some({ ...old.resources, cpu: number("cpu"), memory: size("memory"), disk: size("disk"), pids: number("pids") }),
    retry: some({ ...old.retry, max_attempts: number("max_attempts") }),
    network: some({ ...old.network, mode: text("mode") || undefined }),
    image: text("image") || undefined,
    queue: text("queue") || undefined,
    priority: number("priority"),
  };
}

/** The form's schedule of a job; null: the job is to run now. */
function scheduleOf(form, job) {
  const text = (name) => form.elements.namedItem(name).value.trim() || undefined;
  if (!text("name")) return null;
  const fields = ["name", "cron", "every", "timezone", "overlap", "missed"].map((name) => [name, text(name)]);
  return { ...Object.fromEntries(fields), job };
}

function jsonOf(name, text) {
  if (!text) return undefined;
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`${name}: not JSON: ${error.message}`);
  }
}

function pairsOf(name, text) {
  const pairs = {};
  for (const line of text.split("\n")) {
    const end = line.indexOf("=");
    if (!line.trim()) continue;
    if (end < 1) throw new Error(`${name}: NAME=value is wanted in each line`);
    pairs[line.slice(0, end).trim()] = line.slice(end + 1);
  }
  return Object.keys(pairs).length ? pairs : undefined;
}
