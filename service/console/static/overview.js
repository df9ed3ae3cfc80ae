// The first view: figures of the last minute, charts, instances, the busiest sessions.

import { ask } from "./api.js";
import { Chart, roundUpBytes } from "./chart.js";
import { make, table } from "./dom.js";
import { count, duration, label, percent, perSecond, rate, size } from "./format.js";
import { RANGES } from "./history.js";
import { isUnused, tiersCard } from "./tiers.js";

const REASONS = ["never stored", "evicted", "rank missing", "being stored", "unknown identity", "cleared", "corrupt", "tier late", "tier failed", "tier slower than prefill", "no slot", "shorter than chunk", "no answer"];
const TIERS_MOVED = "Tiers behind L1";
const KINDS = [["lookup", "var(--c2)"], ["store", "var(--c1)"], ["retrieve", "var(--c0)"]];

// Tells how much of a total there was in a second of a bucket.
const per = (seconds) => (name) => (bucket) => (bucket.totals[name] ?? 0) / seconds();
const gauge = (name) => (bucket) => bucket.gauges?.[name] ?? null;

function charts(seconds) {
  const each = per(seconds);
  const looked = (bucket) => bucket.totals.lookup_tokens ?? 0;
  return [
    new Chart({ title: "Tokens looked up", unit: perSecond, series: [
      { name: "hit in L1", colour: "var(--c0)", area: true, value: (bucket) => ((bucket.totals.matched_tokens ?? 0) - (bucket.totals.l2_tokens ?? 0)) / seconds() },
      { name: "hit in a tier behind L1", colour: "var(--c7)", area: true, rare: true, value: each("l2_tokens") },
      { name: "missed", colour: "var(--c6)", area: true, value: (bucket) => (looked(bucket) - (bucket.totals.matched_tokens ?? 0)) / seconds() },
    ] }),
    new Chart({ title: "Hit ratio", unit: percent, top: 1, series: [
      { name: "", colour: "var(--c0)", value: (bucket) => (looked(bucket) ? (bucket.totals.matched_tokens ?? 0) / looked(bucket) : null) },
    ] }),
    new Chart({ title: "Missed tokens by reason", unit: perSecond, series: REASONS.map((reason, number) => (
      { name: reason, colour: `var(--c${(number + 1) % 8})`, area: true, value: (bucket) => (bucket.missed[reason] ?? 0) / seconds() })) }),
    new Chart({ title: "Bytes moved", unit: rate, series: [
      { name: "store", colour: "var(--c1)", value: each("stored_bytes") },
      { name: "retrieve", colour: "var(--c0)", value: each("retrieved_bytes") },
    ] }),
    new Chart({ title: "Rate while bytes were copied", unit: rate, series: ["store", "retrieve"].map((way, number) => ({
      name: way, colour: number ? "var(--c0)" : "var(--c1)",
      value: ({ totals }) => (totals[`${way}_transfer_seconds`] ? totals[`${way}_transfer_bytes`] / totals[`${way}_transfer_seconds`] : null) })) }),
    new Chart({ title: "Latency", unit: duration, least: 1e-5, series: KINDS.flatMap(([kind, colour]) => [
      { name: `${kind} p99`, colour, value: (bucket) => bucket.operations[kind]?.p99 ?? null },
      { name: `${kind} p50`, colour, dashed: true, value: (bucket) => bucket.operations[kind]?.p50 ?? null },
    ]) }),
    new Chart({ title: "Calls", unit: perSecond, series: KINDS.map(([kind, colour]) => (
      { name: kind, colour, value: (bucket) => (bucket.operations[kind]?.num_operations ?? 0) / seconds() })) }),
    new Chart({ title: "L1", unit: size, round: roundUpBytes, series: [
      { name: "used", colour: "var(--c1)", area: true, value: gauge("l1_used_bytes") },
      { name: "capacity", colour: "var(--c4)", dashed: true, value: (bucket) => bucket.gauges?.l1_capacity_bytes || null },
    ] }),
    new Chart({ title: "Chunks that left or were refused", unit: perSecond, series: [
      { name: "chunks evicted", colour: "var(--c2)", value: each("num_evicted_chunks") },
      { name: "chunks corrupt", colour: "var(--bad)", value: each("num_corrupt_chunks") },
      { name: "stores refused", colour: "var(--c4)", value: (bucket) => Object.values(bucket.refused).reduce((sum, value) => sum + value, 0) / seconds() },
    ] }),
    new Chart({ title: TIERS_MOVED, unit: rate, series: [
      { name: "read into L1", colour: "var(--c0)", value: each("tier_read_bytes") },
      { name: "written", colour: "var(--c1)", value: each("tier_written_bytes") },
    ] }),
    new Chart({ title: "Sessions and leases", unit: count, series: [
      { name: "sessions", colour: "var(--c1)", value: gauge("num_sessions") },
      { name: "leases", colour: "var(--c3)", value: gauge("num_leases") },
    ] }),
    new Chart({ title: "Ranks", unit: count, series: [
      { name: "attached", colour: "var(--c0)", value: gauge("num_attached_ranks") },
      { name: "missing", colour: "var(--bad)", value: gauge("num_missing_ranks") },
    ] }),
    new Chart({ title: "Events", unit: count, series: [
      { name: "waiting", colour: "var(--c1)", value: gauge("num_waiting_events") },
      { name: "dropped since the start", colour: "var(--bad)", value: gauge("num_dropped_events") },
    ] }),
  ];
}

