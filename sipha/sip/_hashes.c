/* The hashes of a REGISTER, without what a general library does around them: MD5 for who proves that he knows a password
 * (RFC 1321, RFC 7616), keyed BLAKE2s for tokens (RFC 7693). `sipha.sip.digest` and `sipha.sip.token` do the same by
 * hashlib, which is the reference.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 64 /* bytes, of both */

typedef unsigned char byte;

static inline uint32_t load(const byte *at)
{
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

/* The words as hexadecimal digits, the first byte of each first, as far as there is room for them. */
static void to_hex(const uint32_t *words, char *hex, Py_ssize_t size)
{
    static const char DIGITS[] = "0123456789abcdef";
    for (Py_ssize_t i = 0; i < size / 2; i++) {
        byte value = (byte)(words[i / 4] >> 8 * (i % 4));
        hex[2 * i] = DIGITS[value >> 4];
        hex[2 * i + 1] = DIGITS[value & 0xf];
    }
}

/* The bytes of a text as they came, for which it was decoded with surrogateescape: `kept` is to be released then. */
static const byte *bytes_of(PyObject *text, Py_ssize_t *size, PyObject **kept)
{
    if (PyUnicode_IS_COMPACT_ASCII(text)) {
        *kept = NULL;
        *size = PyUnicode_GET_LENGTH(text);
        return PyUnicode_DATA(text);
    }
    *kept = PyUnicode_AsEncodedString(text, "utf-8", "surrogateescape");
    if (*kept == NULL)
        return NULL;
    *size = PyBytes_GET_SIZE(*kept);
    return (const byte *)PyBytes_AS_STRING(*kept);
}

/* It takes as long wherever they differ, which is nobody's business. */
static bool differ(const byte *given, const char *expected, Py_ssize_t size)
{
    byte differs = 0;
    for (Py_ssize_t i = 0; i < size; i++)
        differs |= given[i] ^ (byte)expected[i];
    return differs != 0;
}

/* -- MD5 ---------------------------------------------------------------------------------------------------------- */

#define MD5_HEX 32

typedef struct {
    uint32_t state[4];
    uint64_t size;
    byte block[BLOCK];
} Md5;

static const uint32_t SINES[64] = {
    0xd76aa478, 0xe8c7b756, 0x242070db, 0xc1bdceee, 0xf57c0faf, 0x4787c62a, 0xa8304613, 0xfd469501,
    0x698098d8, 0x8b44f7af, 0xffff5bb1, 0x895cd7be, 0x6b901122, 0xfd987193, 0xa679438e, 0x49b40821,
    0xf61e2562, 0xc040b340, 0x265e5a51, 0xe9b6c7aa, 0xd62f105d, 0x02441453, 0xd8a1e681, 0xe7d3fbc8,
    0x21e1cde6, 0xc33707d6, 0xf4d50d87, 0x455a14ed, 0xa9e3e905, 0xfcefa3f8, 0x676f02d9, 0x8d2a4c8a,
    0xfffa3942, 0x8771f681, 0x6d9d6122, 0xfde5380c, 0xa4beea44, 0x4bdecfa9, 0xf6bb4b60, 0xbebfbc70,
    0x289b7ec6, 0xeaa127fa, 0xd4ef3085, 0x04881d05, 0xd9d4d039, 0xe6db99e5, 0x1fa27cf8, 0xc4ac5665,
    0xf4292244, 0x432aff97, 0xab9423a7, 0xfc93a039, 0x655b59c3, 0x8f0ccc92, 0xffeff47d, 0x85845dd1,
    0x6fa87e4f, 0xfe2ce6e0, 0xa3014314, 0x4e0811a1, 0xf7537e82, 0xbd3af235, 0x2ad7d2bb, 0xeb86d391,
};

static inline uint32_t left(uint32_t word, int bits) { return word << bits | word >> (32 - bits); }

#define MD5_STEP(f, a, b, c, d, place, bits, i) \
    a = b + left(a + (f) + SINES[i] + word[(place) & 15], bits)

#define MD5_ROUND(f, first, times, plus, one, two, three, four) \
    for (int i = first; i < first + 16; i += 4) { \
        MD5_STEP(f(b, c, d), a, b, c, d, times * i + plus, one, i); \
        MD5_STEP(f(a, b, c), d, a, b, c, times * (i + 1) + plus, two, i + 1); \
        MD5_STEP(f(d, a, b), c, d, a, b, times * (i + 2) + plus, three, i + 2); \
        MD5_STEP(f(c, d, a), b, c, d, a, times * (i + 3) + plus, four, i + 3); \
    }

#define MD5_F(x, y, z) (((x) & (y)) | (~(x) & (z)))
#define MD5_G(x, y, z) (((x) & (z)) | ((y) & ~(z)))
#define MD5_H(x, y, z) ((x) ^ (y) ^ (z))
#define MD5_I(x, y, z) ((y) ^ ((x) | ~(z)))

static void md5_block(uint32_t *state, const byte *block)
{
    uint32_t word[16], a = state[0], b = state[1], c = state[2], d = state[3];
    for (int i = 0; i < 16; i++)
        word[i] = load(block + 4 * i);
    MD5_ROUND(MD5_F, 0, 1, 0, 7, 12, 17, 22)
    MD5_ROUND(MD5_G, 16, 5, 1, 5, 9, 14, 20)
    MD5_ROUND(MD5_H, 32, 3, 5, 4, 11, 16, 23)
    MD5_ROUND(MD5_I, 48, 7, 0, 6, 10, 15, 21)
    state[0] += a;
    state[1] += b;
    state[2] += c;
    state[3] += d;
}

static void md5_begin(Md5 *hash)
{
    static const uint32_t BEGIN[4] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476};
    memcpy(hash->state, BEGIN, sizeof(BEGIN));
    hash->size = 0;
}

