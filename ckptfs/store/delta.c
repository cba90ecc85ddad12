/* Differences of floats: what an element has become, counted in representable numbers from what it was.
 *
 * Owns speed and nothing else: reference_differences.py defines every byte, docs/format.md
 * says it in prose. A float's bits are mapped to an integer that sorts like the float, subtracted, and folded so that
 * small steps in either direction are small numbers. How far an element moves depends above all on its exponent, which
 * the base tells both sides: so that is the key by which the coder (coder.c) tells the bytes of a plane apart.
 */
#include "delta.h"

#include <string.h>

#include "coder.h"
#include "little_endian.h"
#include "planes.h"

#define SLACK_PARTS 32 /* one in so many of a difference may be spent on a plane where that makes decoding it faster */

/* ---- elements of one width ----------------------------------------------------------------------------------- */

/* The loops over `count` elements. `keys` writes what lies below the sign of each; `fold` the planes of the folded
 * steps; `unfold` what has become of `base` by them. */
struct loops {
    void (*keys)(const uint8_t *base, size_t count, uint8_t *keys);
    void (*fold)(const uint8_t *target, const uint8_t *base, size_t count, uint8_t *planes);
    void (*unfold)(const uint8_t *const planes[], const uint8_t *base, size_t count, uint8_t *target);
};

#define DEFINE_ELEMENTS(BITS, UINT)                                                                                    \
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
    }

