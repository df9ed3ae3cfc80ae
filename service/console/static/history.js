// The buckets of activity that the depot has answered with, for each length of a bucket.

import { ask } from "./api.js";

export const RANGES = { "5 minutes": { seconds: 1, kept: 300 }, "1 hour": { seconds: 10, kept: 360 } };

export class History {
  constructor(tenant) {
    this.tenant = tenant;
    this.buckets = { 1: [], 10: [] };
    this.busiest = [];
    this.time = 0;
  }

  async update({ seconds, kept }) {
    const known = this.buckets[seconds];
    const answer = await ask("activity", { resolution: seconds, after: known.at(-1)?.start ?? 0, tenant: this.tenant });
    this.time = answer.time;
    this.busiest = answer.busiest;
    const fresh = answer.buckets.filter((bucket) => !known.length || bucket.start > known.at(-1).start);
    this.buckets[seconds] = [...known, ...fresh].slice(-kept);
    return this.buckets[seconds];
  }

  // The sum over the last seconds, in which a total that is left out is 0.
  last(seconds) {
    const buckets = this.buckets[1];
    const end = buckets.length ? buckets.at(-1).start + 1 : 0;
    const start = Math.max(end - seconds, buckets[0]?.start ?? end);
    const sums = { seconds: end - start, totals: {} };
    for (const bucket of buckets) {
      if (bucket.start < start) continue;
      for (const [name, value] of Object.entries(bucket.totals)) sums.totals[name] = (sums.totals[name] ?? 0) + value;
    }
    sums.of = (name) => sums.totals[name] ?? 0;
    sums.rate = (name) => (sums.seconds ? sums.of(name) / sums.seconds : 0);
    return sums;
  }

  get gauges() {
    return this.buckets[1].findLast((bucket) => bucket.gauges)?.gauges ?? null;
  }

  get numLostEvents() {
    const dropped = this.buckets[1].filter((bucket) => bucket.gauges).map((bucket) => bucket.gauges.num_dropped_events);
    return dropped.length ? Math.max(0, dropped.at(-1) - dropped[0]) : 0;
  }
}