static void md5_add(Md5 *hash, const void *data, Py_ssize_t size)
{
    const byte *at = data;
    while (size > 0) {
        Py_ssize_t filled = (Py_ssize_t)(hash->size % BLOCK), more = Py_MIN(BLOCK - filled, size);
        memcpy(hash->block + filled, at, (size_t)more);
        hash->size += (uint64_t)more;
        at += more;
        size -= more;
        if (hash->size % BLOCK == 0)
            md5_block(hash->state, hash->block);
    }
}

static void md5_end(Md5 *hash, char *hex)
{
    static const byte PADDING[BLOCK] = {0x80};
    uint64_t bits = hash->size * 8;
    byte size[8];
    for (int i = 0; i < 8; i++)
        size[i] = (byte)(bits >> 8 * i);
    md5_add(hash, PADDING, BLOCK - (Py_ssize_t)((hash->size + 8) % BLOCK));
    md5_add(hash, size, 8);
    to_hex(hash->state, hex, MD5_HEX);
}

static bool md5_add_text(Md5 *hash, PyObject *text)
{
    PyObject *kept;
    Py_ssize_t size;
    const byte *data = bytes_of(text, &size, &kept);
    if (data == NULL)
        return false;
    md5_add(hash, data, size);
    Py_XDECREF(kept);
    return true;
}

/* The place of each of the credentials. */
enum { NONCE = 2, URI = 3, RESPONSE = 4, QOP = 6, CNONCE = 7, NC = 8, CREDENTIALS = 9 };

/* What the response must be, which is one way or the other as the credentials have a qop. */
static bool expect(PyObject *ha1, PyObject *method, PyObject *const *given, char *hex)
{
    char ha2[MD5_HEX];
    Md5 hash;
    md5_begin(&hash);
    if (!md5_add_text(&hash, method))
        return false;
    md5_add(&hash, ":", 1);
    if (!md5_add_text(&hash, given[URI]))
        return false;
    md5_end(&hash, ha2);
    md5_begin(&hash);
    if (!md5_add_text(&hash, ha1))
        return false;
    md5_add(&hash, ":", 1);
    if (!md5_add_text(&hash, given[NONCE]))
        return false;
    if (PyUnicode_GET_LENGTH(given[QOP]) > 0) {
        static const int COUNTED[] = {NC, CNONCE, QOP};
        for (int i = 0; i < 3; i++) {
            md5_add(&hash, ":", 1);
            if (!md5_add_text(&hash, given[COUNTED[i]]))
                return false;
        }
    }
    md5_add(&hash, ":", 1);
    md5_add(&hash, ha2, MD5_HEX);
    md5_end(&hash, hex);
    return true;
}