/* Each of them once for any processor and once, with TARGET, for one that has wide vectors. */
#define DEFINE_LOOPS(BITS, UINT, NAME, TARGET)                                                                         \
    TARGET static void keys_##NAME(const uint8_t *restrict base, size_t count, uint8_t *restrict keys) {               \
        for (size_t i = 0; i < count; i++)                                                                             \
            keys[i] = (uint8_t)(load_##BITS(base, i) >> (BITS == 8 ? 0 : BITS - 9));                                   \
    }                                                                                                                  \
    TARGET static void fold_##NAME(const uint8_t *restrict target, const uint8_t *restrict base, size_t count,         \
                                   uint8_t *restrict planes) {                                                         \
        for (size_t i = 0; i < count; i++) {                                                                           \
            UINT step = (UINT)(sortable_##BITS(load_##BITS(target, i)) - sortable_##BITS(load_##BITS(base, i)));       \
            UINT folded = (UINT)((UINT)(step << 1) ^ (UINT)(0 - (step >> (BITS - 1))));                                \
            for (size_t k = 0; k < sizeof(UINT); k++)                                                                  \
                planes[k * count + i] = (uint8_t)(folded >> 8 * k);                                                    \
        }                                                                                                              \
    }                                                                                                                  \
    TARGET static void unfold_##NAME(const uint8_t *const planes[], const uint8_t *restrict base, size_t count,        \
                                     uint8_t *restrict target) {                                                       \
        const uint8_t *plane[sizeof(UINT)];                                                                            \
        memcpy(plane, planes, sizeof plane);                                                                           \
        for (size_t i = 0; i < count; i++) {                                                                           \
            UINT folded = 0;                                                                                           \
            for (size_t k = 0; k < sizeof(UINT); k++)                                                                  \
                folded = (UINT)(folded | (UINT)((UINT)plane[k][i] << 8 * k));                                          \
            UINT step = (UINT)((folded >> 1) ^ (UINT)(0 - (folded & 1)));                                              \
            UINT moved = (UINT)(sortable_##BITS(load_##BITS(base, i)) + step);                                         \
            store_##BITS(target, i, (UINT)(moved ^ ((UINT)((moved >> (BITS - 1)) - 1) | (UINT)1 << (BITS - 1))));      \
        }                                                                                                              \
    }

#define LOOPS(NAME) {keys_##NAME, fold_##NAME, unfold_##NAME}

DEFINE_ELEMENTS(8, uint8_t)
DEFINE_ELEMENTS(16, uint16_t)
DEFINE_ELEMENTS(32, uint32_t)
DEFINE_ELEMENTS(64, uint64_t)

#define ANY
DEFINE_LOOPS(8, uint8_t, 8, ANY)
DEFINE_LOOPS(16, uint16_t, 16, ANY)
DEFINE_LOOPS(32, uint32_t, 32, ANY)
DEFINE_LOOPS(64, uint64_t, 64, ANY)
static const struct loops portable_loops[] = {LOOPS(8), LOOPS(16), LOOPS(32), LOOPS(64)};

#if defined(__x86_64__) && defined(__GNUC__)
#define AVX2 __attribute__((target("avx2")))
DEFINE_LOOPS(8, uint8_t, avx2_8, AVX2)
DEFINE_LOOPS(16, uint16_t, avx2_16, AVX2)
DEFINE_LOOPS(32, uint32_t, avx2_32, AVX2)
DEFINE_LOOPS(64, uint64_t, avx2_64, AVX2)
static const struct loops vector_loops[] = {LOOPS(avx2_8), LOOPS(avx2_16), LOOPS(avx2_32), LOOPS(avx2_64)};
#else
#define vector_loops portable_loops
#endif

static const struct loops *loops_of(size_t width, int vectors) {
    size_t index = width == 8 ? 3 : width / 2;
    return vectors ? &vector_loops[index] : &portable_loops[index];
}

/* ---- all elements -------------------------------------------------------------------------------------------- */

static size_t head_size(const struct elements *elements) {
    return elements->phase < elements->size ? elements->phase : elements->size;
}

static size_t element_count(const struct elements *elements) {
    return (elements->size - head_size(elements)) / elements->width;
}

/* Tell the class of each element from its key. */
static void classify(const uint8_t *keys, size_t count, struct classes *classes, uint8_t *class_of) {
    uint32_t counts[4][KEYS] = {{0}};
    size_t at = 0;
    for (; at + 4 <= count; at += 4) /* in four tables, because equal keys would wait for each other's count */
        for (size_t k = 0; k < 4; k++)
            counts[k][keys[at + k]]++;
    for (; at < count; at++)
        counts[0][keys[at]]++;
    for (size_t key = 0; key < KEYS; key++)
        counts[0][key] += counts[1][key] + counts[2][key] + counts[3][key];
    make_classes(counts[0], count, classes);
    for (size_t i = 0; i < count; i++)
        class_of[i] = classes->of_key[keys[i]];
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

size_t difference_scratch_size(size_t size) { return coder_scratch_size(size) + 3 * size; }

size_t difference_room(const struct elements *elements) {
    return elements->width * (coder_room(element_count(elements)) + 2);
}

size_t encode_difference(const struct elements *elements, const uint8_t *target, const uint8_t *base, uint8_t *out,
                         uint8_t *scratch, int vectors) {
    const struct loops *loops = loops_of(elements->width, vectors);
    size_t head = head_size(elements), count = element_count(elements), whole = count * elements->width;
    uint8_t *planes = scratch + coder_scratch_size(elements->size), *keys = planes + whole, *class_of = keys + count;
    uint8_t *at = out;
    struct classes classes;
    loops->keys(base + head, count, keys);
    loops->fold(target + head, base + head, count, planes);
    classify(keys, count, &classes, class_of);
    for (size_t k = 0; count && k < elements->width; k++)
        at += encode_bytes(planes + k * count, class_of, &classes, count, (size_t)(at - out) / SLACK_PARTS, at, scratch,
                           vectors);
    at = subtract_bytes(target, base, head, at);
    at = subtract_bytes(target + head + whole, base + head + whole, elements->size - head - whole, at);
    return (size_t)(at - out);
}

int decode_difference(const struct elements *elements, const uint8_t *coded, size_t size, const uint8_t *base,
                      uint8_t *target, uint8_t *scratch, int vectors) {
    const struct loops *loops = loops_of(elements->width, vectors);
    size_t head = head_size(elements), count = element_count(elements), whole = count * elements->width;
    uint8_t *decoded = scratch + coder_scratch_size(elements->size), *keys = decoded + whole;
    const uint8_t *end = coded + size, *planes[WIDTH_MOST];
    loops->keys(base + head, count, keys);
    for (size_t k = 0; coded && count && k < elements->width; k++) {
        planes[k] = find_raw(coded, end, count);
        if (planes[k]) {
            coded = planes[k] + count;
            continue;
        }
        planes[k] = decoded + k * count;
        coded = decode_bytes(coded, end, keys, decoded + k * count, count, scratch, vectors);
    }
    if (!coded || (size_t)(end - coded) != elements->size - whole)
        return 0;
    if (count)
        loops->unfold(planes, base + head, count, target + head);
    coded = add_bytes(coded, base, head, target);
    add_bytes(coded, base + head + whole, elements->size - head - whole, target + head + whole);
    return 1;
}
