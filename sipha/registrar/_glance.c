/* The REGISTERs of most phones, read at a glance: what `sipha.registrar.plain` does by its pattern, which is the
 * reference, in one pass over the bytes.
 *
 * The names of the functions are those of the pattern's parts. Each takes what it names, and returns false if that isn't
 * there. Nothing is tried twice: after each part one character tells what comes next, as in the pattern. No place is read
 * before it is seen that it lies before the end. What may hold bytes that aren't ASCII ends at one that is, so that a part
 * decodes to what it is in the whole datagram.
 */

#include "../kernel.h"

#include <string.h>

#define LONGEST 4096      /* bytes of a datagram, as in plain.py: so no credentials are too long */
#define LONGEST_HOST 64   /* bytes of an address that a datagram came from */
#define HIGHEST_PORT 65535
#define DEFAULT_PORT 5060
#define MOST_PARAMS 16

typedef unsigned char byte;

/* Bytes of the datagram; `at` is NULL if what they would be isn't there. */
typedef struct {
    const byte *at;
    Py_ssize_t size;
} Span;

/* What is still to be read. */
typedef struct {
    const byte *at, *end;
} Rest;

/* What the lines say; a port or a number that isn't there is -1. */
typedef struct {
    Span uri;
    Span via, via_host, before_rport, after_rport;
    long via_port;
    Span from, sender, to, aor, call_id, cseq_text;
    long cseq;
    Span authorization, username, realm, nonce, digest_uri, response, algorithm, cnonce, nc;
    Span contact, contact_host, contact_params, instance;
    long contact_port, contact_expires, expires;
    Span user_agent, allow;
} Register;

/* -- characters --------------------------------------------------------------------------------------------------- */

typedef bool (*Class)(byte);

static inline bool is_digit(byte c) { return c >= '0' && c <= '9'; }