static PyObject *proves(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    char expected[MD5_HEX];
    bool are_texts = count == 3 && PyUnicode_CheckExact(args[0]) && PyUnicode_CheckExact(args[1]) && PyTuple_Check(args[2])
        && PyTuple_GET_SIZE(args[2]) == CREDENTIALS;
    for (int i = 0; are_texts && i < CREDENTIALS; i++)
        are_texts = PyUnicode_CheckExact(PyTuple_GET_ITEM(args[2], i));
    if (!are_texts) {
        PyErr_SetString(PyExc_TypeError, "a hash, a method and credentials are needed");
        return NULL;
    }
    PyObject *const *given = &PyTuple_GET_ITEM(args[2], 0);
    if (!expect(args[0], args[1], given, expected))
        return NULL;
    if (!PyUnicode_IS_COMPACT_ASCII(given[RESPONSE]) || PyUnicode_GET_LENGTH(given[RESPONSE]) != MD5_HEX)
        Py_RETURN_FALSE;
    return PyBool_FromLong(!differ(PyUnicode_DATA(given[RESPONSE]), expected, MD5_HEX));
}

/* -- BLAKE2s ------------------------------------------------------------------------------------------------------ */

#define MAC 12 /* bytes, as in token.py */
#define NONCE_HEAD 26 /* hexadecimal digits before the MAC, as in token.py */
#define LONGEST_KEY 32

typedef struct {
    uint32_t words[8];
} State;

/* A key: what it begins with, its block, and what that makes of it. */
typedef struct {
    State begun, keyed;
    byte block[BLOCK];
} Key;

static const uint32_t BLAKE_IV[8] = {
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
};

static const byte SIGMA[10][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
};

#define BLAKE_MIX(a, b, c, d, i) \
    do { \
        v[a] += v[b] + word[order[2 * i]]; \
        v[d] = left(v[d] ^ v[a], 16); \
        v[c] += v[d]; \
        v[b] = left(v[b] ^ v[c], 20); \
        v[a] += v[b] + word[order[2 * i + 1]]; \
        v[d] = left(v[d] ^ v[a], 24); \
        v[c] += v[d]; \
        v[b] = left(v[b] ^ v[c], 25); \
    } while (0)

/* `size` is that of all up to the end of this block. */
static void blake_block(State *state, const byte *block, uint64_t size, bool last)
{
    uint32_t word[16], v[16];
    for (int i = 0; i < 16; i++)
        word[i] = load(block + 4 * i);
    memcpy(v, state->words, sizeof(state->words));
    memcpy(v + 8, BLAKE_IV, sizeof(BLAKE_IV));
    v[12] ^= (uint32_t)size;
    v[13] ^= (uint32_t)(size >> 32);
    if (last)
        v[14] = ~v[14];
    for (int round = 0; round < 10; round++) {
        const byte *order = SIGMA[round];
        BLAKE_MIX(0, 4, 8, 12, 0);
        BLAKE_MIX(1, 5, 9, 13, 1);
        BLAKE_MIX(2, 6, 10, 14, 2);
        BLAKE_MIX(3, 7, 11, 15, 3);
        BLAKE_MIX(0, 5, 10, 15, 4);
        BLAKE_MIX(1, 6, 11, 12, 5);
        BLAKE_MIX(2, 7, 8, 13, 6);
        BLAKE_MIX(3, 4, 9, 14, 7);
    }
    for (int i = 0; i < 8; i++)
        state->words[i] ^= v[i] ^ v[i + 8];
}

/* `bound` are the bytes of a Key. */
static State blake(PyObject *bound, const byte *data, Py_ssize_t size)
{
    Key key;
    memcpy(&key, PyBytes_AS_STRING(bound), sizeof(key));
    if (size == 0) {
        blake_block(&key.begun, key.block, BLOCK, true);
        return key.begun;
    }
    State state = key.keyed;
    uint64_t done = BLOCK;
    for (; size > BLOCK; size -= BLOCK, data += BLOCK)
        blake_block(&state, data, done += BLOCK, false);
    byte block[BLOCK] = {0};
    memcpy(block, data, (size_t)size);
    blake_block(&state, block, done + (uint64_t)size, true);
    return state;
}

