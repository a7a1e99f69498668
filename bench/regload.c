/* regload: a REGISTER and OPTIONS load generator with a window (closed loop) or a rate (open loop).
 * cc -O2 -Wno-deprecated-declarations -o regload regload.c -lcrypto
 *
 *  -t IP:PORT  target                           -b IP      local address (127.0.0.1)
 *  -d DOMAIN   domain, and realm until a challenge says otherwise (test.local)
 *  -n USERS    how many users (u%08d)           -s FIRST   number of the first
 *  -N COUNT    transactions in all              -D SECONDS hard stop
 *  -w WINDOW   at most so many under way        -r RATE    transactions/s, open loop (0: closed loop)
 *  -m reg|query|unreg|options                   query: without Contact; unreg: Expires 0
 *  -a PASSWORD answer challenges                -A MD5|SHA-256
 *  -R          use the last nonce again, with a count that rises for each nonce and user (preemptive Authorization)
 *  -T MS       give up after (4000)             -x         retransmissions (500 ms, 1 s, 2 s ...)
 *  -p          as a phone: after a 503, a new REGISTER once Retry-After has passed; its latency is from the first
 *  -c CSEQ     each user's first CSeq           -S         users in random order
 *  -o FILE     "user us" of each 200; query: "user 1|0", has a contact or not
 *  -i FILE     take the users (first column) from FILE
 *  -K PGID -k N  kill(-PGID, SIGKILL) after the N-th 200 (-K may be repeated)    -X CMD  run a command then
 *  -C IP:PORT  contact address                  -e EXPIRES
 *  -P PORT     local port (any); phones that come from another one than before have moved, and don't only refresh
 */
#include "sipload.h"

#define BATCH 64
#define ROOM 1600

struct slot {
  int busy, user, sends, challenged;
  unsigned generation, cseq, nc;
  u64 began, asked, again_at, resting_until;
  char nonce[NONCE];
};

enum mode { REG, QUERY, UNREG, OPTIONS };

static struct slot *slots;
static struct account *accounts;
static int window = 64, users = 10000, first_user, local_port, reuse, expires = 3600, qop = 1;
static enum mode mode = REG;
static const char *bind_host = "127.0.0.1", *contact = "127.0.0.1:5999", *domain = "test.local";
static char shared_nonce[NONCE], uri[128];
static unsigned run, first_cseq = 1;

/* Choose what a new request bears; a retransmission must be the same bytes. */
static void prepare(struct slot *s, const char *nonce) {
  struct account *account = &accounts[s->user - first_user];
  s->cseq = first_cseq + account->cseq++;
  s->nonce[0] = 0;
  if (!password) return;
  if (!nonce && reuse) nonce = account->nonce[0] ? account->nonce : shared_nonce;
  if (!nonce || !nonce[0]) return;
  if (strcmp(account->nonce, nonce)) {
    if (nonce != account->nonce) strcpy(account->nonce, nonce);
    account->nc = 0;
  }
  s->nc = ++account->nc;
  strcpy(s->nonce, nonce);
}

