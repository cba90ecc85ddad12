/* The entropy coder: bytes whose statistics differ by a key that both sides know.
 *
 * Owns speed and nothing else: reference_coders.py, with the modules that it names, defines every byte, docs/format.md
 * says it in prose. Pure functions over the memory they are given. The decoder believes nothing: it reads and writes
 * nothing out of bounds whatever the bytes are, and says that they are damaged where they are not what the encoder
 * makes.
 *
 * rANS is Duda's (Asymmetric numeral systems, arXiv:1311.2540), with 11-bit probabilities, states below 2^31, words of
 * 16 bits, division by reciprocals and interleaved states as in Giesen's ryg_rans and arXiv:1402.3392. With 32 states
 * AVX2 takes 32 bytes out at once; their slots are still looked up one by one, since a gather is no faster.
 */
#include "coder.h"

#include <string.h>

#include "little_endian.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define HAVE_AVX2 1
#include <immintrin.h>
#else
#define HAVE_AVX2 0
#endif

enum { CODED_RAW, CODED_CONSTANT, CODED_FEW, CODED_RANS };

#define SCALE_BITS 11
#define SCALE (1u << SCALE_BITS)
#define STATE_LEAST (1u << 15)
#define WORD_BITS 16
#define LANES_MOST 32
#define LANES_SOME 8
#define LANES_MOST_FROM 2048 /* bytes that the coded ones have, for all interleaved states; and */
#define LANES_SOME_FROM 1024 /* bytes to be coded, for some of them; below there is one */
#define FEW_FROM 32          /* at most one byte in so many of "few" is not zero: each of them takes time of its own */
#define RICE_MOST 30
#define RICE_NONE 31 /* where all bytes of a table are zero */
#define ORDER_MOST 6
#define ORDER_NONE 7 /* where those that are not zero are 1 or 2 */
#define NOISE_PARTS 50       /* what would get smaller by less than one part in so many is stored raw */
#define TABLE_COST (8 * 32)  /* bits that a table of frequencies costs, with the time to set it up, */
#define SYMBOL_COST 10       /* and every byte in it */
#define SPARSE_FROM 8 /* at most one byte in so many is not zero where only those are counted */
#define COUNTERS 2 /* of everything: equal bytes one behind the other would wait for each other's count */
#define VARINT_SIZE_MOST 5
#define TABLE_SIZE_MOST (3 + 2 * 256)
#define WORDS_ROOM(size) (16 + 2 * (size))

/* ---- numbers ------------------------------------------------------------------------------------------------- */

static uint8_t *put_varint(uint8_t *out, uint32_t value) {
    for (; value >= 0x80; value >>= 7)
        *out++ = (uint8_t)(value | 0x80);
    *out++ = (uint8_t)value;
    return out;
}

static const uint8_t *take_varint(const uint8_t *in, const uint8_t *end, uint32_t *value) {
    uint64_t sum = 0;
    for (int shift = 0; shift < 7 * VARINT_SIZE_MOST && in < end; shift += 7) {
        sum |= (uint64_t)(*in & 0x7F) << shift;
        if (*in++ < 0x80) {
            *value = (uint32_t)sum;
            return sum <= UINT32_MAX ? in : NULL;
        }
    }
    return NULL;
}

static inline uint32_t load_word(const uint8_t *at) {
    uint16_t word;
    memcpy(&word, at, sizeof word);
    return LITTLE_ENDIAN_16(word);
}

static inline void store_word(uint8_t *at, uint32_t value) {
    uint16_t word = LITTLE_ENDIAN_16((uint16_t)value);
    memcpy(at, &word, sizeof word);
}

/* ---- counts, costs, frequencies ------------------------------------------------------------------------------ */

void make_classes(const uint32_t counts[KEYS], size_t size, struct classes *classes) {
    size_t distinct = 0, class = 0, length = 0;
    for (size_t key = 0; key < KEYS; key++)
        distinct += counts[key] != 0;
    size_t least = distinct <= CLASSES_MOST ? 1 : size / CLASSES_MOST + 1;
    for (size_t key = 0; key < KEYS; key++) {
        classes->of_key[key] = (uint8_t)class;
        length += counts[key];
        if (length >= least) {
            class++;
            length = 0;
        }
    }
    /* What comes behind the last class that is large enough is one as well, if it has bytes at all. */
    classes->count = length || !class ? class + 1 : class;
    memset(classes->sizes, 0, sizeof classes->sizes);
    for (size_t key = 0; key < KEYS; key++) {
        if (classes->of_key[key] == classes->count)
            classes->of_key[key]--;
        classes->sizes[classes->of_key[key]] += counts[key];
    }
}

static size_t count_zeros(const uint8_t *data, size_t size) {
    size_t count = 0;
    for (size_t i = 0; i < size; i++)
        count += !data[i];
    return count;
}

/* Count the bytes of each class. */
static void count_bytes(const uint8_t *data, const uint8_t *class_of, size_t size, const struct classes *classes,
                        uint32_t counts[COUNTERS][CLASSES_MOST][256]) {
    for (size_t k = 0; k < COUNTERS; k++)
        memset(counts[k], 0, classes->count * sizeof counts[k][0]);
    if (size - count_zeros(data, size) <= size / SPARSE_FROM) {
        for (size_t class = 0; class < classes->count; class++)
            counts[0][class][0] = classes->sizes[class];
        for (size_t i = 0; i < size; i++) {
            uint64_t eight;
            while (i + 8 <= size && (memcpy(&eight, data + i, 8), !eight))
                i += 8;
            if (i < size && data[i]) {
                counts[0][class_of[i]][data[i]]++;
                counts[0][class_of[i]][0]--;
            }
        }
        return;
    }
    size_t i = 0;
    for (; i + COUNTERS <= size; i += COUNTERS)
        for (size_t k = 0; k < COUNTERS; k++)
            counts[k][class_of[i + k]][data[i + k]]++;
    for (; i < size; i++)
        counts[0][class_of[i]][data[i]]++;
    for (size_t k = 1; k < COUNTERS; k++)
        for (size_t class = 0; class < classes->count; class++)
            for (size_t value = 0; value < 256; value++)
                counts[0][class][value] += counts[k][class][value];
}

