/* callgen: callers and callees in one process, calling each other through a proxy.
 * A call is INVITE, (407, ACK, INVITE,) 180, 200, ACK, BYE, 200: all through the proxy, by its Record-Route.
 * cc -O2 -Wno-deprecated-declarations -o callgen callgen.c -lcrypto
 *
 *  -t IP:PORT  proxy                            -b IP      local address (127.0.0.1): callers at 5998, callees at 5999
 *  -d DOMAIN   of the users (test.local)        -n USERS   u%08d, registered at the callees' address (regload -C IP:5999)
 *  -N CALLS    in all                           -D SECONDS hard stop
 *  -w WINDOW   calls under way (32)             -r RATE    calls/s, open loop (0: closed loop)
 *  -a PASSWORD answer challenges                -A MD5|SHA-256
 */
#include "sipload.h"

#define ROOM 8192
#define CALLER_PORT 5998
#define CALLEE_PORT 5999

enum state { FREE, INVITED, ENDING };

struct call {
  enum state state;
  int callee, attempt;
  unsigned generation, nc;
  u64 began;
  char nonce[NONCE];
};

static struct call *calls;
static struct account *accounts;
static int users = 1000, window = 32, caller_fd, callee_fd, qop = 1;
static const char *bind_host = "127.0.0.1", *domain = "test.local";
static char shared_nonce[NONCE];
static unsigned run;

static const char body[] = "v=0\r\no=u 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 40000 RTP/AVP 0\r\na=sendrecv\r\n";

static int append_all(char *out, const char *message, const char *name) {
  int n = 0;
  size_t length = strlen(name);
  for (const char *line = strstr(message, "\r\n"); line; line = strstr(line, "\r\n")) {
    line += 2;
    if (!strncasecmp(line, name, length) && line[length] == ':') {
      int whole = strcspn(line, "\r") + 2;
      memcpy(out + n, line, whole);
      n += whole;
    }
  }
  return n;
}

/* The route set: the Record-Routes of the response, the last one first (RFC 3261 §12.1.2). */
static int append_routes(char *out, const char *response) {
  const char *found[16];
  int count = 0, n = 0;
  for (const char *line = strcasestr(response, "\r\nRecord-Route:"); line && count < 16; line = strcasestr(line, "\r\nRecord-Route:")) {
    line += 15;
    found[count++] = line;
  }
  while (count--) n += sprintf(out + n, "Route:%.*s\r\n", (int)strcspn(found[count], "\r"), found[count]);
  return n;
}

static void answer(void) {
  static char m[ROOM], out[2 * ROOM];
  struct sockaddr_in from;
  socklen_t size;
  for (int k = 0; k < 64; k++) {
    int length, r;
    size = sizeof from;
    r = recvfrom(callee_fd, m, ROOM - 1, MSG_DONTWAIT, (void *)&from, &size);
    if (r <= 0) return;
    m[r] = 0;
    int invite = !strncmp(m, "INVITE ", 7);
    if (!strncmp(m, "ACK ", 4) || !strncmp(m, "SIP/2.0", 7)) continue;
    for (int final = !invite; final < 2; final++) {
      int n = sprintf(out, "SIP/2.0 %s\r\n", final ? "200 OK" : "180 Ringing");
      n += append_all(out + n, m, "Via");
      if (invite) n += append_all(out + n, m, "Record-Route");
      n += append_all(out + n, m, "From");
      const char *to = header(m, "To", &length);
      if (!to) break;
      n += sprintf(out + n, "To: %.*s%s\r\n", length, to, invite ? ";tag=uas" : "");
      n += append_all(out + n, m, "Call-ID");
      n += append_all(out + n, m, "CSeq");
      if (invite) n += sprintf(out + n, "Contact: <sip:uas@%s:%d>\r\n", bind_host, CALLEE_PORT);
      n += sprintf(out + n, "Content-Length: 0\r\n\r\n");
      sendto(callee_fd, out, n, 0, (void *)&from, sizeof from);
    }
  }
}

/* A request of the call up to its Call-ID; the branch is made of the letter, the call and the attempt. */
static int begin(char *out, const char *method, const char *uri, char letter, int index, const char *routes, const char *to_tag) {
  struct call *c = &calls[index];
  int caller = (c->callee + users / 2) % users;
  return sprintf(out,
                 "%s %s SIP/2.0\r\nVia: SIP/2.0/UDP %s:%d;rport;branch=z9hG4bK%c%d%06x.%x.%x\r\nMax-Forwards: 70\r\n%s"
                 "From: <sip:u%08d@%s>;tag=f%x\r\nTo: <sip:u%08d@%s>%s\r\nCall-ID: %06x.%x.%x@callgen\r\n",
                 method, uri, bind_host, CALLER_PORT, letter, c->attempt, index, c->generation, run, routes, caller, domain,
                 c->generation, c->callee, domain, to_tag, index, c->generation, run);
}

