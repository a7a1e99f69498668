// Phones: the search, and of one AOR all that a support desk needs.

import { ask } from "./api.js";
import { $, clock, fill, make, say, show, span, time } from "./dom.js";

const PAGE = 50;
const EVENTS = 50;
const PATIENCE = 3000; // ms that who leads has for its answer
const MAX_LOOKS = 25; // short pages in a row, of 20,000 AORs each, until the operator must ask for more

let search = null; // what is looked for, and where the next page begins
let open = null; // the AOR that is shown
let status = { time: 0 }; // of the node, as of its last answer

export function keep(latest) {
  status = latest;
}

/** Wall time of a moment in ms of cluster time, as exact as the two clocks agree. */
function wall(milliseconds) {
  return Date.now() - (status.time * 1000 - milliseconds);
}

/** Where a SIP URI points: host, port, and transport. */
function place(uri) {
  const [, host = uri, params = ""] = /^sips?:(?:[^@]*@)?([^;?>]*)(.*)$/i.exec(uri) ?? [];
  const transport = /;transport=(\w+)/i.exec(params)?.[1] ?? "udp";
  return `${host} ${transport.toLowerCase()}`;
}

const where = (binding) => place(binding.received || binding.contact);
const expiry = (binding) => (binding.expires > 0 ? `in ${span(binding.expires)}` : "now");

export function startSearch() {
  $("search").addEventListener("submit", (event) => {
    event.preventDefault();
    const query = new URLSearchParams({ limit: PAGE });
    const text = $("query").value.trim();
    if (text) query.set($("field").value, text);
    if ($("nat").value) query.set("behind_nat", $("nat").value);
    search = { query, shown: 0 };
    $("hits").replaceChildren();
    show("hits-table", false);
    look();
  });
  $("more").addEventListener("click", look);
  $("phone-close").addEventListener("click", () => { open = null; show("phone", false); $("query").focus(); });
  setInterval(() => { if (open !== null && !document.hidden) refresh(open); }, 5000);
}

async function look() {
  const mine = search;
  show("more", false);
  say("found", "looking…");
  try {
    for (let looks = 0; looks < MAX_LOOKS; looks += 1) {
      const page = await ask(`/v1/bindings?${mine.query}`);
      if (mine !== search) return;
      $("hits").append(...page.bindings.map(hit));
      mine.shown += page.bindings.length;
      show("hits-table", mine.shown > 0);
      if (page.cursor !== null) mine.query.set("cursor", page.cursor);
      show("more", page.cursor !== null);
      if (page.bindings.length || page.cursor === null) {
        const bindings = mine.shown === 1 ? "1 binding" : `${mine.shown} bindings`;
        say("found", mine.shown ? `${bindings}${page.cursor === null ? "" : ", and perhaps more"}` : "None matches: no such phone is registered.");
        return;
      }
    }
    say("found", "Nothing yet; there is more to look through.");
  } catch (error) {
    if (mine === search) say("found", `Not found out: ${error.message}`);
  }
}

function hit(binding) {
  const name = binding.aor.replace(/^sips?:/, "");
  const button = make("button", { type: "button", class: "link", onclick: () => openPhone(binding.aor) }, name);
  return make("tr", {}, make("th", { scope: "row" }, button), make("td", {}, where(binding)),
    make("td", { "data-label": "last REGISTER" }, clock(wall(binding.last_modified))), make("td", { "data-label": "NAT:" }, binding.behind_nat ? "behind" : "no"),
    make("td", { class: "number", "data-label": "expires" }, expiry(binding)), make("td", { class: "foreign" }, binding.user_agent));
}

function openPhone(aor) {
  open = aor;
  say("phone-title", aor.replace(/^sips?:/, ""));
  $("phone-bindings").replaceChildren();
  fill("history", "", () => []);
  show("phone", true);
  $("phone").focus();
  refresh(aor);
}