static int render(char *out, int index) {
  struct slot *s = &slots[index];
  char user[16];
  int n;
  snprintf(user, sizeof user, "u%08d", s->user);
  if (mode == OPTIONS)
    return snprintf(out, ROOM,
                    "OPTIONS sip:%s SIP/2.0\r\nVia: SIP/2.0/UDP %s:%d;rport;branch=z9hG4bK%06x.%08x.%x\r\nMax-Forwards: 70\r\n"
                    "From: <sip:p@%s>;tag=t%d\r\nTo: <sip:%s>\r\nCall-ID: o%x-%x@g\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n",
                    domain, bind_host, local_port, index, s->generation, run, domain, s->user, domain, index, s->generation);
  n = snprintf(out, ROOM,
               "REGISTER %s SIP/2.0\r\nVia: SIP/2.0/UDP %s:%d;rport;branch=z9hG4bK%06x.%08x.%x\r\nMax-Forwards: 70\r\n"
               "From: <sip:%s@%s>;tag=t%08x\r\nTo: <sip:%s@%s>\r\nCall-ID: c%08d-%d@ua.%s\r\nCSeq: %u REGISTER\r\n",
               uri, bind_host, local_port, index, s->generation, run, user, domain, s->user, user, domain, s->user, mode == QUERY,
               domain, s->cseq);
  if (mode != QUERY)
    n += snprintf(out + n, ROOM - n, "Contact: <sip:%s@%s;transport=udp>\r\nExpires: %d\r\n", user, contact,
                  mode == UNREG ? 0 : expires);
  if (s->nonce[0])
    n += render_credentials(out + n, ROOM - n, "Authorization", &accounts[s->user - first_user], user, s->nonce, s->nc, qop,
                            "REGISTER", uri);
  return n + snprintf(out + n, ROOM - n, "User-Agent: regload/2\r\nContent-Length: 0\r\n\r\n");
}

