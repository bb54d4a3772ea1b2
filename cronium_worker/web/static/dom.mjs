/** Elements and texts. Whatever a job or a host has said gets into the page as text only. */

/** An element: `h("a", {href: "#/", class: "brand", onclick: f}, "text", child, null)`. */
export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key in element && key !== "list") element[key] = value;
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key === "className" ? "class" : key, value);
  }
  element.append(...present(children));
  return element;
}

/** Put these in the place of what an element holds; null and false are nothing. */
export function fill(element, ...children) {
  element.replaceChildren(...present(children));
}

const present = (children) => children.flat(Infinity).filter((child) => child != null && child !== false);

/** The same for SVG. */
export function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

export function status(name) {
  return h("span", { class: `status ${name}` }, name);
}

/** 1536 -> "1.5 KiB". */
export function bytes(count) {
  if (count == null) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = count ? Math.min(Math.floor(Math.log2(count) / 10), units.length - 1) : 0;
  const value = count / 1024 ** power;
  return `${value.toFixed(power && value < 100 ? 1 : 0)} ${units[power]}`;
}

/** Seconds as a person reads them: 0.012 -> "12 ms", 75 -> "1 min 15 s". */
export function duration(seconds) {
  if (seconds == null || !(seconds >= 0)) return "–";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const whole = Math.round(seconds);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

export function since(iso, end = Date.now()) {
  return Math.max(0, (end - Date.parse(iso)) / 1000);
}

/** "14:03:05" of today, with the date on other days. */
export function clock(iso) {
  if (!iso) return "–";
  const date = new Date(iso);
  const time = date.toLocaleTimeString([], { hour12: false });
  return date.toDateString() === new Date().toDateString() ? time : `${date.toLocaleDateString()} ${time}`;
}

export function time(iso) {
  return h("time", { dateTime: iso ?? "", title: iso ?? "" }, clock(iso));
}

let noticeTimer;

/** Say something over the page: an error until the next one or the next page, anything else for some seconds. */
export function notice(text, { isError = true } = {}) {
  const place = document.getElementById("notice");
  clearTimeout(noticeTimer);
  place.textContent = text ?? "";
  place.hidden = !text;
  place.className = isError ? "error" : "";
  if (text && !isError) noticeTimer = setTimeout(() => notice(), 4000);
}
