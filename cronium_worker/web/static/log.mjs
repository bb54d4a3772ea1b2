/** The log of a job: only the lines that can be seen are in the document. */

import { colour } from "./ansi.mjs";
import { h } from "./dom.mjs";
import { Lines, marked } from "./lines.mjs";

const ROW_PX = 20; // .log-row
const AROUND = 20; // rows rendered above and below what is seen
const SEARCH_AFTER_MS = 150;
// The page stays usable whatever is in a log: what takes long is done a little at a time.
const SEARCH_AT_ONCE = 1000; // rows
const SEARCH_FOR_MS = 10;
const MOST_PIECES = 1500; // in the document; rows beyond that are without colours
const FLAGS = ["bold", "dim", "italic", "underline", "strike"];

export class LogView {
  /** `download`: the address of the log as text. */
  constructor(download) {
    this.lines = new Lines();
    this.following = true;
    this.found = [];
    this.current = -1;
    this.wanted = "";
    this.searched = 0; // places before it have been searched
    this.jump = false;
    this.scheduled = false;
    this.drawn = new Map(); // the rows in the document, by what they show

    this.rows = h("div", { class: "log-rows" });
    this.space = h("div", { class: "log-space" }, this.rows);
    this.box = h("div", { class: "log-box", tabIndex: 0, role: "log", ariaLabel: "Log", onscroll: () => this.#scrolled() }, this.space);
    this.note = h("p", { class: "log-note", hidden: true });
    this.search = h("input", {
      type: "search",
      placeholder: "Search",
      ariaLabel: "Search the log",
      oninput: () => this.#searchSoon(),
      onkeydown: (event) => event.key === "Enter" && this.#step(event.shiftKey ? -1 : 1),
    });
    this.count = h("output", { class: "log-count" });
    this.follow = h("input", { type: "checkbox", checked: true, onchange: () => this.#setFollowing(this.follow.checked) });
    this.streams = h(
      "select",
      { ariaLabel: "Streams", onchange: () => this.#filter(this.streams.value || null) },
      h("option", { value: "" }, "stdout and stderr"),
      h("option", { value: "stdout" }, "stdout"),
      h("option", { value: "stderr" }, "stderr"),
    );
    this.element = h(
      "section",
      { class: "log", ariaLabel: "Log" },
      h(
        "div",
        { class: "log-bar" },
        this.search,
        h("button", { class: "quiet", title: "Previous (Shift+Enter)", ariaLabel: "Previous match", onclick: () => this.#step(-1) }, "↑"),
        h("button", { class: "quiet", title: "Next (Enter)", ariaLabel: "Next match", onclick: () => this.#step(1) }, "↓"),
        this.count,
        h("span", { class: "grow" }),
        this.streams,
        h("label", { class: "check" }, this.follow, "Follow"),
        h("a", { href: download, download: "" }, "Download"),
      ),
      this.note,
      this.box,
    );
    new ResizeObserver(() => this.#schedule()).observe(this.box);
  }

  add(stream, data) {
    const before = this.lines.dropped;
    this.lines.add(stream, data);
    if (this.lines.dropped !== before) {
      this.note.textContent = `The first ${this.lines.dropped.toLocaleString()} lines are in the download alone.`;
      this.note.hidden = false;
      this.#find();
    }
    this.#schedule();
  }

  #schedule() {
    if (this.scheduled) return;
    this.scheduled = true;
    requestAnimationFrame(() => {
      this.scheduled = false;
      this.#render();
    });
  }

  #render() {
    const count = this.lines.length;
    this.#findMore();
    this.space.style.height = `${count * ROW_PX}px`;
    if (this.following) this.box.scrollTop = this.box.scrollHeight;
    const first = Math.max(0, Math.floor(this.box.scrollTop / ROW_PX) - AROUND);
    const last = Math.min(count, Math.ceil((this.box.scrollTop + this.box.clientHeight) / ROW_PX) + AROUND);
    this.rows.style.transform = `translateY(${first * ROW_PX}px)`;
    const rows = [];
    let pieces = 0;
    for (let place = first; place < last; place++) {
      const row = this.#row(place, pieces > MOST_PIECES);
      pieces += row.childElementCount;
      rows.push(row);
    }
    this.drawn = new Map(rows.map((row) => [row.dataset.key, row]));
    for (const row of [...this.rows.children]) if (this.drawn.get(row.dataset.key) !== row) row.remove();
    let next = this.rows.firstChild;
    for (const row of rows) {
      if (row === next) next = next.nextSibling;
      else this.rows.insertBefore(row, next);
    }
  }

  /** The element of a row; the one that is there already, if nothing of it has changed. */
  #row(place, isPlain) {
    const { number, length, cut, version } = this.lines.about(place);
    const current = this.found[this.current] === place;
    const key = [number, length, cut, version, isPlain, current, this.wanted].join();
    return this.drawn.get(key) ?? this.#made(place, key, isPlain, current);
  }

  #made(place, key, isPlain, current) {
    const { number, stream, pieces, cut } = this.lines.at(place, isPlain);
    return h(
      "div",
      { class: `log-row ${stream}${current ? " current" : ""}`, "data-key": key },
      h("span", { class: "log-number", ariaHidden: "true" }, String(number)),
      (isPlain ? pieces : marked(pieces, this.wanted)).map(span),
      cut > 0 && h("span", { class: "log-cut" }, ` … ${cut.toLocaleString()} more characters are in the download alone`),
    );
  }

  #scrolled() {
    const atEnd = this.box.scrollTop + this.box.clientHeight >= this.box.scrollHeight - ROW_PX;
    // Growth alone scrolls nothing: whoever left the end did it by hand.
    if (atEnd !== this.following && !this.scheduled) this.#setFollowing(atEnd);
    this.#schedule();
  }

  #setFollowing(on) {
    this.following = this.follow.checked = on;
    this.#schedule();
  }

  #filter(stream) {
    this.lines.show(stream);
    this.#find();
  }

  #searchSoon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      const changed = this.search.value !== this.wanted;
      this.wanted = this.search.value;
      this.jump = changed; // to the first one, when it is found
      this.#find();
    }, SEARCH_AFTER_MS);
  }