static inline bool is_letter(byte c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

static inline bool is_token(byte c)
{
    switch (c) {
    case '0' ... '9': case 'A' ... 'Z': case 'a' ... 'z':
    case '-': case '.': case '!': case '%': case '*': case '_': case '+': case '`': case '\'': case '~':
        return true;
    default:
        return false;
    }
}

static inline bool is_user(byte c)
{
    switch (c) {
    case '0' ... '9': case 'A' ... 'Z': case 'a' ... 'z': case '-': case '_': case '.': case '+':
        return true;
    default:
        return false;
    }
}

static inline bool is_host(byte c)
{
    switch (c) {
    case '0' ... '9': case 'A' ... 'Z': case 'a' ... 'z': case '-': case '.':
        return true;
    default:
        return false;
    }
}

static inline bool is_param(byte c)
{
    switch (c) {
    case '0' ... '9': case 'A' ... 'Z': case 'a' ... 'z': case '-': case '_': case '.':
        return true;
    default:
        return false;
    }
}

static inline bool is_address(byte c) /* of IPv6 */
{
    switch (c) {
    case '0' ... '9': case 'A' ... 'F': case 'a' ... 'f': case ':': case '.':
        return true;
    default:
        return false;
    }
}

static inline bool is_algorithm(byte c)
{
    switch (c) {
    case '0' ... '9': case 'A' ... 'Z': case 'a' ... 'z': case '-':
        return true;
    default:
        return false;
    }
}

static inline bool is_via_value(byte c)
{
    switch (c) {
    case ' ': case '\t': case '\n': case '\r': case '\f': case '\v': case ';': case ',': case '"': case '<': case '>':
        return false;
    default:
        return true;
    }
}

static inline bool is_hex(byte c) { return is_digit(c) || (c >= 'a' && c <= 'f'); }

static inline bool is_graphic(byte c) { return c >= '!' && c <= '~'; }

static inline bool is_printable(byte c) { return c >= ' ' && c <= '~'; }

static inline bool is_instance(byte c) { return is_printable(c) && c != '"' && c != '\\'; }

static inline bool is_quoted(byte c) { return c != '"' && c != '\\' && c != '\r' && c != '\n'; }

/* -- parts -------------------------------------------------------------------------------------------------------- */

static inline Py_ssize_t left(const Rest *rest) { return rest->end - rest->at; }

/* Take all characters of a class that come next, perhaps none. */
static inline __attribute__((always_inline)) Span run(Rest *rest, Class is)
{
    Span span = {rest->at, 0};
    const byte *at = rest->at, *end = rest->end;
    while (at < end && is(*at))
        at++;
    rest->at = at;
    span.size = at - span.at;
    return span;
}

static inline __attribute__((always_inline)) bool some(Rest *rest, Class is, Span *span)
{
    *span = run(rest, is);
    return span->size > 0;
}

static inline bool character(Rest *rest, byte c)
{
    if (rest->at == rest->end || *rest->at != c)
        return false;
    rest->at++;
    return true;
}

static inline __attribute__((always_inline)) bool words(Rest *rest, const char *text, Py_ssize_t size)
{
    if (left(rest) < size || memcmp(rest->at, text, (size_t)size) != 0)
        return false;
    rest->at += size;
    return true;
}

#define WORDS(rest, text) words(rest, "" text, sizeof(text) - 1)

/* A number of 1 to `most` digits, at most 9. */
static inline bool number(Rest *rest, Py_ssize_t most, long *value)
{
    Span digits = run(rest, is_digit);
    if (digits.size < 1 || digits.size > most)
        return false;
    *value = 0;
    for (Py_ssize_t i = 0; i < digits.size; i++)
        *value = *value * 10 + (digits.at[i] - '0');
    return true;
}

/* A colon and a port, if there is a colon. */
static inline bool port(Rest *rest, Py_ssize_t most, long *value)
{
    *value = -1;
    if (!character(rest, ':'))
        return true;
    return rest->at != rest->end && *rest->at != '0' && number(rest, most, value) && *value <= HIGHEST_PORT;
}

static bool host_port(Rest *rest, Span *host, long *value)
{
    if (rest->at != rest->end && *rest->at == '[') {
        Span inside;
        host->at = rest->at++;
        if (!some(rest, is_address, &inside) || !character(rest, ']'))
            return false;
        host->size = rest->at - host->at;
    }
    else if (!some(rest, is_host, host))
        return false;
    return port(rest, 5, value);
}

static bool quoted(Rest *rest, Span *inside)
{
    if (!character(rest, '"'))
        return false;
    *inside = run(rest, is_quoted);
    return character(rest, '"');
}

static bool display(Rest *rest)
{
    Span inside;
    if (rest->at == rest->end || *rest->at != '"')
        return true;
    if (!quoted(rest, &inside))
        return false;
    (void)character(rest, ' ');
    return true;
}

static bool aor(Rest *rest, Span *uri)
{
    Span part;
    uri->at = rest->at;
    if (!WORDS(rest, "sip:") || !some(rest, is_user, &part) || !character(rest, '@') || !some(rest, is_host, &part))
        return false;
    uri->size = rest->at - uri->at;
    return true;
}

/* A display name, if there is one, and an AOR in angle brackets. */
static bool named_aor(Rest *rest, Span *uri)
{
    return display(rest) && character(rest, '<') && aor(rest, uri) && character(rest, '>');
}

static bool request_uri(Rest *rest, Span *uri)
{
    Span part;
    long number;
    uri->at = rest->at;
    if (!WORDS(rest, "sip:") || !some(rest, is_host, &part) || part.size > 250 || !port(rest, 4, &number))
        return false;
    if (WORDS(rest, ";transport=") && (!some(rest, is_letter, &part) || part.size > 8))
        return false;
    uri->size = rest->at - uri->at;
    return true;
}

/* -- lines, without their names ----------------------------------------------------------------------------------- */

/* "received" may not stand anywhere in the parameters, in upper case or lower. */
static bool has_received(Span params)
{
    static const char RECEIVED[] = "received";
    const Py_ssize_t size = sizeof(RECEIVED) - 1;
    for (Py_ssize_t i = 0; i + size <= params.size; i++) {
        Py_ssize_t same = 0;
        while (same < size && (params.at[i + same] | 0x20) == RECEIVED[same])
            same++;
        if (same == size)
            return true;
    }
    return false;
}

/* The first ";rport" stands by itself. */
static bool find_rport(Span params, Register *plain)
{
    static const char RPORT[] = ";rport";
    const Py_ssize_t size = sizeof(RPORT) - 1;
    const byte *found = memmem(params.at, (size_t)params.size, RPORT, (size_t)size);
    if (found == NULL)
        return false;
    plain->before_rport = (Span){params.at, found - params.at};
    plain->after_rport = (Span){found + size, params.at + params.size - (found + size)};
    return (plain->after_rport.size == 0 || *plain->after_rport.at == ';') && !has_received(params);
}

static bool via(Rest *rest, Register *plain)
{
    Span part, params;
    if (!WORDS(rest, "SIP/2.0/UDP "))
        return false;
    plain->via.at = rest->at;
    if (!host_port(rest, &plain->via_host, &plain->via_port))
        return false;
    plain->via.size = rest->at - plain->via.at;
    params.at = rest->at;
    for (int count = 0; character(rest, ';'); count++) {
        if (count == MOST_PARAMS || !some(rest, is_token, &part))
            return false;
        if (character(rest, '='))
            (void)run(rest, is_via_value);
    }
    params.size = rest->at - params.at;
    return find_rport(params, plain);
}

static bool from(Rest *rest, Register *plain)
{
    Span tag;
    plain->from.at = rest->at;
    if (!named_aor(rest, &plain->sender) || !WORDS(rest, ";tag=") || !some(rest, is_token, &tag))
        return false;
    plain->from.size = rest->at - plain->from.at;
    return true;
}

static bool to(Rest *rest, Register *plain)
{
    plain->to.at = rest->at;
    if (!named_aor(rest, &plain->aor))
        return false;
    plain->to.size = rest->at - plain->to.at;
    return true;
}

static bool cseq(Rest *rest, Register *plain)
{
    plain->cseq_text.at = rest->at;
    if (!number(rest, 9, &plain->cseq))
        return false;
    plain->cseq_text.size = rest->at - plain->cseq_text.at;
    return WORDS(rest, " REGISTER");
}

static bool has_equals(Span span) { return memchr(span.at, '=', (size_t)span.size) != NULL; }

static bool is(Span span, const char *text)
{
    return span.size == (Py_ssize_t)strlen(text) && memcmp(span.at, text, (size_t)span.size) == 0;
}

static bool is_known(Span algorithm)
{
    return is(algorithm, "MD5") || is(algorithm, "MD5-sess") || is(algorithm, "SHA-256") || is(algorithm, "SHA-256-sess")
        || is(algorithm, "SHA-512-256") || is(algorithm, "SHA-512-256-sess");
}

/* One parameter of the credentials, which didn't come before, and isn't empty. */
static bool credential(Rest *rest, Register *plain, bool *has_qop)
{
    Span *span, before;
    bool taken;
    if (WORDS(rest, "username=")) {
        before = *(span = &plain->username);
        taken = quoted(rest, span);
    }
    else if (WORDS(rest, "realm=")) {
        before = *(span = &plain->realm);
        taken = quoted(rest, span);
    }
    else if (WORDS(rest, "nonce=")) {
        before = *(span = &plain->nonce);
        taken = quoted(rest, span);
    }
    else if (WORDS(rest, "uri=")) {
        before = *(span = &plain->digest_uri);
        taken = quoted(rest, span);
    }
    else if (WORDS(rest, "response=\"")) {
        before = *(span = &plain->response);
        taken = some(rest, is_hex, span) && character(rest, '"');
    }
    else if (WORDS(rest, "algorithm=")) {
        before = *(span = &plain->algorithm);
        taken = some(rest, is_algorithm, span) && is_known(*span);
    }
    else if (WORDS(rest, "cnonce=")) {
        before = *(span = &plain->cnonce);
        taken = quoted(rest, span);
    }
    else if (WORDS(rest, "nc=")) {
        before = *(span = &plain->nc);
        taken = some(rest, is_hex, span) && span->size <= 8;
    }
    else if (WORDS(rest, "qop=")) {
        bool twice = *has_qop;
        *has_qop = true;
        return !twice && (WORDS(rest, "\"auth\"") || WORDS(rest, "auth"));
    }
    else
        return false;
    return taken && before.at == NULL && span->size > 0;
}

static bool authorization(Rest *rest, Register *plain)
{
    bool has_qop = false;
    int count = 0;
    plain->authorization.at = rest->at;
    if (!WORDS(rest, "Digest "))
        return false;
    while (rest->at != rest->end && *rest->at != '\r') {
        if (!credential(rest, plain, &has_qop))
            return false;
        count++;
        if (character(rest, ','))
            (void)character(rest, ' ');
        else if (rest->at == rest->end || *rest->at != '\r')
            return false;
    }
    plain->authorization.size = rest->at - plain->authorization.at;
    if (plain->algorithm.at != NULL)
        return count == 9;
    /* Without an algorithm the reference counts the equals signs, to see that nothing comes twice. */
    return count == 8 && !has_equals(plain->username) && !has_equals(plain->realm) && !has_equals(plain->nonce)
        && !has_equals(plain->cnonce);
}

static bool contact(Rest *rest, Register *plain)
{
    Span part, uri;
    if (!display(rest) || !character(rest, '<'))
        return false;
    uri.at = rest->at;
    if (!WORDS(rest, "sip:"))
        return false;
    Rest user = *rest;
    if (some(&user, is_user, &part) && character(&user, '@'))
        *rest = user;
    if (!host_port(rest, &plain->contact_host, &plain->contact_port))
        return false;
    plain->contact_params.at = rest->at;
    for (int count = 0; character(rest, ';'); count++) {
        if (count == MOST_PARAMS || !some(rest, is_param, &part))
            return false;
        if (character(rest, '=') && !some(rest, is_param, &part))
            return false;
    }
    plain->contact_params.size = rest->at - plain->contact_params.at;
    uri.size = rest->at - uri.at;
    /* The default port is the transport's, which is among the parameters. */
    if (!character(rest, '>') || (plain->contact_port < 0 && plain->contact_params.size > 0))
        return false;
    if (WORDS(rest, ";expires=") && !number(rest, 9, &plain->contact_expires))
        return false;
    if (WORDS(rest, ";+sip.instance=\"")) {
        plain->instance = run(rest, is_instance);
        if (!character(rest, '"'))
            return false;
    }
    plain->contact = uri;
    return true;
}

/* -- the whole ---------------------------------------------------------------------------------------------------- */

enum {
    VIA = 1 << 0, FROM = 1 << 1, TO = 1 << 2, CALL_ID = 1 << 3, CSEQ = 1 << 4, CONTACT = 1 << 5, AUTHORIZATION = 1 << 6,
    EXPIRES = 1 << 7, USER_AGENT = 1 << 8, ALLOW = 1 << 9, MAX_FORWARDS = 1 << 10, SUPPORTED = 1 << 11,
    ALLOW_EVENTS = 1 << 12, ROUTE = 1 << 13, CONTENT_LENGTH = 1 << 14,
};
#define NEEDED (VIA | FROM | TO | CALL_ID | CSEQ | CONTACT)

/* One line with its name but without its end; returns which it is, 0 if none that is plain. */
static int line(Rest *rest, Register *plain)
{
    Span text;
    if (rest->at == rest->end)
        return 0;
    switch (*rest->at) {
    case 'V':
        return WORDS(rest, "Via: ") && via(rest, plain) ? VIA : 0;
    case 'F':
        return WORDS(rest, "From: ") && from(rest, plain) ? FROM : 0;
    case 'T':
        return WORDS(rest, "To: ") && to(rest, plain) ? TO : 0;
    case 'C':
        if (WORDS(rest, "Call-ID: "))
            return some(rest, is_graphic, &plain->call_id) && plain->call_id.size <= 256 ? CALL_ID : 0;
        if (WORDS(rest, "CSeq: "))
            return cseq(rest, plain) ? CSEQ : 0;
        if (WORDS(rest, "Contact: "))
            return contact(rest, plain) ? CONTACT : 0;
        if (!WORDS(rest, "Content-Length: "))
            return 0;
        (void)character(rest, ' ');
        return character(rest, '0') ? CONTENT_LENGTH : 0;
    case 'A':
        if (WORDS(rest, "Authorization: "))
            return authorization(rest, plain) ? AUTHORIZATION : 0;
        if (WORDS(rest, "Allow: ")) {
            plain->allow = run(rest, is_printable);
            return ALLOW;
        }
        if (!WORDS(rest, "Allow-Events: "))
            return 0;
        (void)run(rest, is_printable);
        return ALLOW_EVENTS;
    case 'E':
        return WORDS(rest, "Expires: ") && number(rest, 9, &plain->expires) ? EXPIRES : 0;
    case 'U':
        if (!WORDS(rest, "User-Agent: "))
            return 0;
        plain->user_agent = run(rest, is_printable);
        return USER_AGENT;
    case 'M':
        return WORDS(rest, "Max-Forwards: ") && some(rest, is_digit, &text) ? MAX_FORWARDS : 0;
    case 'S':
        if (!WORDS(rest, "Supported: "))
            return 0;
        (void)run(rest, is_printable);
        return SUPPORTED;
    case 'R':
        if (!WORDS(rest, "Route: "))
            return 0;
        (void)run(rest, is_printable);
        return ROUTE;
    default:
        return 0;
    }
}

static bool same(Span one, Span other)
{
    return one.size == other.size && memcmp(one.at, other.at, (size_t)one.size) == 0;
}

static bool plain_register(Rest *rest, Register *plain)
{
    int found = 0;
    if (!WORDS(rest, "REGISTER ") || !request_uri(rest, &plain->uri) || !WORDS(rest, " SIP/2.0\r\n"))
        return false;
    while (!WORDS(rest, "\r\n")) {
        int each = line(rest, plain);
        if (each == 0 || found & each || !WORDS(rest, "\r\n"))
            return false;
        found |= each;
    }
    if (rest->at != rest->end || (found & NEEDED) != NEEDED || !same(plain->sender, plain->aor))
        return false;
    return !(found & AUTHORIZATION) || same(plain->digest_uri, plain->uri);
}

/* -- objects ------------------------------------------------------------------------------------------------------ */

enum { PLAIN, ORIGIN, CREDENTIALS, MD5, QOP, EMPTY };
enum { PLAIN_FIELDS = 13, ORIGIN_FIELDS = 6, CREDENTIALS_FIELDS = 9 };

static PyObject *text(Span span)
{
    return PyUnicode_DecodeUTF8((const char *)span.at, span.size, "surrogateescape");
}

static PyObject *text_or(Span span, PyObject *otherwise)
{
    return span.at == NULL ? Py_NewRef(otherwise) : text(span);
}

/* Where a datagram came from, as it was told, and as text and number. */
typedef struct {
    PyObject *host, *port;
    Span host_text;
    long number;
} Source;

/* A host in lower case, if need be; that which the datagram came from is there already. */
static PyObject *host_text(Span host, bool lower, const Source *source)
{
    byte folded[LONGEST];
    if (lower) {
        for (Py_ssize_t i = 0; i < host.size; i++)
            folded[i] = host.at[i] >= 'A' && host.at[i] <= 'Z' ? host.at[i] | 0x20 : host.at[i];
        host.at = folded;
    }
    return same(host, source->host_text) ? Py_NewRef(source->host) : text(host);
}

static PyObject *port_number(long number, const Source *source)
{
    if (number < 0)
        number = DEFAULT_PORT;
    return number == source->number ? Py_NewRef(source->port) : PyLong_FromLong(number);
}

static PyObject *contacts(const Register *plain, const Source *source)
{
    PyObject *address = PyTuple_New(2);
    address = filled(
        address,
        address != NULL
            && put(address, 0, host_text(plain->contact_host, true, source))
            && put(address, 1, port_number(plain->contact_port, source)));
    if (address == NULL)
        return NULL;
    PyObject *only = PyTuple_Pack(1, address);
    Py_DECREF(address);
    return only;
}

static PyObject *origin(const Register *plain, PyObject *bound, const Source *source)
{
    PyObject *tuple = blank(PyTuple_GET_ITEM(bound, ORIGIN), ORIGIN_FIELDS);
    return filled(
        tuple,
        tuple != NULL
            && put(tuple, 0, host_text(plain->via_host, false, source))
            && put(tuple, 1, port_number(plain->via_port, source))
            && put(tuple, 2, Py_NewRef(Py_True))
            && put(tuple, 3, contacts(plain, source))
            && put(tuple, 4, Py_NewRef(Py_True))
            && put(tuple, 5, PyTuple_New(0)));
}

static PyObject *algorithm(const Register *plain, PyObject *bound)
{
    if (plain->algorithm.at == NULL || is(plain->algorithm, "MD5"))
        return Py_NewRef(PyTuple_GET_ITEM(bound, MD5));
    return text(plain->algorithm);
}

static PyObject *credentials(const Register *plain, PyObject *bound, PyObject *uri)
{
    if (plain->authorization.at == NULL)
        return Py_NewRef(Py_None);
    PyObject *tuple = blank(PyTuple_GET_ITEM(bound, CREDENTIALS), CREDENTIALS_FIELDS);
    return filled(
        tuple,
        tuple != NULL
            && put(tuple, 0, text(plain->username))
            && put(tuple, 1, text(plain->realm))
            && put(tuple, 2, text(plain->nonce))
            && put(tuple, 3, Py_NewRef(uri))
            && put(tuple, 4, text(plain->response))
            && put(tuple, 5, algorithm(plain, bound))
            && put(tuple, 6, Py_NewRef(PyTuple_GET_ITEM(bound, QOP)))
            && put(tuple, 7, text(plain->cnonce))
            && put(tuple, 8, text(plain->nc)));
}

/* What is to be written, and where; there is room for all that a datagram can make it. */
typedef struct {
    byte text[2 * LONGEST];
    Py_ssize_t size;
} Text;

static void add(Text *text, const void *at, Py_ssize_t size)
{
    memcpy(text->text + text->size, at, (size_t)size);
    text->size += size;
}

#define ADD_WORDS(to, words) add(to, words, sizeof(words) - 1)
#define ADD_SPAN(to, span) add(to, (span).at, (span).size)

static PyObject *head(const Register *plain, const Source *source)
{
    char number[8];
    Text head;
    head.size = 0;
    ADD_WORDS(&head, "Via: SIP/2.0/UDP ");
    ADD_SPAN(&head, plain->via);
    ADD_SPAN(&head, plain->before_rport);
    ADD_WORDS(&head, ";rport=");
    add(&head, number, PyOS_snprintf(number, sizeof(number), "%ld", source->number));
    ADD_SPAN(&head, plain->after_rport);
    ADD_WORDS(&head, ";received=");
    ADD_SPAN(&head, source->host_text);
    ADD_WORDS(&head, "\r\nFrom: ");
    ADD_SPAN(&head, plain->from);
    ADD_WORDS(&head, "\r\nCall-ID: ");
    ADD_SPAN(&head, plain->call_id);
    ADD_WORDS(&head, "\r\nCSeq: ");
    ADD_SPAN(&head, plain->cseq_text);
    ADD_WORDS(&head, " REGISTER\r\n");
    return text((Span){head.text, head.size});
}

static PyObject *stripped(Span span, PyObject *otherwise)
{
    if (span.at == NULL)
        return Py_NewRef(otherwise);
    while (span.size > 0 && *span.at == ' ') {
        span.at++;
        span.size--;
    }
    while (span.size > 0 && span.at[span.size - 1] == ' ')
        span.size--;
    return text(span);
}

static PyObject *without_spaces(Span span, PyObject *otherwise)
{
    byte kept[LONGEST];
    Py_ssize_t size = 0;
    if (span.at == NULL)
        return Py_NewRef(otherwise);
    for (Py_ssize_t i = 0; i < span.size; i++)
        if (span.at[i] != ' ')
            kept[size++] = span.at[i];
    return text((Span){kept, size});
}

static PyObject *seconds(const Register *plain)
{
    long expires = plain->contact_expires >= 0 ? plain->contact_expires : plain->expires;
    return expires < 0 ? Py_NewRef(Py_None) : PyLong_FromLong(expires);
}

static PyObject *objects(const Register *plain, PyObject *bound, const Source *source)
{
    PyObject *empty = PyTuple_GET_ITEM(bound, EMPTY);
    PyObject *tuple = blank(PyTuple_GET_ITEM(bound, PLAIN), PLAIN_FIELDS);
    return filled(
        tuple,
        tuple != NULL
            && put(tuple, 0, text(plain->uri))
            && put(tuple, 1, head(plain, source))
            && put(tuple, 2, text(plain->to))
            && put(tuple, 3, text(plain->aor))
            && put(tuple, 4, text(plain->call_id))
            && put(tuple, 5, PyLong_FromLong(plain->cseq))
            && put(tuple, 6, text(plain->contact))
            && put(tuple, 7, seconds(plain))
            && put(tuple, 8, text_or(plain->instance, empty))
            && put(tuple, 9, stripped(plain->user_agent, empty))
            && put(tuple, 10, without_spaces(plain->allow, empty))
            && put(tuple, 11, origin(plain, bound, source))
            && put(tuple, 12, credentials(plain, bound, PyTuple_GET_ITEM(tuple, 0))));
}

static PyObject *glance(PyObject *bound, PyObject *const *args, Py_ssize_t count)
{
    Source source;
    if (count != 3 || !PyBytes_Check(args[0]) || !PyUnicode_Check(args[1]) || !PyLong_Check(args[2])) {
        PyErr_SetString(PyExc_TypeError, "a datagram, a host and a port are needed");
        return NULL;
    }
    Py_ssize_t size = PyBytes_GET_SIZE(args[0]);
    if (size >= LONGEST)
        Py_RETURN_NONE;
    source.host = args[1];
    source.host_text.at = (const byte *)PyUnicode_AsUTF8AndSize(args[1], &source.host_text.size);
    if (source.host_text.at == NULL)
        return NULL;
    source.port = args[2];
    source.number = PyLong_AsLong(args[2]);
    if (source.number == -1 && PyErr_Occurred())
        return NULL;
    if (source.number < 0 || source.number > HIGHEST_PORT || source.host_text.size > LONGEST_HOST) {
        PyErr_SetString(PyExc_ValueError, "no datagram comes from there");
        return NULL;
    }
    const byte *data = (const byte *)PyBytes_AS_STRING(args[0]);
    Rest rest = {data, data + size};
    Register plain;
    memset(&plain, 0, sizeof(plain));
    plain.contact_expires = plain.expires = -1;
    if (!plain_register(&rest, &plain))
        Py_RETURN_NONE;
    return objects(&plain, bound, &source);
}

/* -- the module --------------------------------------------------------------------------------------------------- */

static PyMethodDef READ = {
    "read", (PyCFunction)(void (*)(void))glance, METH_FASTCALL, "Read a datagram that came from a host and port."};

static PyObject *reader(PyObject *Py_UNUSED(module), PyObject *const *types, Py_ssize_t count)
{
    if (count != 3 || !is_named_tuple(types[PLAIN], PLAIN_FIELDS) || !is_named_tuple(types[ORIGIN], ORIGIN_FIELDS)
        || !is_named_tuple(types[CREDENTIALS], CREDENTIALS_FIELDS)) {
        PyErr_SetString(PyExc_TypeError, "these aren't the classes of what is read");
        return NULL;
    }
    PyObject *bound = Py_BuildValue("(OOOsss)", types[PLAIN], types[ORIGIN], types[CREDENTIALS], "MD5", "auth", "");
    if (bound == NULL)
        return NULL;
    PyObject *function = PyCFunction_New(&READ, bound);
    Py_DECREF(bound);
    return function;
}

static PyMethodDef METHODS[] = {
    {"reader", (PyCFunction)(void (*)(void))reader, METH_FASTCALL,
     "Return what reads a plain REGISTER into these classes: Plain, Origin and Credentials."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot SLOTS[] = {{0, NULL}};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT,
    .m_name = "sipha.registrar._glance",
    .m_doc = "The REGISTERs of most phones, read at a glance.",
    .m_size = 0,
    .m_methods = METHODS,
    .m_slots = SLOTS,
};

PyMODINIT_FUNC PyInit__glance(void) { return PyModuleDef_Init(&MODULE); }
