/* Differences of floats: what an element has become, counted in representable numbers from what it was.
 *
 * Owns speed and nothing else: reference_coders.py (encode_difference, decode_difference) defines every byte, docs/format.md
 * says it in prose. A float's bits are mapped to an integer that sorts like the float, subtracted, and folded so that
 * small steps in either direction are small numbers. How far an element moves depends above all on its exponent, which
 * the base tells both sides: so the differences are put in the order of the base's exponents before their planes are
 * coded, and the coder (runs.c) finds runs that are alike.
 */
#include "delta.h"

#include <string.h>

#include "planes.h"
#include "runs.h"

enum {
    KEYS = 256,
    SEGMENTS = 16,      /* the most that a plane is coded in, but for one that is left over */
    SEGMENT_LEAST = 512 /* elements */
};

/* ---- elements of one width ----------------------------------------------------------------------------------- */

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define LITTLE_ENDIAN_16(element) __builtin_bswap16(element)
#define LITTLE_ENDIAN_32(element) __builtin_bswap32(element)
#define LITTLE_ENDIAN_64(element) __builtin_bswap64(element)
#else
#define LITTLE_ENDIAN_16(element) (element)
#define LITTLE_ENDIAN_32(element) (element)
#define LITTLE_ENDIAN_64(element) (element)
#endif
#define LITTLE_ENDIAN_8(element) (element)

/* How many elements before those with each key have an earlier place; the elements are taken as two halves, because
 * one count would wait for itself wherever equal keys follow one another. */
typedef uint32_t places[2][KEYS];

/* The loops over `count` elements. `keys` writes what lies below the sign of each; `fold` the folded differences;
 * `unfold` what has become of `base` by them; `order` moves elements to their places, `restore` back. */
struct loops {
    void (*keys)(const uint8_t *base, size_t count, uint8_t *keys);
    void (*fold)(const uint8_t *target, const uint8_t *base, size_t count, uint8_t *folded);
    void (*unfold)(const uint8_t *folded, const uint8_t *base, size_t count, uint8_t *target);
    void (*order)(const uint8_t *elements, const uint8_t *keys, size_t count, places next, uint8_t *ordered);
    void (*restore)(const uint8_t *ordered, const uint8_t *keys, size_t count, places next, uint8_t *elements);
};

