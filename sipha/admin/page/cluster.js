// The nodes: who leads, who holds the virtual addresses and since when, and what an operator may do to them.

import { ask } from "./api.js";
import { $, clock, count, fill, make, say, show, span } from "./dom.js";

const HANDOVER = 15000; // ms that the answer to a change may take, longer than the node waits for one

let longest = 0; // the longest lease seen, in seconds

export function isLost(status) {
  const leader = status.peers.find((peer) => peer.name === status.leader);
  return status.leader === null || (leader !== undefined && !leader.connected);
}

/** `status` is that of this node, `lead` that of who leads, as far as it is known. */
export function showSummary(status, lead, timeline) {
  say("leader", status.leader ?? "nobody known");
  const elected = timeline.latest("leader-elected");
  const known = elected !== undefined && elected.node === status.leader && elected.term === status.term;
  const since = (event, word) => `${word} ${clock(event.at)}, ${span((Date.now() - new Date(event.at)) / 1000)} ago`;
  say("leader-since", known ? `${since(elected, "since")} · term ${status.term}` : `term ${status.term}`);
  showAddresses(status, timeline, known ? since(elected, "elected") : "");
  showLease(status, lead);
  say("bindings", count(status.bindings));
  say("aors", `${count(status.aors)} AORs · ${count(status.accounts)} accounts · pings ${status.pings}`);
}

function showAddresses(status, timeline, elected) {
  const addresses = status.virtual_addresses.join(", ");
  if (!addresses) {
    say("vip", "none");
    say("vip-since", "none is configured");
  } else if (status.holds_virtual_addresses) {
    const gained = timeline.latest("vip-gained");
    say("vip", status.node);
    say("vip-since", `${addresses} · ${gained ? `since ${clock(gained.at, true)}` : "since when isn't known any more"}`);
  } else if (status.leader !== null && status.leader !== status.node) {
    say("vip", status.leader);
    say("vip-since", [addresses, "as who leads", elected].filter(Boolean).join(" · "));
  } else {
    say("vip", "nobody known");
    say("vip-since", addresses);
  }
}

function showLease(status, lead) {
  const meter = $("lease-meter");
  meter.hidden = !lead.leading || lead.lease === null;
  if (lead.leading && lead.lease === null) {
    say("lease", "without end");
    say("lease-note", `${lead.node} is alone`);
  } else if (lead.leading) {
    longest = Math.max(longest, lead.lease);
    meter.max = longest;
    meter.value = lead.lease;
    say("lease", `${lead.lease.toFixed(2)} s`);
    say("lease-note", `left to ${lead.node} without hearing from a majority`);
  } else {
    const leader = status.peers.find((peer) => peer.name === status.leader);
    const heard = leader?.connected ? leader.heard : null;
    say("lease", status.leader === null ? "nobody's" : `${status.leader}'s`);
    say("lease-note", heard == null ? "its leader isn't heard" : `heard ${heard.toFixed(2)} s ago; it doesn't tell this node of its clock`);
  }
}

/** The nodes as one list: members as the log says, with what this node sees of each, and what only who leads knows. */
function rows(status, members, known) {
  return members.nodes.map((member) => {
    const self = member.name === status.node;
    const peer = status.peers.find((one) => one.name === member.name);
    const { behind = null, obstacle = null } = known.nodes.find((one) => one.name === member.name) ?? {};
    const lag = self && behind === null ? status.commit_index - status.applied_index : behind;
    return { ...member, obstacle, self, admin: self ? "" : peer?.admin ?? "", heard: self ? 0 : peer?.heard ?? null, lag };
  });
}

function state(row) {
  if (row.self) return ["this node", "good"];
  return row.connected ? ["connected", "good"] : ["not connected", "bad"];
}

export function showNodes(status, members, known, act) {
  const all = rows(status, members, known);
  const figures = (row) => ({
    heard: row.self ? "" : row.heard === null ? "–" : `${row.heard.toFixed(2)} s`,
    lag: row.lag === null ? "–" : count(row.lag),
  });
  const key = JSON.stringify(all.map(({ heard, lag, ...rest }) => rest));
  fill("nodes", key, () => all.map((row) => nodeRow(row, act)));
  all.forEach((row, index) => {
    const { heard, lag } = figures(row);
    const cells = $("nodes").rows[index].cells;
    cells[3].textContent = heard;
    cells[4].textContent = lag;
    cells[4].classList.toggle("bad", row.lag > 1000);
  });
}