static void invite(int index, const char *nonce) {
  static char out[ROOM];
  struct call *c = &calls[index];
  char uri[128], user[16];
  int caller = (c->callee + users / 2) % users;
  struct account *account = &accounts[caller];
  snprintf(uri, sizeof uri, "sip:u%08d@%s", c->callee, domain);
  snprintf(user, sizeof user, "u%08d", caller);
  c->attempt++;
  int n = begin(out, "INVITE", uri, 'i', index, "", "");
  n += sprintf(out + n, "CSeq: %d INVITE\r\nContact: <sip:%s@%s:%d>\r\n", c->attempt, user, bind_host, CALLER_PORT);
  if (!nonce) nonce = account->nonce[0] ? account->nonce : shared_nonce;
  if (password && nonce[0]) {
    if (strcmp(account->nonce, nonce)) {
      strcpy(account->nonce, nonce);
      account->nc = 0;
    }
    n += render_credentials(out + n, sizeof out - n, "Proxy-Authorization", account, user, nonce, ++account->nc, qop, "INVITE", uri);
  }
  n += sprintf(out + n, "Content-Type: application/sdp\r\nContent-Length: %zu\r\n\r\n%s", sizeof body - 1, body);
  send(caller_fd, out, n, 0);
}

static void hang_up(int index, const char *response) {
  static char out[2 * ROOM], routes[ROOM];
  char uri[128], tag[128] = "";
  int length;
  const char *to = header(response, "To", &length), *at = to ? memmem(to, length, ";tag=", 5) : NULL;
  if (at) snprintf(tag, sizeof tag, "%.*s", (int)(to + length - at), at);
  routes[append_routes(routes, response)] = 0;
  snprintf(uri, sizeof uri, "sip:uas@%s:%d", bind_host, CALLEE_PORT);
  int n = begin(out, "ACK", uri, 'a', index, routes, tag);
  n += sprintf(out + n, "CSeq: %d ACK\r\nContent-Length: 0\r\n\r\n", calls[index].attempt);
  send(caller_fd, out, n, 0);
  n = begin(out, "BYE", uri, 'b', index, routes, tag);
  n += sprintf(out + n, "CSeq: %d BYE\r\nContent-Length: 0\r\n\r\n", calls[index].attempt + 1);
  send(caller_fd, out, n, 0);
}

/* The ACK for a final response that is no 2xx bears the INVITE's branch (RFC 3261 §17.1.1.3). */
static void acknowledge(int index, const char *response) {
  static char out[ROOM];
  char uri[128], tag[128] = "";
  int length;
  const char *to = header(response, "To", &length), *at = to ? memmem(to, length, ";tag=", 5) : NULL;
  if (at) snprintf(tag, sizeof tag, "%.*s", (int)(to + length - at), at);
  snprintf(uri, sizeof uri, "sip:u%08d@%s", calls[index].callee, domain);
  int n = begin(out, "ACK", uri, 'i', index, "", tag);
  n += sprintf(out + n, "CSeq: %d ACK\r\nContent-Length: 0\r\n\r\n", calls[index].attempt);
  send(caller_fd, out, n, 0);
}