#define DEFINE_LOOPS(BITS, UINT)                                                                                       \
    static inline UINT load_##BITS(const uint8_t *elements, size_t i) {                                                \
        UINT element;                                                                                                  \
        memcpy(&element, elements + i * sizeof element, sizeof element);                                               \
        return LITTLE_ENDIAN_##BITS(element);                                                                          \
    }                                                                                                                  \
    static inline void store_##BITS(uint8_t *elements, size_t i, UINT element) {                                       \
        element = LITTLE_ENDIAN_##BITS(element);                                                                       \
        memcpy(elements + i * sizeof element, &element, sizeof element);                                               \
    }                                                                                                                  \
    static inline UINT sortable_##BITS(UINT bits) { /* sorts like the float: all bits of a negative one change */      \
        return (UINT)(bits ^ ((UINT)(0 - (bits >> (BITS - 1))) | (UINT)1 << (BITS - 1)));                              \
    }                                                                                                                  \
    static void keys_##BITS(const uint8_t *restrict base, size_t count, uint8_t *restrict keys) {                      \
        for (size_t i = 0; i < count; i++)                                                                             \
            keys[i] = (uint8_t)(load_##BITS(base, i) >> (BITS == 8 ? 0 : BITS - 9));                                   \
    }                                                                                                                  \
    static void fold_##BITS(const uint8_t *restrict target, const uint8_t *restrict base, size_t count,                \
                            uint8_t *restrict folded) {                                                                \
        for (size_t i = 0; i < count; i++) {                                                                           \
            UINT step = (UINT)(sortable_##BITS(load_##BITS(target, i)) - sortable_##BITS(load_##BITS(base, i)));       \
            store_##BITS(folded, i, (UINT)((UINT)(step << 1) ^ (UINT)(0 - (step >> (BITS - 1)))));                     \
        }                                                                                                              \
    }                                                                                                                  \
    static void unfold_##BITS(const uint8_t *restrict folded, const uint8_t *restrict base, size_t count,              \
                              uint8_t *restrict target) {                                                              \
        for (size_t i = 0; i < count; i++) {                                                                           \
            UINT element = load_##BITS(folded, i), step = (UINT)((element >> 1) ^ (UINT)(0 - (element & 1)));          \
            UINT moved = (UINT)(sortable_##BITS(load_##BITS(base, i)) + step);                                         \
            store_##BITS(target, i, (UINT)(moved ^ ((UINT)((moved >> (BITS - 1)) - 1) | (UINT)1 << (BITS - 1))));      \
        }                                                                                                              \
    }                                                                                                                  \
    static void order_##BITS(const uint8_t *restrict elements, const uint8_t *restrict keys, size_t count,             \
                             places next, uint8_t *restrict ordered) {                                                 \
        const size_t half = count / 2;                                                                                 \
        for (size_t i = 0; i < half; i++) {                                                                            \
            memcpy(ordered + next[0][keys[i]]++ * sizeof(UINT), elements + i * sizeof(UINT), sizeof(UINT));            \
            memcpy(ordered + next[1][keys[half + i]]++ * sizeof(UINT), elements + (half + i) * sizeof(UINT),           \
                   sizeof(UINT));                                                                                      \
        }                                                                                                              \
        if (count % 2)                                                                                                 \
            memcpy(ordered + next[1][keys[count - 1]] * sizeof(UINT), elements + (count - 1) * sizeof(UINT),           \
                   sizeof(UINT));                                                                                      \
    }                                                                                                                  \
    static void restore_##BITS(const uint8_t *restrict ordered, const uint8_t *restrict keys, size_t count,            \
                               places next, uint8_t *restrict elements) {                                              \
        const size_t half = count / 2;                                                                                 \
        for (size_t i = 0; i < half; i++) {                                                                            \
            memcpy(elements + i * sizeof(UINT), ordered + next[0][keys[i]]++ * sizeof(UINT), sizeof(UINT));            \
            memcpy(elements + (half + i) * sizeof(UINT), ordered + next[1][keys[half + i]]++ * sizeof(UINT),           \
                   sizeof(UINT));                                                                                      \
        }                                                                                                              \
        if (count % 2)                                                                                                 \
            memcpy(elements + (count - 1) * sizeof(UINT), ordered + next[1][keys[count - 1]] * sizeof(UINT),           \
                   sizeof(UINT));                                                                                      \
    }                                                                                                                  \
    static const struct loops loops_##BITS = {keys_##BITS, fold_##BITS, unfold_##BITS, order_##BITS, restore_##BITS};

DEFINE_LOOPS(8, uint8_t)
DEFINE_LOOPS(16, uint16_t)
DEFINE_LOOPS(32, uint32_t)
DEFINE_LOOPS(64, uint64_t)

static const struct loops *loops_of(size_t width) {
    switch (width) {
    case 1: return &loops_8;
    case 2: return &loops_16;
    case 4: return &loops_32;
    default: return &loops_64;
    }
}

/* ---- all elements -------------------------------------------------------------------------------------------- */

static size_t head_size(const struct elements *elements) {
    return elements->phase < elements->size ? elements->phase : elements->size;
}

static size_t element_count(const struct elements *elements) {
    return (elements->size - head_size(elements)) / elements->width;
}

/* Count the keys, and find the place of the first element with each, in either half. */
static void find_places(const uint8_t *keys, size_t count, uint32_t counts[KEYS], places next) {
    const size_t half = count / 2;
    memset(next, 0, sizeof(places));
    for (size_t i = 0; i < half; i++) {
        next[0][keys[i]]++;
        next[1][keys[half + i]]++;
    }
    if (count % 2)
        next[1][keys[count - 1]]++;
    uint32_t place = 0;
    for (size_t key = 0; key < KEYS; key++) {
        uint32_t first = next[0][key], second = next[1][key];
        counts[key] = first + second;
        next[0][key] = place;
        next[1][key] = place + first;
        place += counts[key];
    }
}

