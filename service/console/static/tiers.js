// The tiers of the depot: a row for each, and in red why one is not used.

import { make, table } from "./dom.js";
import { count, DASH, duration, percent, rate, size } from "./format.js";

const UNUSED = ["failing", "unusable"];
const word = (tier) => tier.state.replace("TIER_STATE_", "").toLowerCase();
const sum = (counts) => Object.values(counts).reduce((total, each) => total + Number(each), 0);

// Whether lookups do without the tier until somebody or something repairs it.
export const isUnused = (tier) => UNUSED.includes(word(tier));

function state(tier) {
  const seconds = Math.round(10 * parseFloat(tier.time_to_probe)) / 10;
  const again = !tier.time_to_probe ? "" : seconds ? `, tried again in ${duration(seconds)}` : ", tried now";
  const why = tier.detail ? `: ${tier.detail}` : "";
  return make("span", { class: isUnused(tier) ? "bad" : null }, `${word(tier)}${again}${why}`);
}

// What went wrong since the start of the depot.
function troubles({ num_corrupt_chunks, traffic }) {
  if (!traffic) return Number(num_corrupt_chunks) ? [`${count(Number(num_corrupt_chunks))} chunks corrupt`] : [];
  const { ok = 0, ...unwritten } = traffic.num_writes_by_outcome;
  const { late = 0, failed = 0 } = traffic.num_reads_by_outcome;
  return [
    [num_corrupt_chunks, "chunks damaged"],
    [Number(late) + Number(failed), "reads late or failed"],
    [sum(unwritten), "writes did not arrive"],
    [sum(traffic.num_dropped_writes_by_reason), "writes dropped"],
    [traffic.num_killed_io_workers, "I/O workers killed"],
  ].filter(([number]) => Number(number)).map(([number, what]) => `${count(Number(number))} ${what}`);
}

const known = (value, shown) => (value === undefined ? DASH : shown(Number(value)));
const ofTraffic = (name, shown) => (tier) => known(tier.traffic?.[name], shown);
const ofLocal = (name, shown) => (tier) => (tier.is_local ? shown(Number(tier[name])) : DASH);

// The card of all tiers, L1 included.
export function tiersCard(tiers) {
  return make("section", { class: "card" }, make("h2", {}, "Tiers"), table([
    ["tier", (tier) => tier.name, "short"],
    ["kind", (tier) => tier.kind, "short"],
    ["state", state],
    ["used", ofLocal("used_bytes", size), "number"],
    ["of", ofLocal("capacity_bytes", size), "number"],
    ["chunks", ofLocal("num_chunks", count), "number"],
    ["found", ({ traffic }) => percent(Number(traffic?.num_asked_chunks) ? traffic.num_found_chunks / traffic.num_asked_chunks : null), "number"],
    ["reads at", ofTraffic("read_bytes_per_second", rate), "number"],
    ["writes at", ofTraffic("write_bytes_per_second", rate), "number"],
    ["waits to be written", ofTraffic("queued_write_bytes", size), "number"],
    ["since the start", (tier) => make("span", { class: "warn" }, troubles(tier).join(", "))],
  ], tiers));
}