int main(int argc, char **argv) {
  int option, last_bad = 0;
  long count = 10000;
  double rate = 0, seconds = 20;
  char *target = "127.0.0.1:5060";
  while ((option = getopt(argc, argv, "t:b:d:n:N:w:r:D:a:A:")) > 0) switch (option) {
      case 't': target = optarg; break;
      case 'b': bind_host = optarg; break;
      case 'd': domain = optarg; break;
      case 'n': users = atoi(optarg); break;
      case 'N': count = atol(optarg); break;
      case 'w': window = atoi(optarg); break;
      case 'r': rate = atof(optarg); break;
      case 'D': seconds = atof(optarg); break;
      case 'a': password = optarg; break;
      case 'A': algorithm = optarg; break;
      default: die("see the head of callgen.c");
    }
  if (users < 1 || window < 1 || strlen(domain) > 60) die("-n, -w or -d is out of range");
  if (rate > 0 && window < 8192) window = 8192;
  snprintf(realm, sizeof realm, "%s", domain);
  caller_fd = udp_socket(bind_host, CALLER_PORT);
  callee_fd = udp_socket(bind_host, CALLEE_PORT);
  struct sockaddr_in to = address(target, 5060);
  if (connect(caller_fd, (void *)&to, sizeof to)) die("connect %s: %s", target, strerror(errno));
  run = getpid() & 0xffff;
  calls = calloc(window, sizeof *calls);
  accounts = calloc(users, sizeof *accounts);
  int *idle = malloc(window * sizeof *idle), idle_count = 0;
  for (int i = 0; i < window; i++) idle[idle_count++] = window - 1 - i;

  static struct histogram set_up, ended;
  static char m[ROOM];
  long started = 0, ok = 0, bad = 0, timed_out = 0, overflow = 0, challenged = 0;
  u64 start = now_us(), scanned = start, last = start, deadline = start + seconds * 1e6;
  for (;;) {
    u64 now = now_us();
    int stopping = now > deadline;
    if ((started >= count || stopping) && (idle_count == window || now > deadline + 4000000)) break;
    for (int k = 0; k < 32 && !stopping && started < count; k++) {
      if (rate > 0 && started >= (now - start) * rate / 1e6) break;
      if (!idle_count) {
        if (rate > 0) overflow++, started++;
        break;
      }
      int index = idle[--idle_count];
      calls[index] = (struct call){.state = INVITED, .generation = calls[index].generation + 1, .began = now_us(), .callee = started % users};
      started++;
      invite(index, NULL);
    }
    struct pollfd p[2] = {{caller_fd, POLLIN, 0}, {callee_fd, POLLIN, 0}};
    poll(p, 2, 1);
    answer();
    for (int k = 0; k < 64; k++) {
      int length, r = recv(caller_fd, m, ROOM - 1, MSG_DONTWAIT);
      unsigned index, generation, of;
      if (r <= 0) break;
      m[r] = 0;
      int status = strncmp(m, "SIP/2.0 ", 8) ? 0 : atoi(m + 8);
      const char *call_id = header(m, "Call-ID", &length), *cseq;
      if (status < 200 || !call_id || sscanf(call_id, "%6x.%x.%x", &index, &generation, &of) != 3) continue;
      if (of != run || index >= (unsigned)window || calls[index].generation != generation) continue;
      struct call *c = &calls[index];
      if (c->state == FREE || !(cseq = header(m, "CSeq", &length))) continue;
      int of_invite = memmem(cseq, length, "INVITE", 6) != NULL;
      if (of_invite && atoi(cseq) != c->attempt) continue;
      struct challenge challenge;
      now = now_us();
      if (of_invite && (status == 407 || status == 401) && password && c->attempt == 1 && read_challenge(m, status, &challenge)) {
        challenged++;
        acknowledge(index, m);
        snprintf(realm, sizeof realm, "%s", challenge.realm);
        qop = challenge.qop;
        strcpy(shared_nonce, challenge.nonce);
        invite(index, challenge.nonce);
        continue;
      }
      if (status != 200) {
        if (of_invite) acknowledge(index, m);
        bad++;
        last_bad = status;
      } else if (of_invite) {
        if (c->state != INVITED) continue;
        note(&set_up, now - c->began);
        c->state = ENDING;
        hang_up(index, m);
        continue;
      } else {
        if (c->state != ENDING) continue;
        ok++;
        last = now;
        note(&ended, now - c->began);
      }
      c->state = FREE;
      idle[idle_count++] = index;
    }
    now = now_us();
    if (now - scanned > 50000) {
      scanned = now;
      for (int i = 0; i < window; i++)
        if (calls[i].state != FREE && now - calls[i].began > 3000000) {
          timed_out++;
          calls[i].state = FREE;
          idle[idle_count++] = i;
        }
    }
  }
  double elapsed = (last - start) / 1e6;
  printf("started=%ld ok=%ld bad=%ld lastbad=%d timeout=%ld ovf=%ld chal=%ld secs=%.3f rate=%.0f p50us=%llu p99us=%llu bye50us=%llu gencpu=%.2f\n",
         started, ok, bad, last_bad, timed_out, overflow, challenged, elapsed, elapsed > 0 ? ok / elapsed : 0, percentile(&set_up, .5),
         percentile(&set_up, .99), percentile(&ended, .5), cpu_seconds());
  return 0;
}
