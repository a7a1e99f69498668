// What has happened to the cluster, as the node tells it.

import { $, make, say, time } from "./dom.js";

export const KINDS = [
  "leader-elected", "lease-gained", "lease-lost", "vip-gained", "vip-lost", "alarm-raised", "alarm-cleared",
  "setting-changed", "members-changed", "schema-raised",
];

const KEPT = 500;
const SHOWN = 100;
const CLOSE = 10; // seconds: what comes sooner after what was before belongs to it

const MOODS = {
  "leader-elected": "main", "vip-gained": "good", "lease-gained": "good", "vip-lost": "bad", "lease-lost": "bad",
  "alarm-raised": "warn", "alarm-cleared": "good", gap: "warn",
};

function sentence(event) {
  switch (event.kind) {
    case "leader-elected": return `leads in term ${event.term}`;
    case "lease-gained": return "may act as the only leader";
    case "lease-lost": return "may not act as leader any more";
    case "vip-gained": return `serves phones at ${event.addresses.join(", ")}`;
    case "vip-lost": return `serves phones at ${event.addresses.join(", ")} no more`;
    case "alarm-raised": return event.alarm;
    case "alarm-cleared": return `over: ${event.alarm}`;
    case "setting-changed": return event.value ? `${event.name} is ${event.value}` : `${event.name} is back at its default`;
    case "members-changed": return `members: ${event.members.map((member) => member.name).join(", ")}`;
    case "schema-raised": return `the log has version ${event.schema}`;
    case "gap": return `what came before isn't known here: ${event.why}`;
    default: return event.kind;
  }
}

export class Timeline {
  constructor() {
    this.events = [];
    this.taken = 0;
    this.drawing = null;
  }

  /** Take an event as it comes; what belongs together is drawn together. */
  add(event) {
    if (!event.at || this.events.some((known) => known.id === event.id)) return;
    this.events.push(event);
    this.taken += 1;
    this.events = this.events.slice(-KEPT);
    this.drawing ??= setTimeout(() => this.draw(), 50);
  }

  latest(kind) {
    return this.events.findLast((event) => event.kind === kind);
  }

  mark() {
    return this.taken;
  }

  /** The events since a mark. */
  since(mark) {
    return this.taken === mark ? [] : this.events.slice(mark - this.taken);
  }

  draw() {
    this.drawing = null;
    const shown = this.events.slice(-SHOWN);
    say("timeline-note", shown.length ? "" : "nothing yet");
    $("timeline").replaceChildren(...shown.map((event, index) => {
      const after = index ? (new Date(event.at) - new Date(shown[index - 1].at)) / 1000 : CLOSE;
      return make("li", { class: MOODS[event.kind] ?? "", "data-kind": event.kind },
        time(event.at), make("b", {}, event.node ?? "–"), make("span", {}, sentence(event)),
        make("small", {}, after >= 0 && after < CLOSE ? `+${after.toFixed(3)} s` : ""));
    }).reverse());
  }
}