static size_t add_counts(const uint32_t left[256], const uint32_t right[256], uint32_t sum[256]) {
    size_t size = 0;
    for (size_t value = 0; value < 256; value++)
        size += sum[value] = left[value] + right[value];
    return size;
}

/* Return log2 of a number from 1 on in 1/256 bits, by a parabola between powers of two (0.02 bits off at most). */
static inline uint64_t log2_parts(uint32_t number) {
    uint32_t exponent = 31u - (uint32_t)__builtin_clz(number);
    uint32_t fraction = (uint32_t)(((uint64_t)number << 8 >> exponent) & 0xFF);
    return (exponent << 8) + fraction + (fraction * (256 - fraction) * 88 >> 16);
}

/* Estimate what the bytes so counted cost with one table of frequencies, in 1/256 bits. */
static uint64_t rans_cost(const uint32_t counts[256], size_t size) {
    uint64_t information = size * log2_parts((uint32_t)size), distinct = 0;
    for (size_t value = 0; value < 256; value++)
        if (counts[value]) {
            information -= counts[value] * log2_parts(counts[value]);
            distinct++;
        }
    return information + (TABLE_COST + SYMBOL_COST * distinct) * 256;
}

/* How the bytes of a table that are not zero are coded in "few", `filled` of them: a gap before each in Rice's code with
 * the parameter `rice`, and how far they lie above 1 and 2 in exponential Golomb codes of `order`. */
struct few {
    uint32_t rice, order;
    size_t filled;
};

/* How far a byte that is not zero lies above 1 or 2: they are the two directions of one step. */
static inline uint32_t excess_of(uint32_t value) { return (value - 1) >> 1; }

static struct few few_of(const uint32_t counts[256], size_t size) {
    size_t filled = size - counts[0], excess = 0;
    for (uint32_t value = 1; value < 256; value++)
        excess += (size_t)counts[value] * excess_of(value);
    struct few few = {RICE_NONE, ORDER_NONE, filled};
    if (filled)
        few.rice = 31u - (uint32_t)__builtin_clz((uint32_t)(size / filled));
    if (excess)
        few.order = excess < filled ? 0 : 32u - (uint32_t)__builtin_clz((uint32_t)(excess / filled));
    few.rice = few.rice > RICE_MOST && filled ? RICE_MOST : few.rice;
    few.order = few.order > ORDER_MOST && excess ? ORDER_MOST : few.order;
    return few;
}

/* Tell what the bytes so counted cost in "few", in 1/256 bits. */
static uint64_t few_cost(const uint32_t counts[256], size_t size) {
    struct few few = few_of(counts, size);
    uint64_t bits = 16;
    if (few.filled)
        bits += (few.filled + 1) * (few.rice + 1) + ((size - few.filled) >> few.rice) + few.filled;
    for (uint32_t value = 1; few.order != ORDER_NONE && value < 256; value++)
        if (counts[value])
            bits += (uint64_t)counts[value] *
                    (1 + few.order + 2 * (31u - (uint32_t)__builtin_clz((excess_of(value) >> few.order) + 1)));
    return bits * 256;
}

/* Scale counts of `size` bytes to frequencies whose sum is SCALE. */
static void scale_counts(const uint32_t counts[256], size_t size, uint32_t frequencies[256]) {
    int32_t rest = (int32_t)SCALE;
    for (size_t value = 0; value < 256; value++) {
        uint32_t scaled = (uint32_t)(((uint64_t)counts[value] * SCALE + size / 2) / size);
        frequencies[value] = counts[value] && !scaled ? 1 : scaled;
        rest -= (int32_t)frequencies[value];
    }
    while (rest) { /* what rounding has left over goes to, or comes from, the most frequent ones */
        size_t most = 0;
        for (size_t value = 1; value < 256; value++)
            if (frequencies[value] > frequencies[most])
                most = value;
        int32_t step = (int32_t)(frequencies[most] / 4 + 1);
        step = rest > 0 ? (rest < step ? rest : step) : (rest > -step ? rest : -step);
        frequencies[most] = (uint32_t)((int32_t)frequencies[most] + step);
        rest -= step;
    }
}

/* ---- tables -------------------------------------------------------------------------------------------------- */

/* What the bytes of some neighbouring classes, up to the key `last_key`, have in common. */
struct table {
    uint32_t counts[256];
    size_t size;
    uint64_t cost;
    uint8_t last_key;
};

/* Make tables of the classes, joining neighbours for as long as that costs no more than a table of the neighbour's own;
 * `table_of` is the table of each class. Return how many there are. */
static size_t make_tables(const struct classes *classes, uint32_t counts[CLASSES_MOST][256],
                          uint64_t (*cost_of)(const uint32_t counts[256], size_t size),
                          struct table tables[CLASSES_MOST], uint8_t table_of[CLASSES_MOST]) {
    static const uint32_t none[256];
    size_t count = 0;
    for (size_t class = 0; class < classes->count; class++) {
        struct table next, both;
        next.size = add_counts(counts[class], none, next.counts);
        next.cost = next.size ? cost_of(next.counts, next.size) : 0;
        if (count) {
            both.size = add_counts(tables[count - 1].counts, next.counts, both.counts);
            both.cost = cost_of(both.counts, both.size);
        }
        if (count && both.cost <= tables[count - 1].cost + next.cost)
            tables[count - 1] = both;
        else
            tables[count++] = next;
        table_of[class] = (uint8_t)(count - 1);
    }
    for (size_t key = 0; key < KEYS; key++)
        tables[table_of[classes->of_key[key]]].last_key = (uint8_t)key;
    return count;
}

static uint64_t cost_of_tables(const struct table *tables, size_t count) {
    uint64_t cost = 0;
    for (size_t i = 0; i < count; i++)
        cost += tables[i].cost;
    return cost;
}

/* Write the last key, the least and the greatest value that there is, and the frequencies from the one to before the
 * other as varints, where a 0 is followed by how many more zeros there are. */