function nodeRow(row, act) {
  const [word, kind] = state(row);
  const could = row.leads ? "leads" : row.obstacle === null ? "ask who leads" : row.obstacle || "yes";
  const name = row.admin ? make("a", { href: row.admin, title: "its own page" }, row.name) : row.name;
  const duty = row.standby ? "online" : "standby";
  const button = make("button", { type: "button", onclick: () => act(duty, row), "aria-label": `${duty} ${row.name}` },
    row.standby ? "Online…" : "Standby…");
  return make("tr", { "data-node": row.name },
    make("th", { scope: "row" }, name, make("small", {}, row.address)),
    make("td", {}, row.leads ? make("b", { class: "tag main" }, "leader") : row.role,
      row.standby ? make("b", { class: "tag warn" }, "standby") : "", row.preferred ? make("b", { class: "tag" }, "preferred") : ""),
    make("td", {}, make("span", { class: `dot ${kind}` }), word),
    make("td", { class: "number", "data-label": "heard" }), make("td", { class: "number", "data-label": "lag" }),
    make("td", { "data-label": "could lead:" }, could),
    make("td", { class: "number" }, row.role === "learner" ? "" : button));
}

/** Ask whether it is to be done, and resolve to true if so, or to the node chosen. */
function confirm(title, texts, yes, choices = []) {
  say("confirm-title", title);
  $("confirm-text").replaceChildren(...texts.map((text) => make("p", {}, text)));
  say("confirm-yes", yes);
  show("confirm-choice", choices.length > 0);
  $("confirm-node").replaceChildren(...choices.map(([value, text]) => make("option", { value }, text)));
  const dialog = $("confirm");
  dialog.returnValue = "cancel";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes" && ($("confirm-node").value || true)), { once: true });
  });
}

async function change(path, body, done) {
  say("outcome", "asking…");
  try {
    const answer = await ask(path, { method: "POST", body, patience: HANDOVER });
    say("outcome", await done(answer));
  } catch (error) {
    say("outcome", `Not done, as far as is known: ${error.message}`);
  }
}

export async function putOnDuty(duty, row) {
  const path = (name) => duty === "standby"
    ? `/v1/nodes/${encodeURIComponent(name)}/standby` : `/v1/nodes/${encodeURIComponent(name)}/online`;
  const texts = duty === "online" ? ["It may lead again."]
    : ["It votes and keeps its copy, but leads no more until it is online again.",
      ...(row.leads ? ["It leads now, and hands leadership on first: phones reconnect their streams."] : [])];
  if (!await confirm(duty === "standby" ? `Put ${row.name} in standby?` : `Bring ${row.name} online?`, texts, duty === "standby" ? "Standby" : "Online")) return;
  await change(path(row.name), {}, (answer) =>
    `${answer.name} is ${answer.standby ? "in standby" : "online"}; ${answer.leader ?? "nobody yet"} leads.`);
}

export async function drill({ node, leader }, { status, members }, timeline) {
  const voters = members.nodes.filter((node) => node.role === "voter" && !node.leads && !node.standby);
  const any = members.successor ? `any: ${members.successor}, as it stands` : "any that is up to date";
  const costs = status.leading
    ? `${count(status.connections)} connections of phones are closed, and ${count(status.stream_calls)} calls being set up over them fail.`
    : "Connections of phones are closed, and calls being set up over them fail; how many, only who leads knows.";
  const chosen = await confirm(`Hand leadership on from ${leader ?? "nobody"}?`, [costs,
    "The gap shown then is what this node sees of it. What phones see, siphactl drill measures from outside."],
  "Drill", [["", any], ...voters.map((node) => [node.name, node.name])]);
  if (!chosen) return;
  const mark = timeline.mark();
  await change("/v1/transfer", chosen === true ? {} : { to: chosen }, async (answer) => {
    const elected = () => timeline.since(mark).some((event) => event.kind === "leader-elected" && event.node === answer.leader);
    for (let waits = 0; waits < 50 && !elected(); waits += 1) await pause(100);
    await pause(500); // for what follows
    return `${answer.leader} leads. ${gap(timeline.since(mark), node)}`;
  });
}

function pause(milliseconds) {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

/** What a node's own events say of a handover: the address given up, another one elected, the address gained. */
function gap(events, node) {
  const first = (...kinds) => kinds.map((kind) => events.find((event) => event.kind === kind)).find(Boolean);
  const lost = first("lease-lost", "vip-lost");
  const elected = first("leader-elected");
  const gained = first("vip-gained", "lease-gained");
  const seconds = (from, to) => `${((new Date(to.at) - new Date(from.at)) / 1000).toFixed(3)} s`;
  if (lost && gained) return `${seconds(lost, gained)} from ${lost.kind} to ${gained.kind} at ${node}.`;
  if (lost && elected) return `${seconds(lost, elected)} from ${lost.kind} at ${node} until it saw ${elected.node} elected.`;
  if (elected && gained) return `${seconds(elected, gained)} from its election to ${gained.kind}, as ${node} saw it.`;
  return elected ? `${node} saw it elected at ${clock(elected.at, true)}, and neither side of the gap.` : "";
}
