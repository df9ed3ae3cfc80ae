// The view of sessions: a list in which each has its place in time, and the timeline of the chosen one.

import { ask } from "./api.js";
import { draw, make, table } from "./dom.js";
import { clock, count, duration, label, size } from "./format.js";
import { Timeline, seconds, word } from "./timeline.js";

const same = (one, other) => one && other && one.session_id === other.session_id && one.instance_id === other.instance_id && one.tenant === other.tenant;
const MAX_LISTED = 1000;
const SHORT_ENDS = { SESSION_END_UNSPECIFIED: "lives", SESSION_END_IDLE: "was idle", SESSION_END_INSTANCE_DETACHED: "engine left" };

export class Sessions {
  constructor(context) {
    this.context = context;
    this.listed = [];
    this.token = "";
    this.chosen = null;
    this.timeline = new Timeline();
    this.filter = make("input", { type: "search", placeholder: "filter by session, instance or model", "aria-label": "filter", oninput: () => this.list() });
    this.more = make("button", { type: "button", onclick: () => this.load(true).catch((error) => this.context.failed(error)) }, "older sessions");
    this.rows = make("div", { class: "scroll" });
    this.missing = make("p", { class: "nothing", hidden: true });
    this.element = make("div", {},
      this.timeline.element, this.missing,
      make("section", { class: "card" }, make("div", { class: "bar" }, make("h2", {}, "Sessions, the newest first"), make("span", { class: "grow" }), this.filter, this.more), this.rows));
  }

  async open({ instance_id, session_id, tenant }) {
    this.chosen = { instance_id, session_id, tenant: tenant ?? "" };
    this.list();
    await this.tick();
  }

  async tick() {
    if (this.listed.length <= 200) await this.load(false);
    if (!this.chosen) return;
    try {
      this.timeline.show((await ask("session", this.chosen)).session);
      this.missing.hidden = true;
    } catch (error) {
      if (error.status !== 404) throw error;
      this.missing.textContent = `The depot does not remember ${this.chosen.session_id} of ${this.chosen.instance_id} any more.`;
      this.missing.hidden = false;
      this.timeline.element.hidden = true;
    }
  }

  async load(older) {
    const page = await ask("sessions", { tenant: this.context.tenant, page_token: older ? this.token : "" });
    this.listed = older ? [...this.listed, ...page.sessions].slice(0, MAX_LISTED) : page.sessions;
    this.token = page.next_page_token;
    this.more.hidden = !this.token || this.listed.length >= MAX_LISTED;
    this.list();
  }

  list() {
    const wanted = this.filter.value.toLowerCase();
    const shown = this.listed.filter((each) => `${each.session_id} ${label(each.tenant, each.instance_id)} ${each.model_name}`.toLowerCase().includes(wanted));
    const starts = shown.map((each) => Date.parse(each.start_time) / 1000);
    const first = Math.min(...starts);
    const last = Math.max(...shown.map((each, number) => starts[number] + seconds(each.duration)));
    const place = (each) => {
      const start = Date.parse(each.start_time) / 1000;
      const scale = 100 / Math.max(1e-6, last - first);
      const width = Math.max(0.4, seconds(each.duration) * scale);
      return draw("svg", { height: 14, viewBox: "0 0 100 14", preserveAspectRatio: "none" },
        draw("rect", { x: Math.min(99.6, (start - first) * scale), y: 2, width, height: 10, style: { fill: each.end === "SESSION_END_UNSPECIFIED" ? "var(--c0)" : "var(--c6)" } }));
    };
    const scroll = this.rows.scrollTop;
    this.rows.replaceChildren(table([
      ["session", (each) => each.session_id],
      ["instance", (each) => label(each.tenant, each.instance_id)],
      ["model", (each) => each.model_name],
      ["received", (each) => clock(Date.parse(each.start_time) / 1000), "number"],
      ["lasts", (each) => duration(seconds(each.duration)), "number"],
      ["tokens hit", ({ totals }) => (totals?.num_lookups ? `${count(Number(totals.matched_tokens))} of ${count(Number(totals.prompt_tokens))}` : ""), "number"],
      ["missed", ({ totals }) => totals?.misses?.map((each) => word(each.reason, "MISS_REASON_")).join(", ") ?? ""],
      ["bytes", ({ totals }) => (totals ? size(Number(totals.stored_bytes) + Number(totals.retrieved_bytes)) : ""), "number"],
      ["state", (each) => SHORT_ENDS[each.end] ?? "ended"],
      [shown.length ? `${clock(first)} to ${clock(last)}` : "", place],
    ], shown, { onrow: (each) => this.open(each).catch((error) => this.context.failed(error)), selected: (each) => same(each, this.chosen), empty: wanted ? "no listed session fits" : "no session" }));
    this.rows.firstChild.classList.add("wide", "many");
    this.rows.scrollTop = scroll;
  }
}