static uint8_t *put_table(uint8_t *out, uint8_t last_key, const uint32_t frequencies[256]) {
    size_t first = 0, last = 255;
    while (!frequencies[first])
        first++;
    while (!frequencies[last])
        last--;
    *out++ = last_key;
    *out++ = (uint8_t)first;
    *out++ = (uint8_t)last;
    for (size_t value = first; value < last; value++) {
        out = put_varint(out, frequencies[value]);
        if (!frequencies[value]) {
            size_t more = 0;
            while (!frequencies[value + 1 + more])
                more++;
            *out++ = (uint8_t)more;
            value += more;
        }
    }
    return out;
}

static const uint8_t *take_table(const uint8_t *in, const uint8_t *end, uint8_t *last_key, uint32_t frequencies[256]) {
    if (end - in < 3)
        return NULL;
    *last_key = *in++;
    size_t value = *in++, last = *in++;
    uint32_t rest = SCALE;
    memset(frequencies, 0, 256 * sizeof *frequencies);
    while (value < last) {
        uint32_t frequency;
        in = take_varint(in, end, &frequency);
        if (!in || frequency >= rest)
            return NULL;
        frequencies[value++] = frequency;
        rest -= frequency;
        if (!frequency) {
            if (in == end)
                return NULL;
            value += *in++;
        }
    }
    if (value != last)
        return NULL;
    frequencies[last] = rest;
    return in;
}

/* ---- rANS ---------------------------------------------------------------------------------------------------- */

/* How a state takes a symbol in: state / frequency is (state * reciprocal >> 32) >> shift. */
struct symbol {
    uint32_t limit, reciprocal, bias;
    uint16_t frequency_rest, shift;
};

static void make_symbols(const uint32_t frequencies[256], struct symbol symbols[256]) {
    uint32_t start = 0;
    for (size_t value = 0; value < 256; value++) {
        uint32_t frequency = frequencies[value];
        struct symbol *symbol = &symbols[value];
        symbol->limit = (STATE_LEAST >> SCALE_BITS << WORD_BITS) * frequency;
        symbol->frequency_rest = (uint16_t)(SCALE - frequency);
        if (frequency < 2) { /* the quotient comes out as state - 1, which the bias makes up for */
            symbol->reciprocal = ~0u;
            symbol->shift = 0;
            symbol->bias = start + SCALE - 1;
        } else {
            uint32_t bits = 32u - (uint32_t)__builtin_clz(frequency - 1);
            symbol->reciprocal = (uint32_t)((((uint64_t)1 << (bits + 31)) + frequency - 1) / frequency);
            symbol->shift = (uint16_t)(bits - 1);
            symbol->bias = start;
        }
        start += frequency;
    }
}

/* Let a state take a symbol in, and write the word that it has no room for to where the words begin so far. */
static inline __attribute__((always_inline)) uint8_t *put_symbol(uint32_t *state, const struct symbol *symbol,
                                                                 uint8_t *words) {
    uint32_t full = ((symbol->limit - 1 - *state) >> 31); /* without a branch: both are below 2^31 */
    store_word(words - 2, *state);
    uint32_t rest = *state ^ ((*state ^ *state >> WORD_BITS) & (0 - full));
    uint32_t quotient = (uint32_t)((uint64_t)rest * symbol->reciprocal >> 32) >> symbol->shift;
    *state = rest + symbol->bias + quotient * symbol->frequency_rest;
    return words - 2 * full;
}

#if HAVE_AVX2
#define LANES_OF_VECTOR 8
#define VECTORS (LANES_MOST / LANES_OF_VECTOR)

/* For each set of lanes: which of them give the last words of eight; and where, of the next eight words, lies what each
 * of them takes, byte by byte. */
static uint8_t giving_lanes[256][LANES_OF_VECTOR];
static _Alignas(32) uint8_t taking_lanes[256][4 * LANES_OF_VECTOR];

__attribute__((constructor)) static void prepare_lanes(void) {
    memset(taking_lanes, 0x80, sizeof taking_lanes); /* a zero */
    for (unsigned set = 0; set < 256; set++) {
        unsigned place = 0, last = LANES_OF_VECTOR - (unsigned)__builtin_popcount(set);
        for (unsigned lane = 0; lane < LANES_OF_VECTOR; lane++)
            if (set >> lane & 1) {
                taking_lanes[set][4 * lane] = (uint8_t)(2 * place);
                taking_lanes[set][4 * lane + 1] = (uint8_t)(2 * place + 1);
                giving_lanes[set][last + place++] = (uint8_t)lane;
            }
    }
}

/* Let all 32 states take symbols in, `size` of them in whole rounds, the last one first. Writes up to 16 bytes before
 * the words. */
__attribute__((target("avx2,popcnt"))) static uint8_t *put_rounds_avx2(uint32_t states[LANES_MOST], const uint8_t *data,
                                                                       const uint8_t *class_of, size_t size,
                                                                       struct symbol *const symbols_of[CLASSES_MOST],
                                                                       uint8_t *words) {
    const __m256i word_mask = _mm256_set1_epi32(0xFFFF), one = _mm256_set1_epi32(1);
    __m256i x[VECTORS];
    for (size_t v = 0; v < VECTORS; v++)
        x[v] = _mm256_loadu_si256((const __m256i *)(states + v * LANES_OF_VECTOR));
    for (size_t i = size; i > 0; i -= LANES_MOST)
        for (size_t v = VECTORS; v-- > 0;) {
            const size_t at = i - LANES_MOST + v * LANES_OF_VECTOR;
#define SYMBOL(lane) _mm_loadu_si128((const __m128i *)&symbols_of[class_of[at + (lane)]][data[at + (lane)]])
#define TWO_SYMBOLS(lane) _mm256_inserti128_si256(_mm256_castsi128_si256(SYMBOL(lane)), SYMBOL((lane) + 4), 1)
            __m256i two0 = TWO_SYMBOLS(0), two1 = TWO_SYMBOLS(1), two2 = TWO_SYMBOLS(2), two3 = TWO_SYMBOLS(3);
            __m256i low01 = _mm256_unpacklo_epi32(two0, two1), high01 = _mm256_unpackhi_epi32(two0, two1);
            __m256i low23 = _mm256_unpacklo_epi32(two2, two3), high23 = _mm256_unpackhi_epi32(two2, two3);
            __m256i limit = _mm256_unpacklo_epi64(low01, low23), reciprocal = _mm256_unpackhi_epi64(low01, low23);
            __m256i bias = _mm256_unpacklo_epi64(high01, high23), both = _mm256_unpackhi_epi64(high01, high23);
            __m256i full = _mm256_cmpgt_epi32(x[v], _mm256_sub_epi32(limit, one));
            unsigned giving = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(full));
            __m256i lanes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)giving_lanes[giving]));
            __m256i given = _mm256_and_si256(_mm256_permutevar8x32_epi32(x[v], lanes), word_mask);
            given = _mm256_permute4x64_epi64(_mm256_packus_epi32(given, given), 0x08);
            _mm_storeu_si128((__m128i *)(words - 16), _mm256_castsi256_si128(given));
            words -= 2 * (size_t)__builtin_popcount(giving);
            __m256i rest = _mm256_blendv_epi8(x[v], _mm256_srli_epi32(x[v], WORD_BITS), full);
            __m256i even = _mm256_srli_epi64(_mm256_mul_epu32(rest, reciprocal), 32);
            __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(rest, 32), _mm256_srli_epi64(reciprocal, 32));
            __m256i quotient = _mm256_srlv_epi32(_mm256_blend_epi32(even, odd, 0xAA), _mm256_srli_epi32(both, 16));
            __m256i more = _mm256_mullo_epi32(quotient, _mm256_and_si256(both, word_mask));
            x[v] = _mm256_add_epi32(_mm256_add_epi32(rest, bias), more);
        }
    for (size_t v = 0; v < VECTORS; v++)
        _mm256_storeu_si256((__m256i *)(states + v * LANES_OF_VECTOR), x[v]);
    return words;
}
#endif

