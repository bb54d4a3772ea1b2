/** What a job uses while it runs, as two lines over time. */

import { bytes, duration, h, svg } from "./dom.mjs";

const [WIDTH, HEIGHT] = [600, 90];
const MOST_POINTS = 600;

const SERIES = [
  { name: "Processor", field: "cpu_percent", show: (value) => `${value.toFixed(value < 10 ? 1 : 0)} %`, of: "of a core" },
  { name: "Memory", field: "memory_bytes", show: bytes, of: "" },
];

export class Plot {
  constructor() {
    this.samples = [];
    this.charts = SERIES.map((series) => new Chart(series));
    this.element = h("section", { class: "plot", hidden: true, ariaLabel: "Use" }, h("h2", {}, "Use"), this.charts.map((chart) => chart.element));
  }

  /** A `metrics` event. */
  add(event) {
    this.samples.push({ at: Date.parse(event.ts), ...event });
    // Of a long job every second sample is enough for a line of so many points.
    if (this.samples.length > 2 * MOST_POINTS) this.samples = this.samples.filter((_, index) => index % 2 === 0);
    this.element.hidden = this.samples.length < 2;
    if (this.scheduled) return;
    this.scheduled = requestAnimationFrame(() => {
      this.scheduled = null;
      for (const chart of this.charts) chart.draw(this.samples);
    });
  }
}

class Chart {
  constructor(series) {
    this.series = series;
    this.area = svg("path", { class: "area" });
    this.line = svg("path", { class: "line", "vector-effect": "non-scaling-stroke" });
    this.mark = svg("line", { class: "cursor", y1: 0, y2: HEIGHT, "vector-effect": "non-scaling-stroke", visibility: "hidden" });
    this.value = h("output");
    this.peak = h("span", { class: "muted" });
    const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": series.name }, this.area, this.line, this.mark);
    picture.addEventListener("pointermove", (event) => this.#point(event, picture));
    picture.addEventListener("pointerleave", () => this.#leave());
    this.element = h("figure", {}, h("figcaption", {}, h("strong", {}, series.name), " ", this.value, h("span", { class: "grow" }), this.peak), picture);
  }

  draw(samples) {
    this.points = samples.filter((sample) => sample[this.series.field] != null);
    if (this.points.length < 2) return;
    const values = this.points.map((point) => point[this.series.field]);
    const most = Math.max(...values) || 1;
    const start = this.points[0].at;
    this.span = Math.max(1, this.points.at(-1).at - start);
    this.x = (point) => ((point.at - start) / this.span) * WIDTH;
    const y = (value) => HEIGHT - (value / (most * 1.1)) * HEIGHT;
    const path = this.points.map((point, i) => `${i ? "L" : "M"}${this.x(point).toFixed(1)} ${y(values[i]).toFixed(1)}`).join("");
    this.line.setAttribute("d", path);
    this.area.setAttribute("d", `${path}L${WIDTH} ${HEIGHT}L0 ${HEIGHT}Z`);
    this.peak.textContent = `at most ${this.series.show(most)} ${this.series.of} · ${duration(this.span / 1000)}`;
    if (!this.pointed) this.value.textContent = this.series.show(values.at(-1));
  }

  #point(event, picture) {
    if (!this.points?.length) return;
    const box = picture.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * WIDTH;
    const nearest = this.points.reduce((best, point) => (Math.abs(this.x(point) - x) < Math.abs(this.x(best) - x) ? point : best));
    this.pointed = true;
    this.mark.setAttribute("x1", this.x(nearest));
    this.mark.setAttribute("x2", this.x(nearest));
    this.mark.setAttribute("visibility", "visible");
    this.value.textContent = `${this.series.show(nearest[this.series.field])} at ${duration((nearest.at - this.points[0].at) / 1000)}`;
  }

  #leave() {
    this.pointed = false;
    this.mark.setAttribute("visibility", "hidden");
    if (this.points?.length) this.value.textContent = this.series.show(this.points.at(-1)[this.series.field]);
  }
}
