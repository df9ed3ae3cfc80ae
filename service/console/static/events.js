// The view of events as they happen, with filters.

import { ask } from "./api.js";
import { make } from "./dom.js";
import { clock, label } from "./format.js";

const MAX_KEPT = 1000;
const MAX_SHOWN = 200;

const fieldsOf = (event) => Object.entries(event.fields).filter(([, value]) => value !== "").map(([name, value]) =>
  `${name}=${typeof value === "number" && !Number.isInteger(value) ? value.toPrecision(4) : value}`).join("  ");

export class Events {
  constructor(context) {
    this.context = context;
    this.kept = [];
    this.after = 0;
    this.numLost = 0;
    this.isPaused = false;
    this.text = make("input", { type: "search", placeholder: "filter by any text", "aria-label": "filter", oninput: () => this.list() });
    this.type = make("select", { "aria-label": "type", onchange: () => this.list() }, make("option", { value: "" }, "all types"));
    this.pause = make("button", { type: "button", onclick: () => this.toggle() }, "pause");
    this.lost = make("span", { class: "bad" });
    this.rows = make("div", { class: "scroll" });
    this.element = make("section", { class: "card" },
      make("div", { class: "bar" }, make("h2", {}, "Events, the newest first"), this.lost, make("span", { class: "grow" }), this.type, this.text, this.pause), this.rows);
    this.list();
  }

  toggle() {
    this.isPaused = !this.isPaused;
    this.pause.textContent = this.isPaused ? "go on" : "pause";
    this.pause.setAttribute("aria-pressed", String(this.isPaused));
  }

  async tick() {
    if (this.isPaused) return;
    const answer = await ask("events", { tenant: this.context.tenant, after: this.after });
    if (this.after && answer.num_lost) this.numLost += answer.num_lost;
    this.after = answer.last;
    this.kept = [...answer.events.reverse(), ...this.kept].slice(0, MAX_KEPT);
    const known = new Set([...this.type.options].map((option) => option.value));
    for (const type of [...new Set(this.kept.map((event) => event.type))].sort()) {
      if (!known.has(type)) this.type.append(make("option", { value: type }, type));
    }
    this.lost.textContent = this.numLost ? `${this.numLost} events came too fast and are not here` : "";
    this.list();
  }

  list() {
    const wanted = this.text.value.toLowerCase();
    const shown = this.kept.filter((event) => (!this.type.value || event.type === this.type.value) &&
      (!wanted || `${event.type} ${label(event.tenant, event.instance_id)} ${event.session_id} ${fieldsOf(event)}`.toLowerCase().includes(wanted))).slice(0, MAX_SHOWN);
    const rows = shown.map((event) => make("tr", {},
      make("td", { class: "number" }, `${clock(event.time)}.${String(Math.floor((event.time % 1) * 1000)).padStart(3, "0")}`),
      make("td", {}, event.type),
      make("td", {}, label(event.tenant, event.instance_id), event.session_id ? make("div", { class: "nothing" }, event.session_id) : null),
      make("td", { class: "fields" }, fieldsOf(event))));
    const head = make("tr", {}, ...["time", "type", "instance, session", "fields"].map((name) => make("th", {}, name)));
    this.rows.replaceChildren(shown.length ? make("table", { class: "events" }, make("thead", {}, head), make("tbody", {}, ...rows)) : make("p", { class: "nothing" }, "no event since this view was opened fits"));
  }
}