/* Write states and words of the bytes, which have these tables. */
static uint8_t *put_rans(const uint8_t *data, const uint8_t *class_of, size_t size, size_t lanes,
                         struct symbol *const symbols_of[CLASSES_MOST], uint8_t *out, uint8_t *scratch, int vectors) {
    uint32_t states[LANES_MOST];
    for (size_t lane = 0; lane < lanes; lane++)
        states[lane] = STATE_LEAST;
    uint8_t *words_end = scratch + WORDS_ROOM(size), *words = words_end;
    /* From the last byte to the first, since what goes in last comes out first. */
    size_t i = size;
#if HAVE_AVX2
    if (vectors && lanes == LANES_MOST) {
        for (; i % LANES_MOST; i--)
            words = put_symbol(&states[(i - 1) % LANES_MOST], &symbols_of[class_of[i - 1]][data[i - 1]], words);
        words = put_rounds_avx2(states, data, class_of, i, symbols_of, words);
        i = 0;
    }
#else
    (void)vectors;
#endif
    for (; i > 0; i--)
        words = put_symbol(&states[(i - 1) & (lanes - 1)], &symbols_of[class_of[i - 1]][data[i - 1]], words);
    for (size_t lane = 0; lane < lanes; lane++, out += 4) {
        store_word(out, states[lane]);
        store_word(out + 2, states[lane] >> 16);
    }
    memcpy(out, words, (size_t)(words_end - words));
    return out + (words_end - words);
}

#define SLOTS_AT_ONCE 4
#define SLOTS_SIZE ((CLASSES_MOST * SCALE + SLOTS_AT_ONCE) * sizeof(uint32_t))

typedef uint32_t some_slots __attribute__((vector_size(SLOTS_AT_ONCE * sizeof(uint32_t))));

/* A slot's symbol in bits 0-7, the slot's distance from the symbol's first in 8-19, the symbol's frequency in 20-31.
 * Writes up to SLOTS_AT_ONCE slots behind the last one: most frequencies are small, and a loop of one's own for the last
 * few slots of each would cost more than all else. */
static void make_slots(const uint32_t frequencies[256], uint32_t slots[SCALE + SLOTS_AT_ONCE]) {
    const some_slots in_order = {0, 1 << 8, 2 << 8, 3 << 8};
    for (uint32_t value = 0; value < 256; value++) {
        uint32_t frequency = frequencies[value];
        some_slots next = in_order + (value | frequency << 20);
        for (uint32_t at = 0; at < frequency; at += SLOTS_AT_ONCE, next += SLOTS_AT_ONCE << 8)
            memcpy(slots + at, &next, sizeof next);
        slots += frequency;
    }
}

/* Take one symbol out of a state that needs a word from `in` where it becomes small, which has to be readable. */
static inline __attribute__((always_inline)) const uint8_t *take_symbol(uint32_t *state, const uint8_t *in,
                                                                        const uint32_t slots[SCALE], uint8_t *out) {
    uint32_t slot = slots[*state & (SCALE - 1)];
    uint32_t next = (slot >> 20) * (*state >> SCALE_BITS) + (slot >> 8 & (SCALE - 1));
    /* Without a branch, which half the time would be mispredicted: states and STATE_LEAST are below 2^31. */
    uint32_t low = 0 - ((next - STATE_LEAST) >> 31);
    uint32_t filled = next << WORD_BITS | load_word(in);
    *state = next ^ ((next ^ filled) & low);
    *out = (uint8_t)slot;
    return in + (2 & low);
}

#if HAVE_AVX2
__attribute__((target("avx2"))) static inline __m256i look_up(const uint32_t *slots, __m256i index) {
    uint64_t pair0 = (uint64_t)_mm256_extract_epi64(index, 0), pair1 = (uint64_t)_mm256_extract_epi64(index, 1);
    uint64_t pair2 = (uint64_t)_mm256_extract_epi64(index, 2), pair3 = (uint64_t)_mm256_extract_epi64(index, 3);
    return _mm256_setr_epi32((int)slots[(uint32_t)pair0], (int)slots[pair0 >> 32], (int)slots[(uint32_t)pair1],
                             (int)slots[pair1 >> 32], (int)slots[(uint32_t)pair2], (int)slots[pair2 >> 32],
                             (int)slots[(uint32_t)pair3], (int)slots[pair3 >> 32]);
}

