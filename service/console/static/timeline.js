// One session as a timeline: a row for each caller, a bar for each operation. The wheel zooms, dragging moves.

import { draw, hideTip, make, showTip } from "./dom.js";
import { DASH, count, duration, label, rate, size } from "./format.js";

const ROW = 26;
const BAR = 16;
const LEFT = 90;
const AXIS = 22;
const COLOURS = { lookup: "var(--c2)", store: "var(--c1)", retrieve: "var(--c0)" };
const BAD = ["refused", "cancelled", "failed"];
const ENDS = { SESSION_END_UNSPECIFIED: "lives", SESSION_END_REQUESTED: "ended by EndSession", SESSION_END_IDLE: "ended, was idle", SESSION_END_INSTANCE_DETACHED: "ended with its instance" };

export const seconds = (text) => Number.parseFloat(text ?? "0");
const endOf = (session) => ENDS[session.end] ?? "ended";
export const word = (name, prefix) => name.replace(prefix, "").toLowerCase().replaceAll("_", " ");

export function operationsOf(session) {
  const whole = seconds(session.duration);
  return session.operations.map((operation) => {
    const start = seconds(operation.start_offset);
    const outcome = operation.outcome === "OUTCOME_UNSPECIFIED" ? "running" : word(operation.outcome, "OUTCOME_");
    const kind = word(operation.kind, "OPERATION_KIND_");
    return {
      kind, outcome, start,
      end: outcome === "running" ? Math.max(start, whole) : start + seconds(operation.duration),
      caller: kind === "lookup" ? "scheduler" : `rank ${operation.rank}`,
      rank: kind === "lookup" ? -1 : operation.rank,
      missed: operation.miss_reason && operation.miss_reason !== "MISS_REASON_UNSPECIFIED" ? word(operation.miss_reason, "MISS_REASON_") : null,
      refused: operation.refused_tokens ? `${count(operation.refused_tokens)} tokens, ${word(operation.refusal_reason, "REFUSAL_REASON_")}` : null,
      tier: word(operation.tier, "TIER_"), tokens: operation.num_tokens, asked: operation.num_asked_tokens, bytes: Number(operation.num_bytes),
    };
  });
}

export class Timeline {
  constructor() {
    this.svg = draw("svg", { role: "img", "aria-label": "timeline of the session" });
    this.head = make("div", { class: "head" });
    const button = (text, title, act) => make("button", { type: "button", title, onclick: act }, text);
    this.element = make("section", { class: "card", hidden: true }, this.head,
      make("div", { class: "bar" },
        button("+", "zoom in", () => this.zoom(0.5)), button("−", "zoom out", () => this.zoom(2)), button("all", "show the whole session", () => this.reset()),
        make("span", { class: "nothing" }, "the wheel zooms, dragging moves"),
        make("span", { class: "legend" }, ...Object.entries(COLOURS).map(([kind, colour]) => make("span", {}, make("i", { style: { background: colour } }), kind)))),
      this.svg);
    this.svg.addEventListener("wheel", (event) => { event.preventDefault(); this.zoom(event.deltaY > 0 ? 1.25 : 0.8, this.timeAt(event)); }, { passive: false });
    this.svg.addEventListener("pointerdown", (event) => { this.drag = { x: event.clientX, from: this.from }; this.svg.setPointerCapture(event.pointerId); });
    this.svg.addEventListener("pointerup", () => { this.drag = null; });
    this.svg.addEventListener("pointermove", (event) => this.move(event));
    new ResizeObserver(() => this.render()).observe(this.element);
  }

