/* What the load generators share: the clock, latencies, digest authentication (RFC 7616), and headers of a reply. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <openssl/md5.h>
#include <openssl/sha.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

typedef unsigned long long u64;

static u64 now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000ULL + t.tv_nsec / 1000;
}

static double cpu_seconds(void) {
  struct rusage r;
  getrusage(RUSAGE_SELF, &r);
  return r.ru_utime.tv_sec + r.ru_stime.tv_sec + (r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6;
}

static void die(const char *format, ...) {
  va_list args;
  va_start(args, format);
  vfprintf(stderr, format, args);
  va_end(args);
  fputc('\n', stderr);
  exit(2);
}

/* Latencies in microseconds: exact below 2048, then 32 steps an octave. */
#define BUCKETS 4096
struct histogram {
  u64 count[BUCKETS], n, max;
  double sum;
};

static void note(struct histogram *h, u64 us) {
  int b = us;
  if (us >= 2048) {
    int octave = 63 - __builtin_clzll(us);
    b = 2048 + (octave - 11) * 32 + ((us >> (octave - 5)) & 31);
  }
  h->count[b < BUCKETS ? b : BUCKETS - 1]++;
  h->n++;
  h->sum += us;
  if (us > h->max) h->max = us;
}

static u64 percentile(const struct histogram *h, double p) {
  u64 seen = 0, wanted = p * h->n;
  for (int b = 0; b < BUCKETS; b++) {
    seen += h->count[b];
    if (seen > wanted) {
      if (b < 2048) return b;
      int octave = 11 + (b - 2048) / 32;
      return (1ULL << octave) + ((u64)((b - 2048) % 32) << (octave - 5));
    }
  }
  return h->max;
}

static struct sockaddr_in address(const char *text, int default_port) {
  char host[64];
  struct sockaddr_in a = {.sin_family = AF_INET};
  snprintf(host, sizeof host, "%s", text);
  char *colon = strchr(host, ':');
  if (colon) *colon = 0;
  a.sin_port = htons(colon ? atoi(colon + 1) : default_port);
  if (inet_pton(AF_INET, host, &a.sin_addr) != 1) die("%s is not an IPv4 address", text);
  return a;
}

__attribute__((unused)) static int udp_socket(const char *host, int port) {
  struct sockaddr_in a = address(host, 0);
  int fd = socket(AF_INET, SOCK_DGRAM, 0), size = 8 << 20;
  a.sin_port = htons(port);
  if (bind(fd, (void *)&a, sizeof a)) die("bind %s:%d: %s", host, port, strerror(errno));
  if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size)) setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
  if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size)) setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
  return fd;
}

/* -- messages -- */

/* The value of a header (long form, first of its name) with its length, or NULL. */
__attribute__((unused)) static const char *header(const char *message, const char *name, int *length) {
  size_t n = strlen(name);
  for (const char *line = strstr(message, "\r\n"); line; line = strstr(line, "\r\n")) {
    line += 2;
    if (!strncasecmp(line, name, n) && line[n] == ':') {
      const char *value = line + n + 1, *end = strstr(value, "\r\n");
      while (*value == ' ') value++;
      if (!end) return NULL;
      *length = end - value;
      return value;
    }
  }
  return NULL;
}

/* -- digest -- */

#define HEX 65
#define NONCE 96
struct challenge {
  char nonce[NONCE], realm[64];
  int qop;
};

/* What a user knows: its HA1, and the nonce that it may use again with the next count. */
struct account {
  char ha1[HEX], nonce[NONCE];
  unsigned nc, cseq;
};

static const char *algorithm = "MD5", *password = NULL;
static char realm[64] = "test.local";

static void digest(const char *text, size_t length, char *out) {
  static const char digits[] = "0123456789abcdef";
  unsigned char raw[SHA256_DIGEST_LENGTH];
  int size = MD5_DIGEST_LENGTH;
  if (algorithm[0] == 'S') {
    SHA256((const unsigned char *)text, length, raw);
    size = SHA256_DIGEST_LENGTH;
  } else {
    MD5((const unsigned char *)text, length, raw);
  }
  for (int i = 0; i < size; i++) {
    out[2 * i] = digits[raw[i] >> 4];
    out[2 * i + 1] = digits[raw[i] & 15];
  }
  out[2 * size] = 0;
}

static int quoted(const char *field, int length, const char *key, char *out, int room) {
  const char *at = memmem(field, length, key, strlen(key)), *end;
  if (!at || !(end = memchr(at + strlen(key), '"', length - (at + strlen(key) - field)))) return 0;
  at += strlen(key);
  if (end - at >= room) return 0;
  memcpy(out, at, end - at);
  out[end - at] = 0;
  return 1;
}

/* Find the challenge of our algorithm among those of a 401 or 407; one without algorithm is for MD5. */
static int read_challenge(const char *message, int status, struct challenge *c) {
  const char *name = status == 401 ? "\r\nWWW-Authenticate:" : "\r\nProxy-Authenticate:", *field = message;
  while ((field = strcasestr(field, name))) {
    field += strlen(name);
    int length = strcspn(field, "\r");
    const char *a = memmem(field, length, "algorithm=", 10);
    const char *is = a ? a + 10 : "MD5";
    if (strncmp(is, algorithm, strlen(algorithm)) || is[strlen(algorithm)] == '-') continue;
    c->qop = memmem(field, length, "qop=", 4) != NULL;
    return quoted(field, length, " nonce=\"", c->nonce, NONCE) && quoted(field, length, "realm=\"", c->realm, sizeof c->realm);
  }
  return 0;
}

static int render_credentials(char *out, size_t room, const char *field, struct account *account, const char *user,
                              const char *nonce, unsigned nc, int qop, const char *method, const char *uri) {
  static char ha2[HEX], ha2_of[512];
  char text[512], response[HEX];
  if (!account->ha1[0]) digest(text, snprintf(text, sizeof text, "%s:%s:%s", user, realm, password), account->ha1);
  snprintf(text, sizeof text, "%s:%s", method, uri);
  if (strcmp(text, ha2_of)) {
    snprintf(ha2_of, sizeof ha2_of, "%s", text);
    digest(text, strlen(text), ha2);
  }
  if (qop)
    digest(text, snprintf(text, sizeof text, "%s:%s:%08x:0a4f113b:auth:%s", account->ha1, nonce, nc, ha2), response);
  else
    digest(text, snprintf(text, sizeof text, "%s:%s:%s", account->ha1, nonce, ha2), response);
  int n = snprintf(out, room,
                   "%s: Digest username=\"%s\", realm=\"%s\", nonce=\"%s\", uri=\"%s\", response=\"%s\", algorithm=%s", field, user,
                   realm, nonce, uri, response, algorithm);
  if (qop) n += snprintf(out + n, room - n, ", qop=auth, nc=%08x, cnonce=\"0a4f113b\"", nc);
  return n + snprintf(out + n, room - n, "\r\n");
}
