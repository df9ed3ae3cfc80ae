// The view of L1: which models fill it, and for how long their chunks are unused.

import { ask } from "./api.js";
import { hideTip, make, showTip, table } from "./dom.js";
import { count, duration, label, percent, size } from "./format.js";

const NUM_COLOURS = 7;
const FREE = "var(--page)";

const age = (seconds) => ({ 60: "minute", 3600: "hour", 86400: "day" }[seconds] ?? (seconds < 60 ? `${seconds} s` : seconds < 3600 ? `${seconds / 60} min` : `${seconds / 3600} h`));

function stack(parts, whole, kind) {
  return make("div", { class: `stack ${kind}` }, ...parts.filter(([, bytes]) => bytes > 0).map(([name, bytes, colour]) => make("i", {
    style: { width: `${(100 * bytes) / whole}%`, background: colour },
    onpointermove: (event) => showTip(event, name, [[size(bytes), percent(bytes / whole), colour === FREE ? null : colour]]), onpointerleave: hideTip,
  })));
}

export class L1 {
  constructor(context) {
    this.context = context;
    this.element = make("div");
  }

  async tick() {
    const answer = await ask("l1", { tenant: this.context.tenant });
    const bounds = answer.age_bounds_seconds;
    const ages = [...bounds.map((bound) => `used in the last ${age(bound)}`), "used longer ago"];
    const holdings = answer.holdings;
    const held = holdings.reduce((sum, each) => sum + each.num_bytes, 0) + answer.left_out_bytes;
    const whole = answer.capacity_bytes || held || 1;
    const name = (each) => `${label(each.tenant, each.model_name)}${each.model_revision ? ` at ${each.model_revision}` : ""}${each.cache_salt ? ` (salt ${each.cache_salt})` : ""}`;
    const models = [
      ...holdings.map((each, number) => [name(each), each.num_bytes, `var(--c${number % 8})`]),
      [`${answer.num_left_out} smaller ones`, answer.left_out_bytes, "var(--c6)"],
      ["free", Math.max(0, whole - held), FREE],
    ];
    const ageParts = (each) => [["in use: leased, read or written", each.in_use_bytes, "var(--use)"], ...ages.map((age, number) => [age, each.bytes_by_age[number], `var(--a${number})`])];
    const largest = Math.max(1, ...holdings.map((each) => each.num_bytes));
    const bar = (each) => {
      const drawn = stack(ageParts(each), each.num_bytes || 1, "");
      drawn.style.width = `${Math.max(2, (100 * each.num_bytes) / largest)}%`;
      drawn.style.minWidth = "0";
      return drawn;
    };
    const legend = make("div", { class: "legend" }, ...[["in use", "var(--use)"], ...ages.slice(0, NUM_COLOURS).map((age, number) => [age, `var(--a${number})`])].map(([text, colour]) => make("span", {}, make("i", { style: { background: colour } }), text)));
    hideTip();
    this.element.replaceChildren(
      make("section", { class: "card" },
        make("div", { class: "head" }, make("h2", {}, "L1 by model"), make("span", { class: "nothing" }, answer.capacity_bytes ? `${size(held)} of ${size(whole)} hold chunks` : `${size(held)} hold chunks of yours`)),
        stack(models, whole, "tall")),
      make("div", { class: "tables" }, make("section", { class: "card" },
        make("div", { class: "head" }, make("h2", {}, "Chunks by age"), legend),
        make("div", { class: "wide-table" }, table([
          ["model", (each) => make("span", {}, make("i", { class: "swatch", style: { color: models[holdings.indexOf(each)][2] } }, "■ "), name(each))],
          ["ranks", (each) => count(each.ranks), "number"],
          ["chunks", (each) => count(each.num_chunks), "number"],
          ["bytes", (each) => size(each.num_bytes), "number"],
          ["oldest", (each) => duration(each.oldest_seconds), "number"],
          ["by the time of the last use", bar],
        ], holdings, { empty: "L1 is empty" })))));
    this.element.querySelector("table")?.classList.add("wide");
  }
}
