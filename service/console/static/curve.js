// The chart of a hit curve: the share of the tokens that is hit, over the size of L1 in powers of two.

import { draw, hideTip, make, showTip } from "./dom.js";
import { percent, size } from "./format.js";

const HEIGHT = 280;
const LEFT = 52;
const RIGHT = 34;
const TOP = 16;
const BOTTOM = 36;
const STEPS = [0.02, 0.05, 0.1, 0.2, 0.25];

// `series`: {name, colour, points: [{bytes, ratio, error, text}], dashed, square}. The error is drawn as a band.
export class CurveChart {
  constructor() {
    this.svg = draw("svg", { height: HEIGHT, role: "img", "aria-label": "hit ratio over the size of L1" });
    this.legend = make("div", { class: "legend" });
    this.element = make("section", { class: "card chart" }, make("div", { class: "head" }, make("h2", {}, "What another size of L1 would have hit"), this.legend), this.svg);
    this.series = [];
    new ResizeObserver(() => this.render()).observe(this.element);
  }

  show(series, presentBytes) {
    Object.assign(this, { series, presentBytes });
    this.legend.replaceChildren(...series.map(({ name, colour, dashed }) =>
      make("span", {}, make("i", { class: dashed ? "dashed" : null, style: dashed ? { "border-color": colour } : { background: colour } }), name)));
    this.render();
  }

  render() {
    const width = this.svg.clientWidth;
    const points = this.series.flatMap((each) => each.points);
    if (!width || !points.length) return;
    const bytes = [...new Set([this.presentBytes, ...points.map((each) => each.bytes)])].sort((one, other) => one - other);
    const [low, high] = [Math.log2(bytes[0]), Math.max(Math.log2(bytes.at(-1)), Math.log2(bytes[0]) + 1)];
    const x = (each) => LEFT + ((Math.log2(each) - low) / (high - low)) * (width - LEFT - RIGHT);
    const greatest = Math.min(1, Math.max(0.02, ...points.map((each) => each.ratio + each.error)));
    const step = STEPS.find((each) => greatest / each <= 6) ?? STEPS.at(-1);
    const top = Math.ceil(greatest / step - 1e-9) * step;
    const y = (ratio) => HEIGHT - BOTTOM - (Math.max(0, Math.min(ratio, top)) / top) * (HEIGHT - BOTTOM - TOP);
    const parts = [];
    for (let mark = 0; mark <= top + 1e-9; mark += step) {
      parts.push(draw("line", { class: "gridline", x1: LEFT, x2: width - RIGHT, y1: y(mark), y2: y(mark) }));
      parts.push(draw("text", { x: LEFT - 6, y: y(mark) + 4, "text-anchor": "end" }, `${Math.round(mark * 100)} %`));
    }
    let last = -Infinity;
    for (const each of bytes) {
      if (x(each) - last < 62) continue;
      last = x(each);
      parts.push(draw("text", { x: last, y: HEIGHT - 20, "text-anchor": "middle" }, size(each)));
      parts.push(draw("text", { x: last, y: HEIGHT - 6, "text-anchor": "middle" }, `${Number((each / this.presentBytes).toFixed(3))}x`));
    }
    const now = x(this.presentBytes);
    parts.push(draw("line", { class: "cursor", x1: now, x2: now, y1: TOP - 4, y2: HEIGHT - BOTTOM }), draw("text", { x: now + 5, y: TOP + 4 }, "now"));
    parts.push(...this.series.flatMap((each) => this.drawn(each, x, y)));
    this.svg.replaceChildren(...parts);
  }

  drawn({ name, colour, points, dashed, square }, x, y) {
    const at = (each, ratio) => `${x(each.bytes).toFixed(1)},${y(ratio).toFixed(1)}`;
    const upper = points.map((each) => at(each, each.ratio + each.error));
    const lower = points.map((each) => at(each, each.ratio - each.error)).reverse();
    const parts = points.length > 1 ? [
      draw("path", { class: "band", d: `M${[...upper, ...lower].join("L")}Z`, style: { fill: colour } }),
      draw("path", { class: dashed ? "line dashed" : "line", d: `M${points.map((each) => at(each, each.ratio)).join("L")}`, style: { stroke: colour } }),
    ] : [];
    const marks = points.map((each) => {
      const [left, middle] = [x(each.bytes), y(each.ratio)];
      const bar = square ? [draw("line", { x1: left, x2: left, y1: y(each.ratio - each.error), y2: y(each.ratio + each.error), style: { stroke: colour } })] : [];
      const shape = square ? draw("rect", { x: left - 4, y: middle - 4, width: 8, height: 8, style: { fill: colour } }) : draw("circle", { cx: left, cy: middle, r: 3.5, style: { fill: colour } });
      shape.addEventListener("pointermove", (event) => showTip(event, `${name}, ${size(each.bytes)}`, [["hits", `${percent(each.ratio)} ± ${percent(each.error)}`, colour], ...each.text]));
      shape.addEventListener("pointerleave", hideTip);
      return [...bar, shape];
    });
    return [...parts, ...marks.flat()];
  }
}