  show(session) {
    const isNew = this.session?.session_id !== session.session_id || this.session?.instance_id !== session.instance_id || this.session?.start_time !== session.start_time;
    const wasWhole = isNew || (this.from === 0 && this.to === this.whole);
    this.session = session;
    this.operations = operationsOf(session);
    this.whole = Math.max(seconds(session.duration), ...this.operations.map((each) => each.end), 1e-6);
    if (wasWhole) Object.assign(this, { from: 0, to: this.whole });
    const dropped = session.num_dropped_operations ? `, ${session.num_dropped_operations} later operations are not known` : "";
    this.head.replaceChildren(make("h2", {}, `${session.session_id} of ${label(session.tenant, session.instance_id)}`),
      make("span", { class: "nothing" }, `${session.model_name}, received ${new Date(session.start_time).toLocaleString()}, ${endOf(session)} after ${duration(seconds(session.duration))}, ${this.operations.length} operations${dropped}`),
      make("span", { class: "bad" }, session.totals?.last_miss?.detail ? `the last miss: ${session.totals.last_miss.detail}` : ""));
    this.element.hidden = false;
    this.render();
  }

  reset() { Object.assign(this, { from: 0, to: this.whole }); this.render(); }

  zoom(factor, around = (this.from + this.to) / 2) {
    const length = Math.min(this.whole, Math.max(1e-6, (this.to - this.from) * factor));
    const share = (around - this.from) / (this.to - this.from);
    this.place(around - share * length, length);
  }

  place(from, length) {
    this.from = Math.max(0, Math.min(from, this.whole - length));
    this.to = this.from + length;
    this.render();
  }

  timeAt(event) {
    const box = this.svg.getBoundingClientRect();
    return this.from + Math.max(0, Math.min(1, (event.clientX - box.left - LEFT) / (box.width - LEFT))) * (this.to - this.from);
  }

  move(event) {
    if (!this.drag) return;
    const length = this.to - this.from;
    this.place(this.drag.from - ((event.clientX - this.drag.x) / (this.svg.clientWidth - LEFT)) * length, length);
  }

  render() {
    const width = this.svg.clientWidth;
    if (!width || !this.session) return;
    const callers = [...new Map(this.operations.map((each) => [each.caller, each.rank]))].sort((one, other) => one[1] - other[1]).map(([caller]) => caller);
    const height = AXIS + Math.max(1, callers.length) * ROW;
    this.svg.setAttribute("height", height);
    const x = (time) => LEFT + ((time - this.from) / (this.to - this.from)) * (width - LEFT);
    const parts = [];
    for (let number = 0; number < 5; number += 1) {
      const time = this.from + ((this.to - this.from) * number) / 5;
      parts.push(draw("line", { class: "gridline", x1: x(time), x2: x(time), y1: 0, y2: height - AXIS }));
      parts.push(draw("text", { x: x(time) + 3, y: height - 6 }, `+${duration(time)}`));
    }
    for (const operation of this.operations) {
      if (operation.end < this.from || operation.start > this.to) continue;
      const left = Math.max(LEFT, x(operation.start));
      const right = Math.min(width, x(operation.end));
      parts.push(draw("rect", {
        class: BAD.includes(operation.outcome) ? "operation failed" : "operation", x: left, width: Math.max(2, right - left), height: BAR, rx: 2,
        y: callers.indexOf(operation.caller) * ROW + (ROW - BAR) / 2, style: { fill: COLOURS[operation.kind] ?? "var(--c5)" },
        onpointermove: (event) => !this.drag && this.explain(event, operation), onpointerleave: hideTip,
      }));
    }
    callers.forEach((caller, number) => parts.push(draw("text", { x: 2, y: number * ROW + ROW / 2 + 4 }, caller)));
    if (!callers.length) parts.push(draw("text", { x: LEFT + 4, y: ROW / 2 + 4 }, "no operation yet"));
    this.svg.replaceChildren(...parts);
  }

  explain(event, operation) {
    const took = operation.end - operation.start;
    showTip(event, `${operation.kind}, ${operation.caller}`, [
      ["began", `+${duration(operation.start)}`], ["took", duration(took)], ["outcome", operation.outcome], ["slowest tier", operation.tier],
      ["tokens", operation.asked ? `${count(operation.tokens)} of ${count(operation.asked)}` : count(operation.tokens)],
      ...(operation.missed ? [["missed", operation.missed]] : []), ...(operation.refused ? [["refused", operation.refused]] : []),
      ...(operation.bytes ? [["bytes", size(operation.bytes)], ["rate", took ? rate(operation.bytes / took) : DASH]] : []),
    ]);
  }
}