/** The bindings of an AOR as who leads has them, who knows when phones answer; else as this node has them. */
async function bindingsOf(path) {
  try {
    return { ...await ask(`/v1/bindings/${path}?node=leader`, { patience: PATIENCE }), byLeader: true };
  } catch (error) {
    if (error.status === 404) throw error;
    return ask(`/v1/bindings/${path}`);
  }
}

async function refresh(aor) {
  const path = encodeURIComponent(aor);
  const [found, history] = await Promise.all([
    bindingsOf(path).catch((error) => (error.status === 404 ? { bindings: [] } : error)),
    ask(`/v1/history/${path}?limit=${EVENTS}`).catch((error) => error),
  ]);
  if (aor !== open) return;
  const events = history.events ?? [];
  if (found.bindings) {
    $("phone-bindings").replaceChildren(...(found.bindings.length ? found.bindings.map((one) => card(one, events, found.byLeader))
      : [make("p", {}, "Not registered now.")]));
  } else {
    $("phone-bindings").replaceChildren(make("p", { class: "bad" }, found.message));
  }
  say("history-note", history.events ? (history.begins ? `this node keeps it since ${clock(history.begins)}` : "") : history.message);
  fill("history", JSON.stringify([aor, events.map((event) => event.id)]), () => events.map(line));
}

/** Since when a binding has been there: when it was added, as far as the history reaches back. */
function since(binding, events) {
  const added = events.find((event) => event.kind === "binding-added" && event.contact_id === binding.contact_id);
  return added ? `${clock(added.at)}, ${span((Date.now() - new Date(added.at)) / 1000)} ago`
    : events.length ? `before ${clock(events.at(-1).at)}` : "before what this node's history tells";
}

function nat(binding) {
  if (!binding.behind_nat) return "none: the phone is where it says";
  return `yes: seen at ${place(binding.received)}, while the phone takes itself to be at ${place(binding.contact)}`;
}

/** When a phone last answered a ping, which only who leads knows. */
function ping({ answered, behind_nat: pinged }, byLeader) {
  if (answered !== null) return `answered, ${span(answered)} ago`;
  if (!pinged) return "";
  return byLeader ? "none answered yet" : `${status.leader ?? "who leads"} knows: look there`;
}

function card(binding, events, byLeader) {
  const facts = [
    ["Where", where(binding)], ["Registered since", since(binding, events)],
    ["Last REGISTER", `${clock(wall(binding.last_modified))}, expires ${expiry(binding)}`],
    ["NAT", nat(binding)], ["Last ping", ping(binding, byLeader)], ["User-Agent", binding.user_agent || "not said"], ["Contact", binding.contact],
    ["Served at", binding.socket], ["Path", binding.path.join(", ")], ["Instance", binding.instance],
    ["Call-ID", `${binding.call_id}, CSeq ${binding.cseq}`], ["Methods", binding.methods],
  ];
  return make("dl", { class: "facts" }, ...facts.filter(([, text]) => text).map(([name, text]) =>
    make("div", {}, make("dt", {}, name), make("dd", { class: "foreign" }, text))));
}

/** What a phone's REGISTER has changed about its binding. */
function differences({ before, received, contact, call_id, user_agent }) {
  return [
    before.received !== received && `moved from ${place(before.received)}`,
    before.contact !== contact && `its contact was ${before.contact}`,
    before.user_agent !== user_agent && `it was ${before.user_agent}`,
    before.call_id !== call_id && "another Call-ID, as after a restart",
  ];
}

function line(event) {
  const word = event.kind === "gap" ? "gap" : event.kind.replace("binding-", "").replace("account-", "account ");
  const reason = { "ping-timeout": "its pings were not answered", unregistered: "by the phone itself" }[event.reason] ?? event.reason;
  const text = event.kind === "gap" ? event.why
    : [event.reason && reason, ...(event.before ? differences(event) : []), event.received && `at ${place(event.received)}`,
      event.user_agent].filter(Boolean).join(" · ");
  const mood = { "binding-added": "good", "binding-removed": "bad", gap: "warn" }[event.kind] ?? "";
  return make("li", { class: mood }, time(event.at), make("b", {}, word), make("span", { class: "foreign" }, text));
}
