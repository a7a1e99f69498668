// What the page does: it asks its node each second, is told by it what happens, and hands both to its parts.

import { Refused, ask, follow, forgetToken, hasToken } from "./api.js";
import { drill, isLost, putOnDuty, showNodes, showSummary } from "./cluster.js";
import { $, clock, fill, make, say, show, span } from "./dom.js";
import { Plot, Rate } from "./plot.js";
import { keep, startSearch } from "./search.js";
import { KINDS, Timeline } from "./timeline.js";

const INTERVAL = 1000;
const FRESH = 3000; // ms for which the word of who leads counts

const timeline = new Timeline();
let status = null;
let members = null;
let heardAt = null; // when the node has last answered
let asking = false;
let heard = null; // the same of who leads, and when it has answered, while that is another node
let askingLeader = false;

/** What who leads says, if it has answered lately; else what this node says. */
function leader() {
  const fresh = heard !== null && heard.status.leading && heard.status.node === status.leader && Date.now() - heard.at < FRESH;
  return fresh ? heard : { status, members };
}

/** The most that a follower lacks, as who leads knows; or what this node itself has yet to apply. */
function lag(now, nodes) {
  const behind = nodes.filter((node) => node.name !== now.node && node.behind !== null);
  return behind.length ? Math.max(...behind.map((node) => node.behind)) : now.commit_index - now.applied_index;
}

function counter(name) {
  const rate = new Rate();
  return (now) => (name in now.counters ? rate.take(now.counters[name], now) : null);
}

function entries() {
  const rate = new Rate();
  return (now) => rate.take(now.applied_index, now);
}

const plots = [
  [new Plot("REGISTERs done", "/s"), counter("registrar_registered")],
  [new Plot("Forwarded", "/s"), counter("proxy_forwarded")],
  [new Plot("Pings answered", "/s"), counter("pings_answered")],
  [new Plot("Pings lost", "/s"), counter("pings_lost")],
  [new Plot("Log entries applied", "/s"), entries()],
  [new Plot("Lag, entries"), lag],
  [new Plot("Bindings"), (now) => now.bindings],
  [new Plot("Phones' connections"), (now) => now.connections],
];

async function look() {
  if (asking) return;
  asking = true;
  try {
    [status, members] = await Promise.all([ask("/v1/status"), ask("/v1/nodes")]);
    heardAt = Date.now();
    render();
    sample();
  } catch (error) {
    showTrouble(error);
  } finally {
    asking = false;
  }
}

/** Ask who leads, too, by way of this node: what phones see is known there. */
async function lookAtLeader() {
  if (askingLeader || status === null || status.leading || status.leader === null) return;
  askingLeader = true;
  try {
    const [its, nodes] = await Promise.all([ask("/v1/status?node=leader", { patience: FRESH }), ask("/v1/nodes?node=leader", { patience: FRESH })]);
    heard = { status: its, members: nodes, at: Date.now() };
  } catch {
    heard = null; // it doesn't answer this node, or isn't asked by it
  } finally {
    askingLeader = false;
  }
}

function render() {
  document.title = `${status.node} · sipha`;
  say("served", `${status.node} · ${status.version} · up ${span(status.uptime)} · ${status.role}${status.standby ? ", in standby" : ""}`);
  say("link", "live");
  $("link").className = "good";
  document.body.classList.remove("stale");
  show("forget", hasToken());
  show("alarms", status.alarms.length > 0);
  fill("alarms", status.alarms.join("\n"), () => status.alarms.map((alarm) => make("li", {}, alarm)));
  keep(status);
  showSummary(status, leader().status, timeline);
  showNodes(status, members, leader().members, async (duty, row) => { await putOnDuty(duty, row); look(); });
  $("drill").disabled = status.leader === null;
  if (isLost(status)) {
    sayCutOff("lost", `${status.node} is cut off from who leads: what it shows of the table and of others may be old, and it can change nothing.`);
  } else {
    show("cut-off", false);
  }
}

let sampled = 0;
function sample() {
  if (status.uptime - sampled < 0.5 && status.uptime >= sampled) return; // an event has made us look early
  sampled = status.uptime;
  const { status: counted, members: known } = leader();
  for (const [plot, measure] of plots) plot.add(measure(counted, known.nodes));
  say("plots-note", counted.leading ? `${counted.node}, the last two minutes` : `${counted.node}, the last two minutes; what phones see is counted by ${counted.leader ?? "who leads"}`);
}

function showTrouble(error) {
  const refused = error instanceof Refused;
  if (refused && error.status === 429) return; // it asks again in a second
  say("link", "not live");
  $("link").className = "bad";
  document.body.classList.add("stale");
  const node = status?.node ?? location.host;
  const since = heardAt === null ? "" : ` since ${clock(heardAt)}: what is shown is as of then`;
  sayCutOff(`${refused} ${error.message}`, refused ? `${node} refuses: ${error.message}` : `${node} doesn't answer${since}.`);
}

/** Say what the page is cut off from, and which other pages there are. */
function sayCutOff(key, text) {
  show("cut-off", true);
  fill("cut-off", `${key} ${text}`, () => {
    const others = (status?.peers ?? []).filter((peer) => peer.admin);
    const links = others.flatMap((peer) => [" ", make("a", { href: peer.admin }, peer.name)]);
    return [text, ...(others.length ? [" Ask another node:", ...links] : [])];
  });
}

function tell(event) {
  timeline.add(event);
  if (event.kind !== "start") look();
}

$("forget").addEventListener("click", forgetToken);
$("drill").addEventListener("click", async () => { await drill(status, leader(), timeline); look(); });
$("plots").append(...plots.map(([plot]) => plot.element));
startSearch();
look().then(lookAtLeader);
setInterval(() => { look(); lookAtLeader(); }, INTERVAL);
follow(`/v1/events?kinds=${KINDS.join(",")}`, tell);