/* Take symbols out of all 32 states for as long as whole rounds of them, and words for one, are left; return how many. */
__attribute__((target("avx2,popcnt"))) static size_t
take_rounds_avx2(uint32_t states[LANES_MOST], const uint8_t **in, const uint8_t *end, const uint8_t *table_of,
                 const uint32_t *slots, uint8_t *out, size_t size) {
    const __m256i slot_mask = _mm256_set1_epi32(SCALE - 1), byte_mask = _mm256_set1_epi32(0xFF);
    const __m256i least = _mm256_set1_epi32(STATE_LEAST);
    const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const uint8_t *at = *in;
    __m256i x[VECTORS], value[VECTORS];
    for (size_t v = 0; v < VECTORS; v++)
        x[v] = _mm256_loadu_si256((const __m256i *)(states + v * LANES_OF_VECTOR));
    size_t i = 0;
    for (; i + LANES_MOST <= size && end - at >= 2 * LANES_MOST; i += LANES_MOST) {
        for (size_t v = 0; v < VECTORS; v++) {
            __m256i index = _mm256_and_si256(x[v], slot_mask);
            if (table_of) {
                __m128i table = _mm_loadl_epi64((const __m128i *)(table_of + i + v * LANES_OF_VECTOR));
                index = _mm256_or_si256(index, _mm256_slli_epi32(_mm256_cvtepu8_epi32(table), SCALE_BITS));
            }
            __m256i slot = look_up(slots, index);
            __m256i distance = _mm256_and_si256(_mm256_srli_epi32(slot, 8), slot_mask);
            x[v] = _mm256_mullo_epi32(_mm256_srli_epi32(slot, 20), _mm256_srli_epi32(x[v], SCALE_BITS));
            x[v] = _mm256_add_epi32(x[v], distance);
            value[v] = _mm256_and_si256(slot, byte_mask);
            __m256 low = _mm256_castsi256_ps(_mm256_sub_epi32(x[v], least)); /* negative: both are below 2^31 */
            unsigned needy = (unsigned)_mm256_movemask_ps(low);
            __m256i words = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)at));
            words = _mm256_shuffle_epi8(words, _mm256_load_si256((const __m256i *)taking_lanes[needy]));
            at += 2 * (size_t)__builtin_popcount(needy);
            __m256i filled = _mm256_or_si256(_mm256_slli_epi32(x[v], WORD_BITS), words);
            x[v] = _mm256_castps_si256(
                _mm256_blendv_ps(_mm256_castsi256_ps(x[v]), _mm256_castsi256_ps(filled), low));
        }
        __m256i halves =
            _mm256_packus_epi16(_mm256_packus_epi32(value[0], value[1]), _mm256_packus_epi32(value[2], value[3]));
        _mm256_storeu_si256((__m256i *)(out + i), _mm256_permutevar8x32_epi32(halves, in_order));
    }
    for (size_t v = 0; v < VECTORS; v++)
        _mm256_storeu_si256((__m256i *)(states + v * LANES_OF_VECTOR), x[v]);
    *in = at;
    return i;
}
#endif

/* Take symbols out of LANES_SOME states for as long as whole rounds of them, and words for one, are left; return how
 * many. */
static size_t take_rounds(uint32_t states[LANES_SOME], const uint8_t **in, const uint8_t *end, const uint8_t *table_of,
                          const uint32_t *slots, uint8_t *out, size_t size) {
    uint32_t fast[LANES_SOME]; /* only ever at constant indices: registers */
    const uint8_t *at = *in;
    size_t i = 0;
    memcpy(fast, states, sizeof fast);
    for (; i + LANES_SOME <= size && end - at >= 2 * LANES_SOME; i += LANES_SOME)
        for (size_t lane = 0; lane < LANES_SOME; lane++)
            at = take_symbol(&fast[lane], at, slots + (table_of ? table_of[i + lane] * SCALE : 0), out + i + lane);
    memcpy(states, fast, sizeof fast);
    *in = at;
    return i;
}

/* Tell the table of each byte: how many of the last keys of tables its key is greater than. */
static void find_tables(const uint8_t *keys, size_t size, const uint8_t *last_keys, size_t count, uint8_t *table_of) {
    uint8_t of_key[KEYS];
    for (size_t key = 0, table = 0; key < KEYS; key++) {
        of_key[key] = (uint8_t)table;
        table += table < count && key == last_keys[table];
    }
    for (size_t i = 0; i < size; i++)
        table_of[i] = of_key[keys[i]];
}

#if HAVE_AVX2
#define NEAR_KEYS 16

/* The same for keys of which only so many from the first last key on matter. */
__attribute__((target("avx2"))) static void find_tables_avx2(const uint8_t *keys, size_t size,
                                                             const uint8_t *last_keys, size_t count,
                                                             uint8_t *table_of) {
    uint8_t of_near[NEAR_KEYS] = {0};
    for (size_t table = 0; table < count; table++)
        for (size_t near = last_keys[table] - last_keys[0] + 1u; near < NEAR_KEYS; near++)
            of_near[near]++;
    const __m256i first = _mm256_set1_epi8((char)last_keys[0]), most = _mm256_set1_epi8(NEAR_KEYS - 1);
    const __m256i table_of_near = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)of_near));
    size_t i = 0;
    for (; i + 32 <= size; i += 32) {
        __m256i above = _mm256_subs_epu8(_mm256_loadu_si256((const __m256i *)(keys + i)), first);
        __m256i tables = _mm256_shuffle_epi8(table_of_near, _mm256_min_epu8(above, most));
        _mm256_storeu_si256((__m256i *)(table_of + i), tables);
    }
    find_tables(keys + i, size - i, last_keys, count, table_of + i);
}
#endif

