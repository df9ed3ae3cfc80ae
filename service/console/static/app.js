// The page: its views, the question once a second, the log-in.

import { ask, token } from "./api.js";
import { make } from "./dom.js";
import { Events } from "./events.js";
import { count, duration } from "./format.js";
import { History } from "./history.js";
import { L1 } from "./l1.js";
import { Overview } from "./overview.js";
import { Sessions } from "./sessions.js";
import { Sizing } from "./sizing.js";

const PERIOD_MS = 1000;
const VIEWS = { overview: Overview, sessions: Sessions, l1: L1, sizing: Sizing, events: Events };
const TITLES = { overview: "Overview", sessions: "Sessions", l1: "L1", sizing: "Sizing", events: "Events" };
const FOR_ADMINS = ["sizing"];
const by = (id) => document.getElementById(id);

const context = {
  tenant: "",
  isAdmin: false,
  history: new History(""),
  failed,
  showState: (status) => {
    const adopted = Number(status.num_adopted_chunks);
    const start = adopted ? `, adopted ${count(adopted)} chunks at its start` : "";
    const state = status.state.replace("SERVER_STATE_", "").toLowerCase();
    by("state").textContent = `${state}, up ${duration(Number.parseFloat(status.uptime))}${start}, version ${status.version}`;
  },
  openSession: (session) => { choose("sessions"); views.sessions.open(session).catch(failed); },
};
let views = {};
let current = "overview";
let isIn = false;
let answered = null;

function failed(error) {
  if (error.status === 401) return logOut(token.get() ? error.message : "");
  const since = answered ? ` since ${answered.toLocaleTimeString([], { hour12: false })}` : "";
  by("notice").textContent = error.status === 0 || error.status === 503 ? `No answer${since}: ${error.message}` : error.message ?? String(error);
  by("notice").hidden = false;
  if (!("status" in error)) console.error(error);
}

function choose(name) {
  current = name;
  location.hash = name;
  for (const button of by("tabs").children) button.setAttribute("aria-current", button.dataset.view === name ? "page" : "false");
  views[name] ??= new VIEWS[name](context);
  by("view").replaceChildren(views[name].element);
  views[name].tick().then(worked, failed);
}

const canSee = (name) => name in VIEWS && (context.isAdmin || !FOR_ADMINS.includes(name));

function worked() {
  answered = new Date();
  by("notice").hidden = true;
}

function logOut(why) {
  isIn = false;
  token.forget();
  views = {};
  by("view").replaceChildren();
  by("tabs").replaceChildren();
  by("state").textContent = "";
  by("notice").hidden = true;
  by("logout").hidden = true;
  by("tenants").hidden = true;
  by("login").hidden = false;
  by("denied").textContent = why;
}

async function logIn() {
  const who = await ask("who");
  by("login").hidden = true;
  by("logout").hidden = !token.get();
  by("state").textContent = `${who.tenant ? `tenant ${who.tenant}, ` : ""}version ${who.version}`;
  Object.assign(context, { tenant: "", isAdmin: who.is_admin, history: new History("") });
  if (who.is_admin) await listTenants();
  by("tabs").replaceChildren(...Object.entries(TITLES).filter(([name]) => canSee(name)).map(([name, title]) => make("button", { type: "button", "data-view": name, onclick: () => choose(name) }, title)));
  isIn = true;
  const wanted = location.hash.slice(1);
  choose(canSee(wanted) ? wanted : "overview");
}

async function listTenants() {
  const { status } = await ask("status");
  by("tenants").hidden = !status.tenants.length;
  by("tenant").replaceChildren(make("option", { value: "" }, "all"), ...status.tenants.map((each) => make("option", { value: each.name }, each.name)));
}

async function poll() {
  try {
    if (!document.hidden) {
      if (isIn) await views[current].tick().then(worked);
      else if (by("login").hidden) await logIn();
    }
  } catch (error) {
    failed(error);
  }
  setTimeout(poll, PERIOD_MS);
}

by("login").addEventListener("submit", (event) => {
  event.preventDefault();
  token.set(by("token").value.trim());
  by("token").value = "";
  logIn().catch(failed);
});
by("logout").addEventListener("click", () => logOut(""));
by("tenant").addEventListener("change", () => {
  context.tenant = by("tenant").value;
  context.history = new History(context.tenant);
  views = {};
  choose(current);
});
addEventListener("hashchange", () => { if (isIn && canSee(location.hash.slice(1)) && location.hash.slice(1) !== current) choose(location.hash.slice(1)); });
poll();
