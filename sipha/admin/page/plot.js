// Small live plots: a line of the last two minutes, its latest value in figures, and a sentence for who can't see it.

import { make, count } from "./dom.js";

const SAMPLES = 120;
const WIDTH = 240, HEIGHT = 44;
const SVG = "http://www.w3.org/2000/svg";

function draw(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function figure(value) {
  if (value === null) return "–";
  return value >= 100 || Number.isInteger(value) ? count(Math.round(value)) : value.toFixed(1);
}

export class Plot {
  constructor(name, unit = "") {
    this.name = name;
    this.unit = unit;
    this.samples = [];
    this.line = draw("polyline", { class: "line" });
    this.area = draw("polygon", { class: "area" });
    this.picture = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    this.picture.append(this.area, this.line);
    this.latest = make("span", { class: "latest" }, "–");
    this.top = make("span", { class: "top" });
    this.element = make("figure", {}, make("figcaption", {}, make("span", {}, name), this.latest), this.picture, this.top);
  }

  /** Take a sample; null where nothing is known, which breaks the line's past off. */
  add(value) {
    if (value === null) this.samples = [];
    else this.samples.push(value);
    this.samples = this.samples.slice(-SAMPLES);
    const most = Math.max(...this.samples, 0);
    const scale = Math.max(most, 1);
    const points = this.samples.map((sample, index) => {
      const x = WIDTH - (this.samples.length - 1 - index) * (WIDTH / (SAMPLES - 1));
      return [x.toFixed(1), (HEIGHT - 2 - (sample / scale) * (HEIGHT - 4)).toFixed(1)];
    });
    const path = points.map((point) => point.join(",")).join(" ");
    this.line.setAttribute("points", path);
    this.area.setAttribute("points", points.length ? `${points[0][0]},${HEIGHT} ${path} ${WIDTH},${HEIGHT}` : "");
    this.latest.textContent = value === null ? "–" : `${figure(value)}${this.unit}`;
    this.top.textContent = this.samples.length ? `max ${figure(most)}` : "";
    const text = value === null ? "unknown" : `${figure(value)}${this.unit} now, at most ${figure(most)} in two minutes`;
    this.picture.setAttribute("aria-label", `${this.name}: ${text}`);
  }
}

/** Makes a rate of a counter, which begins anew when its process or leadership does. */
export class Rate {
  constructor() {
    this.before = null;
  }

  /** The rate since the value before; null where that was of another node. */
  take(value, { node, uptime: at }) {
    const before = this.before;
    this.before = { value, node, at };
    if (before === null || node !== before.node || at <= before.at) return null;
    return Math.max(value < before.value ? value : value - before.value, 0) / (at - before.at);
  }
}