static const uint8_t *take_rans(const uint8_t *in, const uint8_t *end, const uint8_t *keys, uint8_t *out, size_t size,
                                uint8_t *scratch, int vectors) {
    uint32_t frequencies[256], *slots = (uint32_t *)scratch, states[LANES_MOST];
    uint8_t *table_of = NULL, last_keys[CLASSES_MOST];
    size_t tables = 0;
    if (in == end)
        return NULL;
    size_t lanes = *in++;
    if (lanes != 1 && lanes != LANES_SOME && lanes != LANES_MOST)
        return NULL;
    do {
        in = tables < CLASSES_MOST ? take_table(in, end, &last_keys[tables], frequencies) : NULL;
        if (!in || (tables && last_keys[tables] <= last_keys[tables - 1]))
            return NULL;
        make_slots(frequencies, slots + tables * SCALE);
    } while (last_keys[tables++] < KEYS - 1);
    if (keys && tables > 1) {
        table_of = scratch + SLOTS_SIZE;
#if HAVE_AVX2
        if (vectors && last_keys[tables - 2] - last_keys[0] < NEAR_KEYS - 1)
            find_tables_avx2(keys, size, last_keys, tables - 1, table_of);
        else
#endif
            find_tables(keys, size, last_keys, tables - 1, table_of);
    }
    if ((size_t)(end - in) < 4 * lanes)
        return NULL;
    for (size_t lane = 0; lane < lanes; lane++, in += 4) {
        states[lane] = load_word(in) | load_word(in + 2) << 16;
        if (states[lane] >> 31)
            return NULL;
    }
    size_t i = 0;
#if HAVE_AVX2
    if (vectors && lanes == LANES_MOST)
        i = take_rounds_avx2(states, &in, end, table_of, slots, out, size);
    else
#endif
        if (lanes == LANES_SOME)
        i = take_rounds(states, &in, end, table_of, slots, out, size);
    (void)vectors;
    for (; i < size; i++) {
        static const uint8_t none[2] = {0, 0}; /* what lies behind the end is never taken, only looked at */
        const uint8_t *from = end - in >= 2 ? in : none;
        const uint32_t *table = slots + (table_of ? table_of[i] * SCALE : 0);
        const uint8_t *next = take_symbol(&states[i & (lanes - 1)], from, table, out + i);
        if (next != from && from == none)
            return NULL;
        in += next - from;
    }
    for (size_t lane = 0; lane < lanes; lane++)
        if (states[lane] != STATE_LEAST)
            return NULL;
    return in;
}

/* ---- few ----------------------------------------------------------------------------------------------------- */

struct bits {
    const uint8_t *in, *end;
    uint64_t waiting;
    uint32_t count; /* of waiting bits; what lies above is 0, or bits that come next */
};

static inline void fill_bits(struct bits *bits) {
    if (bits->end - bits->in >= 8) {
        bits->waiting |= load_little_endian(bits->in) << bits->count;
        bits->in += (63 - bits->count) / 8;
        bits->count |= 56;
        return;
    }
    for (; bits->count < 56 && bits->in < bits->end; bits->count += 8)
        bits->waiting |= (uint64_t)*bits->in++ << bits->count;
}

static inline void drop_bits(struct bits *bits, uint32_t size) {
    bits->waiting >>= size;
    bits->count -= size;
}

/* Take `size` (at most RICE_MOST) bits; 0 where there are no more. */
static inline int take_bits(struct bits *bits, uint32_t size, uint32_t *value) {
    fill_bits(bits);
    *value = (uint32_t)(bits->waiting & (((uint64_t)1 << size) - 1));
    if (bits->count < size)
        return 0;
    drop_bits(bits, size);
    return 1;
}

/* Take zeros and the one behind them, and count the zeros; 0 where there is no one. */
static inline int take_zeros(struct bits *bits, uint32_t *zeros) {
    for (*zeros = 0; fill_bits(bits), bits->count;) {
        uint32_t more = bits->waiting ? (uint32_t)__builtin_ctzll(bits->waiting) : 64;
        if (more < bits->count) {
            *zeros += more;
            drop_bits(bits, more + 1);
            return 1;
        }
        *zeros += bits->count;
        drop_bits(bits, bits->count);
    }
    return 0;
}

static uint8_t *put_bits(struct bits *bits, uint8_t *out, uint64_t value, uint32_t size) {
    bits->waiting |= value << bits->count;
    for (bits->count += size; bits->count >= 8; bits->count -= 8, bits->waiting >>= 8)
        *out++ = (uint8_t)bits->waiting;
    return out;
}

static uint8_t *put_zeros(struct bits *bits, uint8_t *out, uint32_t zeros) {
    for (; zeros >= 32; zeros -= 32)
        out = put_bits(bits, out, 0, 32);
    return put_bits(bits, out, (uint64_t)1 << zeros, zeros + 1);
}

/* Which of up to 64 bytes are `low` to `low` + `more`, as bits; of all where there are no bytes to look at. */
static inline __attribute__((always_inline)) uint64_t find_range(const uint8_t *bytes, size_t size, uint8_t low,
                                                                 uint8_t more) {
    uint64_t found = 0;
    for (size_t i = 0; i < size; i++)
        found |= (uint64_t)((uint8_t)((bytes ? bytes[i] : 0) - low) <= more) << i;
    return found;
}

#if HAVE_AVX2
__attribute__((target("avx2"))) static inline uint64_t find_range_avx2(const uint8_t *bytes, uint8_t low,
                                                                       uint8_t more) {
    const __m256i lows = _mm256_set1_epi8((char)low), most = _mm256_set1_epi8((char)more);
    uint64_t found = 0;
    for (size_t half = 0; half < 2; half++) {
        __m256i each = _mm256_sub_epi8(_mm256_loadu_si256((const __m256i *)(bytes + 32 * half)), lows);
        __m256i inside = _mm256_cmpeq_epi8(_mm256_min_epu8(each, most), each);
        found |= (uint64_t)(uint32_t)_mm256_movemask_epi8(inside) << 32 * half;
    }
    return found;
}

__attribute__((target("avx512f,avx512bw"))) static inline uint64_t find_range_avx512(const uint8_t *bytes, uint8_t low,
                                                                                     uint8_t more) {
    __m512i each = _mm512_sub_epi8(_mm512_loadu_si512(bytes), _mm512_set1_epi8((char)low));
    return _mm512_cmple_epu8_mask(each, _mm512_set1_epi8((char)more));
}
#endif