export class Overview {
  constructor(context) {
    this.context = context;
    this.range = "5 minutes";
    this.charts = charts(() => RANGES[this.range].seconds);
    this.tiles = make("div", { class: "tiles" });
    this.tiers = make("div", { class: "tables" });
    this.tables = make("div", { class: "tables" });
    this.buttons = Object.keys(RANGES).map((name) => make("button", { type: "button", onclick: () => this.choose(name) }, name));
    this.element = make("div", {},
      this.tiles,
      make("div", { class: "bar" }, make("span", { class: "nothing" }, "last"), ...this.buttons),
      make("div", { class: "grid" }, ...this.charts.map((chart) => chart.element)),
      this.tiers,
      this.tables);
    this.choose(this.range);
  }

  choose(name) {
    this.range = name;
    this.buttons.forEach((button) => button.setAttribute("aria-pressed", String(button.textContent === name)));
    this.tick().catch((error) => this.context.failed(error));
  }

  async tick() {
    const { history, isAdmin } = this.context;
    await history.update(RANGES["5 minutes"]);
    const { seconds, kept } = RANGES[this.range];
    const buckets = seconds === 1 ? history.buckets[1] : await history.update(RANGES[this.range]);
    const end = Math.floor(history.time / seconds) * seconds;
    this.charts.forEach((chart) => chart.show(buckets, end - seconds * kept, end, seconds));
    const status = isAdmin ? await ask("status") : null;
    if (history !== this.context.history) return; // another tenant was chosen meanwhile
    const instances = status?.instances.filter((each) => [each.tenant, ""].includes(this.context.tenant)) ?? null;
    if (status) this.context.showState(status.status);
    const tiers = status?.status.tiers ?? [];
    this.showTiers(tiers, buckets);
    this.showTiles(history, tiers.filter(isUnused));
    this.showTables(history, instances);
  }

  // A depot without tiers behind L1 has nothing more to show of them than the chart of L1 does.
  showTiers(tiers, buckets) {
    const isMoving = buckets.some(({ totals }) => totals.tier_read_bytes || totals.tier_written_bytes);
    this.charts.find((chart) => chart.title === TIERS_MOVED).element.hidden = tiers.length < 2 && !isMoving;
    this.tiers.replaceChildren(...(tiers.length > 1 ? [tiersCard(tiers)] : []));
  }

  showTiles(history, unused) {
    const minute = history.last(60);
    const gauges = history.gauges;
    const ratio = minute.of("lookup_tokens") ? minute.of("matched_tokens") / minute.of("lookup_tokens") : null;
    const filled = gauges?.l1_capacity_bytes ? percent(gauges.l1_used_bytes / gauges.l1_capacity_bytes) : size(gauges?.l1_used_bytes ?? 0);
    const tiles = [
      ["hit ratio", percent(ratio)],
      ["tokens hit in a minute", count(minute.of("matched_tokens"))],
      ["stored", rate(minute.rate("stored_bytes"))],
      ["retrieved", rate(minute.rate("retrieved_bytes"))],
      ["of L1 filled", filled],
      ["evicted in a minute", count(minute.of("num_evicted_chunks"))],
      ["ranks missing", count(gauges?.num_missing_ranks ?? 0), gauges?.num_missing_ranks > 0],
    ];
    if (minute.of("num_corrupt_chunks")) tiles.push(["chunks corrupt in a minute: bad memory?", count(minute.of("num_corrupt_chunks")), true]);
    if (unused.length) tiles.push(["tiers not used", unused.map((tier) => tier.name).join(", "), true]);
    if (history.numLostEvents) tiles.push(["events lost: counts are too low", count(history.numLostEvents), true]);
    this.tiles.replaceChildren(...tiles.map(([name, value, bad]) => make("div", { class: bad ? "tile bad" : "tile" }, make("b", {}, value), make("span", {}, name))));
  }

  showTables(history, instances) {
    const busiest = table([
      ["session", (each) => each.session_id],
      ["instance", (each) => label(each.tenant, each.instance_id)],
      ["calls", (each) => count(each.num_operations), "number"],
      ["tokens hit", (each) => (each.lookup_tokens ? `${count(each.matched_tokens)} of ${count(each.lookup_tokens)}` : ""), "number"],
      ["bytes", (each) => size(each.num_bytes), "number"],
    ], history.busiest.slice(0, 10), { onrow: (each) => this.context.openSession(each), empty: "no session was active in the last minute" });
    const cards = [make("section", { class: "card" }, make("h2", {}, "Busiest sessions of the last minute"), busiest)];
    if (instances) {
      const isComplete = (each) => each.ranks.length === each.world_size;
      const order = [...instances].sort((one, other) => isComplete(one) - isComplete(other) || (label(one.tenant, one.instance_id) < label(other.tenant, other.instance_id) ? -1 : 1));
      cards.unshift(make("section", { class: "card" }, make("h2", {}, "Instances"), make("div", { class: "scroll" }, table([
        ["instance", (each) => label(each.tenant, each.instance_id)],
        ["model", (each) => each.model_name],
        ["revision", (each) => each.model_revision],
        ["ranks", (each) => make("span", { class: isComplete(each) ? null : "bad" }, `${each.ranks.length} of ${each.world_size}`), "number"],
        ["sessions", (each) => count(each.num_sessions), "number"],
        ["leases", (each) => count(each.num_leases), "number"],
      ], order, { empty: "no instance is attached" }))));
    }
    this.tables.replaceChildren(...cards);
  }
}