/* Cut the ordered elements where the key changes, into at most SEGMENTS that are not too small; return how many. */
static size_t cut_segments(const uint32_t counts[KEYS], size_t total, size_t lengths[SEGMENTS + 1]) {
    size_t least = total / SEGMENTS < SEGMENT_LEAST ? SEGMENT_LEAST : total / SEGMENTS + 1;
    size_t segments = 0, length = 0;
    for (size_t key = 0; key < KEYS; key++) {
        length += counts[key];
        if (length >= least) {
            lengths[segments++] = length;
            length = 0;
        }
    }
    if (length)
        lengths[segments++] = length;
    return segments;
}

/* What no whole element covers, at the front and at the end, differs byte by byte. */
static uint8_t *subtract_bytes(const uint8_t *target, const uint8_t *base, size_t size, uint8_t *out) {
    for (size_t i = 0; i < size; i++)
        *out++ = (uint8_t)(target[i] - base[i]);
    return out;
}

static const uint8_t *add_bytes(const uint8_t *coded, const uint8_t *base, size_t size, uint8_t *target) {
    for (size_t i = 0; i < size; i++)
        target[i] = (uint8_t)(base[i] + *coded++);
    return coded;
}

size_t difference_scratch_size(const struct elements *elements) {
    size_t count = element_count(elements);
    return 2 * count * elements->width + count + runs_scratch_size(count);
}

size_t difference_room(const struct elements *elements) {
    return elements->size + elements->width * runs_room(0, SEGMENTS + 1);
}

size_t encode_difference(const struct elements *elements, const uint8_t *target, const uint8_t *base, uint8_t *out,
                         uint8_t *scratch) {
    const struct loops *loops = loops_of(elements->width);
    size_t head = head_size(elements), count = element_count(elements), whole = count * elements->width;
    uint8_t *folded = scratch, *ordered = folded + whole, *keys = ordered + whole, *inner = keys + count;
    uint8_t *planes = folded, *at = out;
    uint32_t counts[KEYS];
    places next;
    size_t lengths[SEGMENTS + 1];
    loops->keys(base + head, count, keys);
    loops->fold(target + head, base + head, count, folded);
    find_places(keys, count, counts, next);
    loops->order(folded, keys, count, next, ordered);
    split_elements(ordered, planes, count, elements->width);
    size_t segments = cut_segments(counts, count, lengths);
    for (size_t k = 0; count && k < elements->width; k++)
        at += encode_segments(planes + k * count, count, lengths, segments, at, inner);
    at = subtract_bytes(target, base, head, at);
    at = subtract_bytes(target + head + whole, base + head + whole, elements->size - head - whole, at);
    return (size_t)(at - out);
}

int decode_difference(const struct elements *elements, const uint8_t *coded, size_t size, const uint8_t *base,
                      uint8_t *target, uint8_t *scratch) {
    const struct loops *loops = loops_of(elements->width);
    size_t head = head_size(elements), count = element_count(elements), whole = count * elements->width;
    uint8_t *planes = scratch, *ordered = planes + whole, *keys = ordered + whole, *inner = keys + count;
    uint8_t *folded = planes;
    const uint8_t *end = coded + size;
    for (size_t k = 0; coded && count && k < elements->width; k++)
        coded = decode_runs(coded, end, planes + k * count, count, inner);
    if (!coded || (size_t)(end - coded) != elements->size - whole)
        return 0;
    join_elements(planes, ordered, count, elements->width);
    uint32_t counts[KEYS];
    places next;
    loops->keys(base + head, count, keys);
    find_places(keys, count, counts, next);
    loops->restore(ordered, keys, count, next, folded);
    loops->unfold(folded, base + head, count, target + head);
    coded = add_bytes(coded, base, head, target);
    add_bytes(coded, base + head + whole, elements->size - head - whole, target + head + whole);
    return 1;
}