/* Write gaps and values of the bytes whose class is `low` to `low` + `more`. */
static inline __attribute__((always_inline)) uint8_t *
put_gaps(uint64_t (*find)(const uint8_t *bytes, uint8_t low, uint8_t more), const uint8_t *data,
         const uint8_t *class_of, size_t size, uint8_t low, uint8_t more, const struct few *few, struct bits *bits,
         uint8_t *out) {
    uint32_t gap = 0;
    for (size_t i = 0; i < size; i += 64) {
        size_t length = size - i < 64 ? size - i : 64;
        int whole = find && length == 64;
        uint64_t mine = whole ? find(class_of + i, low, more) : find_range(class_of + i, length, low, more);
        uint64_t filled = mine & ~(whole ? find(data + i, 0, 0) : find_range(data + i, length, 0, 0));
        for (; filled; filled &= filled - 1) {
            uint32_t place = (uint32_t)__builtin_ctzll(filled), value = data[i + place];
            uint64_t before = mine & (((uint64_t)1 << place) - 1);
            gap += (uint32_t)__builtin_popcountll(before);
            mine &= ~before;
            mine &= mine - 1;
            out = put_zeros(bits, out, gap >> few->rice);
            out = put_bits(bits, out, gap & ((1u << few->rice) - 1), few->rice);
            out = put_bits(bits, out, (value - 1) & 1, 1);
            if (few->order != ORDER_NONE) {
                uint32_t excess = excess_of(value), above = (excess >> few->order) + 1;
                uint32_t more_bits = 31u - (uint32_t)__builtin_clz(above);
                out = put_zeros(bits, out, more_bits);
                out = put_bits(bits, out, above & ((1u << more_bits) - 1), more_bits);
                out = put_bits(bits, out, excess & ((1u << few->order) - 1), few->order);
            }
            gap = 0;
        }
        gap += (uint32_t)__builtin_popcountll(mine);
    }
    out = put_zeros(bits, out, gap >> few->rice);
    return put_bits(bits, out, gap & ((1u << few->rice) - 1), few->rice);
}

/* Take a gap; UINT64_MAX where there is none. */
static inline uint64_t take_gap(struct bits *bits, uint32_t rice) {
    uint32_t quotient, rest;
    if (!take_zeros(bits, &quotient) || !take_bits(bits, rice, &rest))
        return UINT64_MAX;
    return ((uint64_t)quotient << rice) + rest;
}

/* Take a byte that is not zero; 0 where there is none. */
static inline uint32_t take_value(struct bits *bits, uint32_t order) {
    uint32_t direction, more_bits, above = 0, rest = 0;
    if (!take_bits(bits, 1, &direction))
        return 0;
    if (order != ORDER_NONE) {
        if (!take_zeros(bits, &more_bits) || more_bits > 7 || !take_bits(bits, more_bits, &above) ||
            !take_bits(bits, order, &rest))
            return 0;
        above += (1u << more_bits) - 1;
        rest += above << order;
    }
    uint32_t value = 1 + 2 * rest + direction;
    return value < 256 ? value : 0;
}

/* Fill in the bytes that have the keys `low` to `low` + `more` and are not zero; return 0 where they are damaged. */
static inline __attribute__((always_inline)) int
take_gaps(uint64_t (*find)(const uint8_t *bytes, uint8_t low, uint8_t more), struct bits *bits, const uint8_t *keys,
          size_t size, uint8_t low, uint8_t more, uint32_t rice, uint32_t order, uint8_t *out) {
    uint64_t gap = take_gap(bits, rice);
    for (size_t i = 0; i < size; i += 64) {
        size_t length = size - i < 64 ? size - i : 64;
        uint64_t mine = find && keys && length == 64 ? find(keys + i, low, more)
                                                     : find_range(keys ? keys + i : NULL, length, low, more);
        for (;;) {
            uint64_t left = (uint64_t)__builtin_popcountll(mine);
            if (gap >= left) {
                gap -= left;
                break;
            }
            for (; gap; gap--)
                mine &= mine - 1;
            uint32_t value = take_value(bits, order);
            out[i + (size_t)__builtin_ctzll(mine)] = (uint8_t)value;
            mine &= mine - 1;
            gap = take_gap(bits, rice);
            if (!value || gap > size)
                return 0;
        }
    }
    return !gap;
}

/* Both for one kind of vectors. */
struct gaps {
    uint8_t *(*put)(const uint8_t *data, const uint8_t *class_of, size_t size, uint8_t low, uint8_t more,
                    const struct few *few, struct bits *bits, uint8_t *out);
    int (*take)(struct bits *bits, const uint8_t *keys, size_t size, uint8_t low, uint8_t more, uint32_t rice,
                uint32_t order, uint8_t *out);
};

#define DEFINE_GAPS(NAME, TARGET, FIND)                                                                                \
    TARGET static uint8_t *put_gaps_##NAME(const uint8_t *data, const uint8_t *class_of, size_t size, uint8_t low,     \
                                           uint8_t more, const struct few *few, struct bits *bits, uint8_t *out) {     \
        return put_gaps(FIND, data, class_of, size, low, more, few, bits, out);                                        \
    }                                                                                                                  \
    TARGET static int take_gaps_##NAME(struct bits *bits, const uint8_t *keys, size_t size, uint8_t low, uint8_t more, \
                                       uint32_t rice, uint32_t order, uint8_t *out) {                                  \
        return take_gaps(FIND, bits, keys, size, low, more, rice, order, out);                                         \
    }

DEFINE_GAPS(portable, , NULL)
#if HAVE_AVX2
DEFINE_GAPS(avx2, __attribute__((target("avx2,popcnt"))), find_range_avx2)
DEFINE_GAPS(avx512, __attribute__((target("avx512f,avx512bw,popcnt"))), find_range_avx512)
static const struct gaps gaps_of[] = {
    {put_gaps_portable, take_gaps_portable}, {put_gaps_avx2, take_gaps_avx2}, {put_gaps_avx512, take_gaps_avx512}};
#else
static const struct gaps gaps_of[] = {{put_gaps_portable, take_gaps_portable}};
#endif

/* Write the parameters of each table, then for each where the bytes of its own that are not zero lie among them, and
 * what they are. */
