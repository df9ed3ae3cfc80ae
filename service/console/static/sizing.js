// The view of sizing: what another size of L1 would have hit, and what to do.

import { ask } from "./api.js";
import { CurveChart } from "./curve.js";
import { make, table } from "./dom.js";
import { count, DASH, duration, label, percent, size } from "./format.js";

const WINDOWS = { "1 hour": 3600, "1 day": 86400, "all": "" };
const ERRORS = 2; // standard errors: the true value is within so many in 19 of 20 cases
const GIB = 2 ** 30;

const seconds = (text) => Number.parseFloat(text ?? "0");
const saved = (point, minutes) => (point.saved_prefill_seconds === undefined || !minutes ? DASH : `${count(point.saved_prefill_seconds / minutes)} s/min`);
const hits = (point) => percent(point.hit_ratio);
const error = (point) => percent(ERRORS * point.hit_ratio_error);
const isL1 = (point) => !point.tiers.length;
const bySize = (one, other) => one.capacity_bytes - other.capacity_bytes;

export class Sizing {
  constructor(context) {
    this.context = context;
    this.window = "1 hour";
    this.buttons = Object.keys(WINDOWS).map((name) => make("button", { type: "button", onclick: () => this.choose(name) }, name));
    this.tiles = make("div", { class: "tiles" });
    this.advice = make("ul", { class: "advice" });
    this.chart = new CurveChart();
    this.bySize = make("div", { class: "tables" });
    this.tables = make("div", { class: "tables" });
    this.element = make("div", {},
      make("div", { class: "bar" }, make("span", { class: "nothing" }, "last"), ...this.buttons),
      this.tiles,
      make("section", { class: "card" }, make("h2", {}, "What to do"), this.advice),
      this.chart.element,
      this.bySize,
      this.tables);
    this.mark();
  }

  mark() {
    this.buttons.forEach((button) => button.setAttribute("aria-pressed", String(button.textContent === this.window)));
  }

  choose(name) {
    this.window = name;
    this.mark();
    this.tick().catch((failure) => this.context.failed(failure));
  }

  async tick() {
    const { window } = this;
    const { tenant } = this.context;
    const answer = await ask("sizing", { window: WINDOWS[window], tenant });
    if (window !== this.window || tenant !== this.context.tenant) return; // another one was chosen meanwhile
    const { total } = answer;
    const minutes = seconds(answer.covered_window) / 60;
    this.tiles.replaceChildren(...[
      ["hit by the depot itself", Number(total.asked_tokens) ? percent(total.hit_tokens / total.asked_tokens) : DASH],
      ["tokens asked for", count(Number(total.asked_tokens))],
      ["watched", duration(minutes * 60)],
      ["L1", size(Number(answer.l1_capacity_bytes))],
      [answer.eviction === "auto" ? "eviction, chosen by auto" : "eviction", answer.active_policy],
    ].map(([name, value]) => make("div", { class: "tile" }, make("b", {}, value), make("span", {}, name))));
    this.advice.replaceChildren(...answer.advice.map(({ text }) => make("li", {}, text)));
    this.chart.element.hidden = total.is_too_early;
    if (!total.is_too_early) this.showChart(answer, minutes);
    const cards = total.is_too_early ? [] : [this.policies(answer)];
    this.bySize.replaceChildren(...(total.is_too_early ? [] : [this.sizes(answer, minutes)]));
    if (answer.curves.length > 1) cards.push(this.curves(answer));
    this.tables.replaceChildren(...cards);
  }

  showChart(answer, minutes) {
    const of = (points) => points.sort(bySize).map((point) => ({
      bytes: Number(point.capacity_bytes), ratio: point.hit_ratio, error: ERRORS * point.hit_ratio_error, text: [["prefill saved", saved(point, minutes), null]],
    }));
    const ofPolicy = (policy) => of(answer.total.points.filter((point) => isL1(point) && point.policy === policy));
    const tiers = answer.total.points.filter((point) => !isL1(point));
    const series = [{ name: answer.curve_policy, colour: "var(--c1)", points: ofPolicy(answer.curve_policy) }];
    if (answer.curve_policy !== "lru") series.push({ name: "lru", colour: "var(--c2)", dashed: true, points: ofPolicy("lru") });
    if (tiers.length) series.push({ name: `L1 with ${[...new Set(tiers.flatMap((each) => each.tiers))].join(", ")}`, colour: "var(--c3)", square: true, points: of(tiers) });
    this.chart.show(series.filter((each) => each.points.length), Number(answer.l1_capacity_bytes));
  }

  // The gain is that since the row before.
  sizes(answer, minutes) {
    const unit = answer.l1_capacity_bytes < GIB ? GIB / 1024 : GIB;
    const sizes = answer.total.points.filter((point) => isL1(point) && point.policy === answer.curve_policy).sort(bySize);
    const tiers = answer.total.points.filter((point) => !isL1(point)).sort(bySize);
    const gain = (point) => {
      const before = sizes[sizes.indexOf(point) - 1];
      return before ? `${Number(((100 * (point.hit_ratio - before.hit_ratio)) / ((point.capacity_bytes - before.capacity_bytes) / unit)).toPrecision(2))} %` : DASH;
    };
    const name = (point) => `${size(Number(point.capacity_bytes))}${isL1(point) ? "" : `: L1 with ${point.tiers.join(", ")}`}${isL1(point) && point.l1_factor === 1 ? ", now" : ""}`;
    return make("section", { class: "card" }, make("h2", {}, `By size, with ${answer.curve_policy}`), table([
      ["size", name, "short"],
      ["times", (point) => `${Number(point.l1_factor.toFixed(3))}x`, "number"],
      ["hits", hits, "number"],
      ["±", error, "number"],
      ["bytes hit", (point) => size(point.hit_bytes), "number"],
      ["prefill saved", (point) => saved(point, minutes), "number"],
      [`gain per ${unit === GIB ? "GiB" : "MiB"}`, gain, "number"],
    ], [...sizes, ...tiers]));
  }

  policies(answer) {
    const points = answer.total.points.filter((point) => isL1(point) && point.l1_factor === 1).sort((one, other) => other.hit_ratio - one.hit_ratio);
    return make("section", { class: "card" }, make("h2", {}, "By eviction policy, at the present size"), table([
      ["policy", (point) => `${point.policy}${point.policy === answer.active_policy ? ", in use" : ""}`, "short"],
      ["hits", hits, "number"],
      ["±", error, "number"],
    ], points));
  }

  curves(answer) {
    const at = (factor) => (curve) => {
      if (curve.is_too_early) return "too early";
      const point = curve.points.find((each) => isL1(each) && each.policy === answer.curve_policy && each.l1_factor === factor);
      return point ? hits(point) : DASH;
    };
    return make("section", { class: "card" }, make("h2", {}, "By model"), make("div", { class: "scroll" }, table([
      ["model", (curve) => label(curve.tenant, curve.model_name) || "all others"],
      ["tokens asked for", (curve) => count(Number(curve.asked_tokens)), "number"],
      ["hit", (curve) => percent(Number(curve.asked_tokens) ? curve.hit_tokens / curve.asked_tokens : null), "number"],
      ...[0.5, 1, 2].map((factor) => [`at ${factor}x`, at(factor), "number"]),
    ], answer.curves)));
  }
}