int main(int argc, char **argv) {
  int option, groups[16], group_count = 0, retransmit = 0, patient = 0, random_order = 0, timeout_ms = 4000;
  long count = 10000, kill_at = 0;
  double seconds = 20, rate = 0;
  char *target = "127.0.0.1:5060", *out_file = NULL, *in_file = NULL, *command = NULL;
  while ((option = getopt(argc, argv, "t:b:d:n:s:N:D:w:r:m:a:A:RT:xpc:So:i:K:k:X:C:e:P:")) > 0) switch (option) {
      case 't': target = optarg; break;
      case 'b': bind_host = optarg; break;
      case 'd': domain = optarg; break;
      case 'n': users = atoi(optarg); break;
      case 's': first_user = atoi(optarg); break;
      case 'N': count = atol(optarg); break;
      case 'D': seconds = atof(optarg); break;
      case 'w': window = atoi(optarg); break;
      case 'r': rate = atof(optarg); break;
      case 'm': mode = optarg[0] == 'q' ? QUERY : optarg[0] == 'u' ? UNREG : optarg[0] == 'o' ? OPTIONS : REG; break;
      case 'a': password = optarg; break;
      case 'A': algorithm = optarg; break;
      case 'R': reuse = 1; break;
      case 'T': timeout_ms = atoi(optarg); break;
      case 'x': retransmit = 1; break;
      case 'p': patient = 1; break;
      case 'c': first_cseq = strtoul(optarg, NULL, 10); break;
      case 'S': random_order = 1; break;
      case 'o': out_file = optarg; break;
      case 'i': in_file = optarg; break;
      case 'K': if (group_count < 16) groups[group_count++] = atoi(optarg); break;
      case 'k': kill_at = atol(optarg); break;
      case 'X': command = optarg; break;
      case 'C': contact = optarg; break;
      case 'e': expires = atoi(optarg); break;
      case 'P': local_port = atoi(optarg); break;
      default: die("see the head of regload.c");
    }
  if (users < 1 || window < 1 || window > 0xffffff || strlen(domain) > 60) die("-n, -w or -d is out of range");
  int *chosen = NULL;
  if (in_file) {
    FILE *f = fopen(in_file, "r");
    char line[128];
    long room = 1 << 16;
    if (!f) die("%s: %s", in_file, strerror(errno));
    chosen = malloc(room * sizeof *chosen);
    for (count = 0; fgets(line, sizeof line, f); count++) {
      if (count == room) chosen = realloc(chosen, (room *= 2) * sizeof *chosen);
      chosen[count] = atoi(line);
      if (chosen[count] < first_user || chosen[count] >= first_user + users) die("%s: user %d is beyond -s and -n", in_file, chosen[count]);
    }
    fclose(f);
  }
  FILE *out = out_file ? fopen(out_file, "w") : NULL;
  if (rate > 0 && window < 16384) window = 16384;
  snprintf(realm, sizeof realm, "%s", domain);
  snprintf(uri, sizeof uri, "sip:%s", domain);

  int fd = udp_socket(bind_host, local_port);
  struct sockaddr_in to = address(target, 5060), local;
  socklen_t size = sizeof local;
  getsockname(fd, (void *)&local, &size);
  local_port = ntohs(local.sin_port);
  if (connect(fd, (void *)&to, sizeof to)) die("connect %s: %s", target, strerror(errno));
  run = getpid() & 0xffff;
  slots = calloc(window, sizeof *slots);
  accounts = calloc(users, sizeof *accounts);
  int *idle = malloc(window * sizeof *idle), idle_count = 0, *pending = malloc((window + BATCH) * sizeof *pending), pending_count = 0;
  for (int i = 0; i < window; i++) idle[idle_count++] = window - 1 - i;

  static char sent[BATCH][ROOM], got[BATCH][4096];
  static struct mmsghdr to_send[BATCH], to_get[BATCH];
  static struct iovec send_vector[BATCH], get_vector[BATCH];
  for (int i = 0; i < BATCH; i++) {
    send_vector[i].iov_base = sent[i];
    to_send[i].msg_hdr.msg_iov = &send_vector[i];
    get_vector[i] = (struct iovec){got[i], sizeof got[i] - 1};
    to_get[i].msg_hdr.msg_iov = &get_vector[i];
    to_send[i].msg_hdr.msg_iovlen = to_get[i].msg_hdr.msg_iovlen = 1;
  }

  static struct histogram latency;
  long started = 0, ok = 0, bad = 0, timed_out = 0, refused = 0, overflow = 0, challenged = 0, retransmitted = 0, with = 0, without = 0, errors = 0;
  int last_bad = 0, stopping = 0;
  unsigned lcg = 12345;
  u64 start = now_us(), scanned = start, last = start, deadline = start + seconds * 1e6, killed = 0;
  for (;;) {
    u64 now = now_us();
    stopping |= now > deadline;
    if (stopping && now > deadline + timeout_ms * 1000ULL) break;
    while (!stopping && started < count && pending_count < BATCH) {
      if (rate > 0 && started >= (now - start) * rate / 1e6) break;
      if (!idle_count) {
        if (rate <= 0) break;
        overflow++, started++;
        continue;
      }
      struct slot *s = &slots[idle[--idle_count]];
      *s = (struct slot){.busy = 1, .generation = s->generation + 1};
      if (random_order) lcg = lcg * 1664525u + 1013904223u;
      s->user = chosen ? chosen[started] : first_user + (int)(random_order ? (lcg >> 4) % users : started % users);
      prepare(s, NULL);
      pending[pending_count++] = s - slots;
      started++;
    }
    if (pending_count) {
      int n = pending_count < BATCH ? pending_count : BATCH;
      for (int i = 0; i < n; i++) send_vector[i].iov_len = render(sent[i], pending[i]);
      now = now_us();
      int done = sendmmsg(fd, to_send, n, 0);
      if (done < 0) {
        if (++errors > 2000000) break;
        done = 0;
      }
      for (int i = 0; i < done; i++) {
        struct slot *s = &slots[pending[i]];
        if (!s->began) s->began = now;
        if (!s->asked) s->asked = now;
        s->again_at = now + 500000;
        s->sends = 1;
      }
      memmove(pending, pending + done, (pending_count - done) * sizeof *pending);
      pending_count -= done;
    }
    int n = recvmmsg(fd, to_get, BATCH, MSG_DONTWAIT, NULL);
    now = now_us();
    if (n <= 0) {
      if ((started >= count || stopping) && idle_count == window) break;
      if (!pending_count) {
        double wait = 1000;  /* microseconds */
        if (rate > 0 && started < count && !stopping) {
          wait = started * 1e6 / rate - (now - start);
          wait = wait < 10 ? 10 : wait > 1000 ? 1000 : wait;
        }
        struct timespec t = {0, wait * 1000};
        struct pollfd p = {fd, POLLIN, 0};
        ppoll(&p, 1, &t, NULL);
      }
    }
    for (int i = 0; i < n; i++) {
      char *m = got[i], *branch;
      unsigned index, generation, of;
      m[to_get[i].msg_len] = 0;
      int status = strncmp(m, "SIP/2.0 ", 8) ? 0 : atoi(m + 8);
      if (status < 200 || !(branch = strstr(m, "branch=z9hG4bK"))) continue;
      if (sscanf(branch + 14, "%6x.%8x.%x", &index, &generation, &of) != 3 || of != run || index >= (unsigned)window) continue;
      struct slot *s = &slots[index];
      if (!s->busy || s->generation != generation || !s->asked) continue;
      struct challenge c;
      if ((status == 401 || status == 407) && password && !s->challenged && read_challenge(m, status, &c)) {
        challenged++;
        s->challenged = 1;
        s->generation++;
        snprintf(realm, sizeof realm, "%s", c.realm);
        qop = c.qop;
        strcpy(shared_nonce, c.nonce);
        prepare(s, c.nonce);
        pending[pending_count++] = index;
        continue;
      }
      if (status == 503 && patient) {
        int length;
        const char *value = header(m, "Retry-After", &length);
        refused++;
        s->generation++;
        s->asked = s->challenged = 0;
        s->resting_until = now + (value ? atoi(value) : 5) * 1000000ULL;
        continue;
      }
      if (status == 200 || (mode == OPTIONS && status < 500)) {
        ok++;
        last = now;
        note(&latency, now - s->began);
        int has = strstr(m, "\r\nContact:") != NULL;
        if (mode == QUERY) with += has, without += !has;
        if (out) fprintf(out, "%d %llu\n", s->user, mode == QUERY ? (u64)has : now - start);
        if (kill_at && ok == kill_at) {
          if (command && system(command)) fprintf(stderr, "%s failed\n", command);
          for (int g = 0; g < group_count; g++) kill(-groups[g], SIGKILL);
          killed = now;
          deadline = now + 50000;
        }
      } else {
        bad++;
        last_bad = status;
      }
      s->busy = 0;
      idle[idle_count++] = index;
    }
    if (now - scanned > 20000) {
      scanned = now;
      for (int i = 0; i < window; i++) {
        struct slot *s = &slots[i];
        if (s->resting_until && now >= s->resting_until) {
          s->resting_until = 0;
          prepare(s, NULL);
          pending[pending_count++] = i;
        }
        if (!s->busy || !s->asked) continue;
        if (now - s->asked > timeout_ms * 1000ULL) {
          timed_out++;
          s->busy = 0;
          idle[idle_count++] = i;
        } else if (retransmit && now > s->again_at) {
          char again[ROOM];
          retransmitted++;
          if (send(fd, again, render(again, i), MSG_DONTWAIT) < 0) errors++;
          s->again_at = now + (500000ULL << (s->sends < 3 ? s->sends : 3));
          s->sends++;
        }
      }
    }
  }
  double elapsed = (last - start) / 1e6;
  printf("started=%ld ok=%ld bad=%ld lastbad=%d timeout=%ld ovf=%ld chal=%ld rtx=%ld refused=%ld senderr=%ld have=%ld miss=%ld secs=%.3f rate=%.0f "
         "p50us=%llu p90us=%llu p99us=%llu p999us=%llu maxus=%llu meanus=%.0f gencpu=%.2f killat_us=%llu\n",
         started, ok, bad, last_bad, timed_out, overflow, challenged, retransmitted, refused, errors, with, without, elapsed,
         elapsed > 0 ? ok / elapsed : 0, percentile(&latency, .5), percentile(&latency, .9), percentile(&latency, .99),
         percentile(&latency, .999), latency.max, latency.n ? latency.sum / latency.n : 0, cpu_seconds(), killed ? killed - start : 0);
  if (out) fclose(out);
  return 0;
}