static uint8_t *put_few(const uint8_t *data, const uint8_t *class_of, size_t size, const struct table *tables,
                        const uint8_t *table_of, size_t classes, size_t count, uint8_t *out, int vectors) {
    struct bits bits = {0};
    for (size_t i = 0; i < count; i++) {
        struct few few = few_of(tables[i].counts, tables[i].size);
        *out++ = tables[i].last_key;
        *out++ = (uint8_t)(few.rice | few.order << 5);
    }
    for (size_t i = 0, first = 0, next; i < count; i++, first = next) {
        struct few few = few_of(tables[i].counts, tables[i].size);
        for (next = first; next < classes && table_of[next] == i;)
            next++;
        if (!few.filled)
            continue;
        out = gaps_of[vectors].put(data, class_of, size, (uint8_t)first, (uint8_t)(next - 1 - first), &few, &bits, out);
    }
    if (bits.count)
        *out++ = (uint8_t)bits.waiting;
    return out;
}

static const uint8_t *take_few(const uint8_t *in, const uint8_t *end, const uint8_t *keys, uint8_t *out, size_t size,
                               int vectors) {
    const uint8_t *parameters = in;
    size_t count = 0;
    do {
        if (end - in < 2 || count == CLASSES_MOST || (count && in[0] <= in[-2]))
            return NULL;
        count++;
        in += 2;
    } while (in[-2] < KEYS - 1);
    struct bits bits = {in, end, 0, 0};
    memset(out, 0, size);
    for (unsigned low = 0; count; count--, low = parameters[0] + 1u, parameters += 2) {
        uint8_t more = (uint8_t)(parameters[0] - low);
        uint32_t rice = parameters[1] & 31, order = parameters[1] >> 5;
        if (rice != RICE_NONE && !gaps_of[vectors].take(&bits, keys, size, (uint8_t)low, more, rice, order, out))
            return NULL;
    }
    if (bits.waiting & ((1u << bits.count % 8) - 1))
        return NULL;
    return bits.in - bits.count / 8;
}

/* ---- bytes --------------------------------------------------------------------------------------------------- */

struct encoder {
    uint32_t counts[COUNTERS][CLASSES_MOST][256];
    struct table tables[CLASSES_MOST], few[CLASSES_MOST];
    struct symbol symbols[CLASSES_MOST][256];
};

size_t coder_scratch_size(size_t size) {
    size_t decoding = SLOTS_SIZE + size;
    size_t encoding = sizeof(struct encoder) + WORDS_ROOM(size);
    return decoding > encoding ? decoding : encoding;
}

size_t coder_room(size_t size) {
    /* Before it turns out that rANS does not pay: a word for each byte at most. */
    return 2 + CLASSES_MOST * TABLE_SIZE_MOST + 4 * LANES_MOST + 2 * size;
}

static size_t put_raw(const uint8_t *data, size_t size, uint8_t *out) {
    *out = CODED_RAW;
    memcpy(out + 1, data, size);
    return 1 + size;
}

size_t encode_bytes(const uint8_t *data, const uint8_t *class_of, const struct classes *classes, size_t size,
                    size_t slack, uint8_t *out, uint8_t *scratch, int vectors) {
    struct encoder *encoder = (struct encoder *)scratch;
    struct symbol *symbols_of[CLASSES_MOST];
    uint8_t table_of[CLASSES_MOST], few_of_class[CLASSES_MOST], *at = out;
    uint32_t whole[256] = {0}, frequencies[256];
    count_bytes(data, class_of, size, classes, encoder->counts);
    for (size_t class = 0; class < classes->count; class++)
        add_counts(whole, encoder->counts[0][class], whole);
    if (whole[data[0]] == size) {
        *at++ = CODED_CONSTANT;
        *at++ = data[0];
        return (size_t)(at - out);
    }
    if (rans_cost(whole, size) >= (uint64_t)size * 8 * 256)
        return put_raw(data, size, out); /* noise, most often of the last bits: which key it has makes no difference */
    size_t count = make_tables(classes, encoder->counts[0], rans_cost, encoder->tables, table_of);
    size_t estimate = (size_t)(cost_of_tables(encoder->tables, count) / (8 * 256));
    int most = estimate >= LANES_MOST_FROM || slack >= 4 * (LANES_MOST - LANES_SOME);
    size_t lanes = size < LANES_SOME_FROM ? 1 : most ? LANES_MOST : LANES_SOME;
    if (size - whole[0] <= size / FEW_FROM) {
        struct table *tables = encoder->few;
        size_t few_count = make_tables(classes, encoder->counts[0], few_cost, tables, few_of_class);
        if (cost_of_tables(tables, few_count) / (8 * 256) <= estimate + 4 * lanes + slack) {
            *at++ = CODED_FEW;
            at = put_few(data, class_of, size, tables, few_of_class, classes->count, few_count, at, vectors);
            return (size_t)(at - out);
        }
    }
    if (estimate + 4 * lanes + slack >= size - size / NOISE_PARTS)
        return put_raw(data, size, out);
    *at++ = CODED_RANS;
    *at++ = (uint8_t)lanes;
    for (size_t i = 0; i < count; i++) {
        scale_counts(encoder->tables[i].counts, encoder->tables[i].size, frequencies);
        make_symbols(frequencies, encoder->symbols[i]);
        at = put_table(at, encoder->tables[i].last_key, frequencies);
    }
    for (size_t class = 0; class < classes->count; class++)
        symbols_of[class] = encoder->symbols[table_of[class]];
    at = put_rans(data, class_of, size, lanes, symbols_of, at, scratch + sizeof *encoder, vectors);
    return (size_t)(at - out) > size ? put_raw(data, size, out) : (size_t)(at - out);
}

const uint8_t *find_raw(const uint8_t *in, const uint8_t *end, size_t size) {
    return end - in >= 2 && *in == CODED_RAW && (size_t)(end - in) > size ? in + 1 : NULL;
}

const uint8_t *decode_bytes(const uint8_t *in, const uint8_t *end, const uint8_t *keys, uint8_t *out, size_t size,
                            uint8_t *scratch, int vectors) {
    if (end - in < 2)
        return NULL;
    switch (*in++) {
    case CODED_RAW:
        if ((size_t)(end - in) < size)
            return NULL;
        memcpy(out, in, size);
        return in + size;
    case CODED_CONSTANT: memset(out, *in, size); return in + 1;
    case CODED_FEW: return take_few(in, end, keys, out, size, vectors);
    case CODED_RANS: return take_rans(in, end, keys, out, size, scratch, vectors);
    default: return NULL;
    }
}
