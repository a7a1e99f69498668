// How the page shows texts and times. What strangers have written is only ever a text node.

export const $ = (id) => document.getElementById(id);

/** An element; children are elements or texts, and attributes are never made of data but for values. */
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "onclick") element.addEventListener("click", value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

/** Say a text, and leave the document alone if it says so already: assistive technology would read it again. */
export function say(id, text) {
  const element = $(id);
  if (element.textContent !== text) element.textContent = text;
}

export function show(id, visible) {
  $(id).hidden = !visible;
}

/** Replace what an element has, unless nothing of `key` has changed: what has the focus shall keep it. */
export function fill(id, key, children) {
  const element = $(id);
  if (element.dataset.key === key) return;
  element.dataset.key = key;
  element.replaceChildren(...children());
}

const day = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric" });

/** A moment as operators read it: the time, with the day if that isn't today. */
export function clock(moment, milliseconds = false) {
  const date = new Date(moment);
  const two = (number) => String(number).padStart(2, "0");
  let text = `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  if (milliseconds) text += `.${String(date.getMilliseconds()).padStart(3, "0")}`;
  return date.toDateString() === new Date().toDateString() ? text : `${day.format(date)}, ${text}`;
}

/** Seconds in the two units that matter. */
export function span(seconds) {
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  let rest = Math.max(Math.round(seconds), 0);
  const parts = [];
  for (const [name, size] of units) {
    const count = Math.floor(rest / size);
    rest -= count * size;
    if (count || (name === "s" && !parts.length)) parts.push(`${count} ${name}`);
    else if (parts.length) break;
  }
  return parts.slice(0, 2).join(" ");
}

export function count(number) {
  return number.toLocaleString("en").replaceAll(",", "\u202f");
}

export function time(moment) {
  return make("time", { datetime: new Date(moment).toISOString(), title: new Date(moment).toISOString() }, clock(moment, true));
}