  #find() {
    this.found = [];
    this.searched = 0;
    this.current = -1;
    this.#findMore();
    this.#schedule();
  }

  /** In what has come since; for a moment, then again in the next frame. The last line may have grown. */
  #findMore() {
    const length = this.lines.length;
    if (this.wanted) {
      while (this.found.at(-1) >= this.searched) this.found.pop();
      const start = performance.now();
      let end = this.searched;
      while (end < length && performance.now() - start < SEARCH_FOR_MS) {
        const from = end;
        end = Math.min(length, from + SEARCH_AT_ONCE);
        for (const place of this.lines.find(this.wanted, from, end)) this.found.push(place);
      }
      this.searched = end < length ? end : Math.max(0, length - 1);
      if (end < length) this.#schedule();
    }
    if (this.jump && this.found.length) {
      this.jump = false;
      this.#step(1);
    }
    this.#say();
  }

  #step(by) {
    if (!this.found.length) return;
    this.current = (this.current + by + this.found.length) % this.found.length;
    this.#setFollowing(false);
    this.box.scrollTop = Math.max(0, this.found[this.current] * ROW_PX - this.box.clientHeight / 2);
    this.#say();
  }

  #say() {
    const many = this.found.length.toLocaleString();
    this.count.textContent = !this.wanted ? "" : this.found.length ? `${this.current + 1} of ${many}` : this.searched + 1 < this.lines.length ? "searching" : "nothing found";
  }
}

function span({ text, style, found }) {
  const element = h(found ? "mark" : "span", {}, text);
  element.className = FLAGS.filter((flag) => style[flag]).join(" ");
  const [fg, bg] = style.inverse ? [style.bg, style.fg] : [style.fg, style.bg];
  if (style.inverse) element.classList.add("inverse");
  if (fg !== undefined) element.style.color = colour(fg);
  if (bg !== undefined && !found) element.style.backgroundColor = colour(bg);
  return element;
}