static PyObject *mac(PyObject *bound, PyObject *message)
{
    PyObject *kept;
    Py_ssize_t size;
    if (!PyUnicode_CheckExact(message)) {
        PyErr_SetString(PyExc_TypeError, "a text is needed");
        return NULL;
    }
    const byte *data = bytes_of(message, &size, &kept);
    if (data == NULL)
        return NULL;
    State state = blake(bound, data, size);
    Py_XDECREF(kept);
    PyObject *hex = PyUnicode_New(2 * MAC, 127);
    if (hex != NULL)
        to_hex(state.words, PyUnicode_DATA(hex), 2 * MAC);
    return hex;
}

/* A number of eight hexadecimal digits. */
static unsigned long number(const byte *digits)
{
    unsigned long value = 0;
    for (int i = 0; i < 8; i++)
        value = value << 4 | (digits[i] <= '9' ? digits[i] - '0' : digits[i] - 'a' + 10);
    return value;
}

/* As `number` reads them; whatever has our MAC has no others. */
static bool are_digits(const byte *text, Py_ssize_t size)
{
    for (Py_ssize_t i = 0; i < size; i++)
        if (!(text[i] >= '0' && text[i] <= '9') && !(text[i] >= 'a' && text[i] <= 'f'))
            return false;
    return true;
}

static PyObject *read_nonce(PyObject *bound, PyObject *nonce)
{
    if (!PyUnicode_CheckExact(nonce)) {
        PyErr_SetString(PyExc_TypeError, "a text is needed");
        return NULL;
    }
    if (!PyUnicode_IS_COMPACT_ASCII(nonce) || PyUnicode_GET_LENGTH(nonce) != NONCE_HEAD + 2 * MAC)
        Py_RETURN_NONE;
    const byte *text = PyUnicode_DATA(nonce);
    char expected[2 * MAC];
    State state = blake(bound, text, NONCE_HEAD);
    to_hex(state.words, expected, sizeof(expected));
    if (differ(text + NONCE_HEAD, expected, sizeof(expected)) || !are_digits(text, NONCE_HEAD))
        Py_RETURN_NONE;
    return Py_BuildValue("kk", number(text + 2), number(text + 10));
}

static PyMethodDef MAKE = {"mac", mac, METH_O, "The MAC of a text, in hexadecimal digits."};
static PyMethodDef READ = {"read_nonce", read_nonce, METH_O, "The term and the time of a nonce, None if it isn't ours."};

/* A function that has the bytes of a Key. */
static PyObject *keyed(PyMethodDef *definition, PyObject *key)
{
    if (!PyBytes_Check(key) || PyBytes_GET_SIZE(key) < 1 || PyBytes_GET_SIZE(key) > LONGEST_KEY) {
        PyErr_SetString(PyExc_ValueError, "a key of 1 to 32 bytes is needed");
        return NULL;
    }
    Key made;
    memset(&made, 0, sizeof(made));
    memcpy(made.begun.words, BLAKE_IV, sizeof(BLAKE_IV));
    made.begun.words[0] ^= 0x01010000 ^ (uint32_t)PyBytes_GET_SIZE(key) << 8 ^ MAC;
    memcpy(made.block, PyBytes_AS_STRING(key), (size_t)PyBytes_GET_SIZE(key));
    made.keyed = made.begun;
    blake_block(&made.keyed, made.block, BLOCK, false);
    PyObject *bound = PyBytes_FromStringAndSize((const char *)&made, sizeof(made));
    if (bound == NULL)
        return NULL;
    PyObject *function = PyCFunction_New(definition, bound);
    Py_DECREF(bound);
    return function;
}

static PyObject *macs(PyObject *Py_UNUSED(module), PyObject *key) { return keyed(&MAKE, key); }

static PyObject *nonces(PyObject *Py_UNUSED(module), PyObject *key) { return keyed(&READ, key); }

/* -- the module --------------------------------------------------------------------------------------------------- */

static PyMethodDef METHODS[] = {
    {"proves", (PyCFunction)(void (*)(void))proves, METH_FASTCALL,
     "Return True if the response of these credentials for MD5 is that of who knows HA1."},
    {"macs", macs, METH_O, "Return what makes MACs under this key."},
    {"nonces", nonces, METH_O, "Return what reads nonces whose MACs are made under this key."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot SLOTS[] = {{0, NULL}};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT,
    .m_name = "sipha.sip._hashes",
    .m_doc = "The hashes of a REGISTER.",
    .m_size = 0,
    .m_methods = METHODS,
    .m_slots = SLOTS,
};

PyMODINIT_FUNC PyInit__hashes(void) { return PyModuleDef_Init(&MODULE); }
