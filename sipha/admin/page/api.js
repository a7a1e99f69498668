// How the page asks its node, and no other: JSON, and Server-Sent Events by fetch, as EventSource can't send a token.

const TOKEN = "sipha-token"; // in sessionStorage: gone with the tab, and never sent by the browser itself
const PATIENCE = 8000; // ms for an answer
const SILENCE = 40000; // ms without as much as a comment, of which the node sends one each 15 s

export class Refused extends Error {
  constructor(status, detail, retryAfter) {
    super(detail);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

let signingIn = null;

function authorization() {
  const token = sessionStorage.getItem(TOKEN);
  return token ? { Authorization: `Bearer ${token}` } : {};
}

export function hasToken() {
  return sessionStorage.getItem(TOKEN) !== null;
}

export function forgetToken() {
  sessionStorage.removeItem(TOKEN);
  location.reload();
}

/** Ask for a token, once, however many requests wait for it. */
function signIn(why) {
  signingIn ??= new Promise((resolve) => {
    const dialog = document.getElementById("sign-in");
    const input = document.getElementById("token");
    document.getElementById("sign-in-why").textContent = hasToken() ? why : "";
    input.value = "";
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.addEventListener("close", () => {
      sessionStorage.setItem(TOKEN, input.value.trim());
      input.value = "";
      signingIn = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return signingIn;
}

async function request(path, options) {
  for (;;) {
    const sent = authorization();
    const response = await fetch(path, { ...options, headers: { ...options.headers, ...sent }, cache: "no-store" });
    if (response.ok) return response;
    const text = await response.text();
    let detail = text;
    try { detail = JSON.parse(text).error.detail; } catch { /* a proxy's own words */ }
    if (response.status !== 401) throw new Refused(response.status, detail, Number(response.headers.get("Retry-After")));
    // Another request may have brought a new token meanwhile.
    if (sent.Authorization === authorization().Authorization) await signIn(detail);
  }
}

/** The JSON of an answer; throws Refused, or what fetch throws if there is none. `patience` counts from the sending. */
export async function ask(path, { method = "GET", body, patience = PATIENCE } = {}) {
  if (signingIn) await signingIn;
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  const data = body === undefined ? undefined : JSON.stringify(body);
  const cut = new AbortController();
  const timer = setTimeout(() => { if (!signingIn) cut.abort(); }, patience);
  try {
    return await (await request(path, { method, headers, body: data, signal: cut.signal })).json();
  } finally {
    clearTimeout(timer);
  }
}

/** Call `tell` with each event for ever, going on where it was after each interruption; ids are those of the log. */
export async function follow(path, tell) {
  let last = "0";
  for (;;) {
    const cut = new AbortController();
    let timer;
    const expect = () => { clearTimeout(timer); timer = setTimeout(() => cut.abort(), SILENCE); };
    expect();
    try {
      const response = await request(path, { headers: { "Last-Event-ID": last }, signal: cut.signal });
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        expect();
        const { value, done } = await reader.read();
        if (done) break;
        const messages = (rest + value).split("\n\n");
        rest = messages.pop();
        for (const message of messages) {
          const fields = Object.fromEntries(message.split("\n").map((line) => line.split(/: (.*)/s)));
          if (!fields.data) continue;
          if (fields.id) last = fields.id;
          tell(JSON.parse(fields.data));
        }
      }
    } catch { /* the status says why; here it is enough to come back */ }
    clearTimeout(timer);
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}
