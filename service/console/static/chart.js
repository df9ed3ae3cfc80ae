// A chart over time: lines or stacked areas, drawn as SVG, with the values under the pointer.

import { draw, hideTip, make, showTip } from "./dom.js";
import { clock } from "./format.js";

const HEIGHT = 150;
const LEFT = 66;
const RIGHT = 8;
const TOP = 8;
const BOTTOM = 20;

// The least round number (1, 2, 5 times a power of ten) that is not below a value.
export function roundUp(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((base) => base * power).find((each) => each >= value * 0.9999);
}

// The same for bytes: a power of two.
export const roundUpBytes = (value) => (value > 0 ? 2 ** Math.ceil(Math.log2(value * 0.9999)) : 1);

// `series`: {name, colour, value: bucket => number or null, dashed, area, rare}. Areas are stacked in their order.
// A rare area is named only where it is there.
// With `least`, the scale is logarithmic and begins there.
export class Chart {
  constructor({ title, series, unit, top = null, round = roundUp, least = null }) {
    Object.assign(this, { title, series, unit, top, round, least });
    this.svg = draw("svg", { height: HEIGHT, role: "img", "aria-label": title });
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => { this.pointer = null; hideTip(); this.render(); });
    this.marks = series.map((each) =>
      make("span", { hidden: !each.name }, make("i", { class: each.dashed ? "dashed" : null, style: each.dashed ? { "border-color": each.colour } : { background: each.colour } }), each.name));
    this.element = make("section", { class: "card chart" }, make("div", { class: "head" }, make("h2", {}, title), make("div", { class: "legend" }, ...this.marks)), this.svg);
    this.buckets = [];
    new ResizeObserver(() => this.render()).observe(this.element);
  }

  show(buckets, start, end, seconds) {
    Object.assign(this, { buckets: buckets.filter((bucket) => bucket.start >= start), start, end, seconds });
    // Of many areas, only those that are there are named.
    this.series.forEach((each, number) => { if (each.rare || this.series.length > 4) this.marks[number].hidden = each.area && !this.buckets.some((bucket) => each.value(bucket)); });
    this.render();
  }

  point(event) {
    const box = this.svg.getBoundingClientRect();
    const time = this.start + ((event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT)) * (this.end - this.start);
    const nearest = this.buckets.reduce((best, bucket) => (!best || Math.abs(bucket.start - time) < Math.abs(best.start - time) ? bucket : best), null);
    this.pointer = nearest;
    this.render();
    if (!nearest) return hideTip();
    const lines = this.series.map((each) => [each.name, each.value(nearest), each.colour]).filter(([, value], number) => value !== null && (value !== 0 || !this.marks[number].hidden))
      .map(([name, value, colour]) => [name, this.unit(value), colour]);
    showTip(event, clock(nearest.start), lines.length ? lines : [["nothing", "", null]]);
  }

  render() {
    const width = this.svg.clientWidth;
    if (!width || !this.end) return;
    const x = (time) => LEFT + ((time - this.start) / (this.end - this.start)) * (width - LEFT - RIGHT);
    const stacks = this.buckets.map((bucket) => this.series.reduce((sum, each) => sum + (each.area ? each.value(bucket) ?? 0 : 0), 0));
    const lines = this.buckets.flatMap((bucket) => this.series.filter((each) => !each.area).map((each) => each.value(bucket) ?? 0));
    const { share, marks } = this.scale(Math.max(0, ...stacks, ...lines));
    const y = (value) => HEIGHT - BOTTOM - Math.max(0, Math.min(1, share(value))) * (HEIGHT - BOTTOM - TOP);
    const parts = [];
    for (const mark of marks) {
      const at = y(mark);
      parts.push(draw("line", { class: "gridline", x1: LEFT, x2: width - RIGHT, y1: at, y2: at }));
      parts.push(draw("text", { x: LEFT - 6, y: at + 4, "text-anchor": "end" }, this.unit(mark)));
    }
    const step = (this.end - this.start) / 5;
    for (let number = 1; number < 5; number += 1) {
      const time = this.start + number * step;
      parts.push(draw("text", { x: x(time), y: HEIGHT - 5, "text-anchor": "middle" }, clock(time).slice(0, step < 60 ? 8 : 5)));
    }
    parts.push(...this.areas(x, y), ...this.lines(x, y));
    if (this.pointer) parts.push(draw("line", { class: "cursor", x1: x(this.pointer.start), x2: x(this.pointer.start), y1: TOP, y2: HEIGHT - BOTTOM }));
    this.svg.replaceChildren(...parts);
  }

  // The share of the height at which a value is, and the values that are marked.
  scale(greatest) {
    if (this.least === null) {
      const top = this.top ?? this.round(greatest);
      return { share: (value) => value / top, marks: [0, top / 2, top] };
    }
    const powers = Math.max(2, Math.ceil(Math.log10(Math.max(greatest, this.least) / this.least) - 1e-9));
    return {
      share: (value) => Math.log10(Math.max(value, this.least) / this.least) / powers,
      marks: Array.from({ length: powers + 1 }, (_, power) => this.least * 10 ** power).filter((_, power) => powers < 5 || (powers - power) % 2 === 0),
    };
  }

  areas(x, y) {
    const below = this.buckets.map(() => 0);
    return this.series.filter((each) => each.area).flatMap((each) => {
      const upper = this.buckets.map((bucket, index) => below[index] + (each.value(bucket) ?? 0));
      const paths = this.runs(() => true).map((run) => {
        const there = run.map((index) => `${x(this.buckets[index].start).toFixed(1)},${y(upper[index]).toFixed(1)}`);
        const back = run.map((index) => `${x(this.buckets[index].start).toFixed(1)},${y(below[index]).toFixed(1)}`).reverse();
        return draw("path", { class: "area", d: `M${there.join("L")}L${back.join("L")}Z`, style: { fill: each.colour } });
      });
      upper.forEach((value, index) => { below[index] = value; });
      return paths;
    });
  }

  lines(x, y) {
    return this.series.filter((each) => !each.area).flatMap((each) =>
      this.runs((bucket) => each.value(bucket) !== null).map((run) => {
        const points = run.map((index) => `${x(this.buckets[index].start).toFixed(1)},${y(each.value(this.buckets[index])).toFixed(1)}`);
        if (points.length === 1) points.push(`${(x(this.buckets[run[0]].start) + 1.5).toFixed(1)},${points[0].split(",")[1]}`);
        return draw("path", { class: each.dashed ? "line dashed" : "line", d: `M${points.join("L")}`, style: { stroke: each.colour } });
      }));
  }

  // Stretches of buckets without a gap that have a value.
  runs(has) {
    const runs = [];
    let last = null;
    this.buckets.forEach((bucket, index) => {
      if (!has(bucket)) { last = null; return; }
      if (last === null || bucket.start - last > this.seconds * 2.5) runs.push([]);
      runs.at(-1).push(index);
      last = bucket.start;
    });
    return runs;
  }
}
