/* The entropy coder: a plane as runs of bytes that are alike, each raw, constant, sparse or rANS-coded.
 *
 * Owns speed and nothing else: reference_coders.py (encode_runs, decode_runs) defines every byte, docs/format.md says it in
 * prose. Pure functions over the memory they are given. The decoder believes nothing: it reads and writes nothing out
 * of bounds whatever the bytes are, and says that they are damaged where they are not what the encoder makes.
 *
 * rANS is Duda's (Asymmetric numeral systems, arXiv:1311.2540), with 12-bit probabilities, states below 2^31, words of
 * 16 bits, division by reciprocals and interleaved states as in Giesen's ryg_rans and arXiv:1402.3392.
 */
#include "runs.h"

#include <string.h>

enum { RUN_RAW, RUN_CONSTANT, RUN_RANS, RUN_SPARSE };

#define SCALE_BITS 12
#define SCALE (1u << SCALE_BITS)
#define STATE_LEAST (1u << 15)
#define WORD_BITS 16
#define LANES 8          /* interleaved states of a long run, */
#define LANES_FROM 1024  /* which has so many symbols; a shorter one has one state */
#define SPARSE_FROM 8    /* at most one byte in so many of a sparse run is not zero */
#define CLASS_MOST 31    /* the bits of the longest gap */
#define NOISE_PARTS 100  /* what would get smaller by less than one part in so many is stored raw */
#define RUN_COST (24 * 8) /* bits that a run costs by being one */
#define SYMBOL_COST 8     /* bits that a symbol costs in the table of its run */
#define VARINT_SIZE_MOST 5

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

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define LITTLE_ENDIAN_WORD(word) __builtin_bswap16(word)
#else
#define LITTLE_ENDIAN_WORD(word) (word)
#endif

static inline uint32_t load_word(const uint8_t *at) {
    uint16_t word;
    memcpy(&word, at, sizeof word);
    return LITTLE_ENDIAN_WORD(word);
}

static inline void store_word(uint8_t *at, uint32_t value) {
    uint16_t word = LITTLE_ENDIAN_WORD((uint16_t)value);
    memcpy(at, &word, sizeof word);
}

/* ---- counts, costs, frequencies ------------------------------------------------------------------------------ */

static void count_bytes(const uint8_t *data, size_t size, uint32_t counts[256]) {
    /* Four tables, because equal bytes one behind the other would wait for each other's count. */
    uint32_t tables[4][256];
    memset(tables, 0, sizeof tables);
    size_t i = 0;
    for (; i + 8 <= size; i += 8) {
        uint64_t eight;
        memcpy(&eight, data + i, sizeof eight);
        if (!eight) { /* most of a sparse plane */
            tables[0][0] += 8;
            continue;
        }
        for (size_t k = 0; k < 8; k++)
            tables[k % 4][data[i + k]]++;
    }
    for (; i < size; i++)
        tables[0][data[i]]++;
    for (size_t value = 0; value < 256; value++)
        counts[value] = tables[0][value] + tables[1][value] + tables[2][value] + tables[3][value];
}

static void add_counts(const uint32_t left[256], const uint32_t right[256], uint32_t sum[256]) {
    for (size_t value = 0; value < 256; value++)
        sum[value] = left[value] + right[value];
}

/* Return log2 of a number from 1 on in 1/256 bits, by a parabola between powers of two (0.02 bits off at most). */
static inline uint64_t log2_parts(uint32_t number) {
    uint32_t exponent = 31u - (uint32_t)__builtin_clz(number);
    uint32_t fraction = (uint32_t)(((uint64_t)number << 8 >> exponent) & 0xFF);
    return (exponent << 8) + fraction + (fraction * (256 - fraction) * 88 >> 16);
}

/* Estimate what coding the bytes so counted as one run costs, in 1/256 bits. */
static uint64_t estimate_cost(const uint32_t counts[256], size_t size) {
    uint64_t information = size * log2_parts((uint32_t)size), distinct = 0;
    for (size_t value = 0; value < 256; value++)
        if (counts[value]) {
            information -= counts[value] * log2_parts(counts[value]);
            distinct++;
        }
    return information + (RUN_COST + SYMBOL_COST * distinct) * 256;
}

/* Tell whether the bytes so counted are not worth coding: they would get smaller by next to nothing, or not at all. */
static int is_noise(const uint32_t counts[256], size_t size) {
    return estimate_cost(counts, size) >= (uint64_t)(size - size / NOISE_PARTS) * 8 * 256;
}

/* Scale counts of `size` bytes, at least two of them different, to frequencies whose sum is SCALE. */
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

/* ---- rANS ---------------------------------------------------------------------------------------------------- */

/* Write the frequencies: the least and the greatest value that there is, and what lies between them as varints, where
 * a 0 is followed by how many more zeros there are. */
static uint8_t *put_table(uint8_t *out, const uint32_t frequencies[256]) {
    size_t first = 0, last = 255;
    while (!frequencies[first])
        first++;
    while (!frequencies[last])
        last--;
    *out++ = (uint8_t)first;
    *out++ = (uint8_t)last;
    for (size_t value = first; value <= last; value++) {
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

static const uint8_t *take_table(const uint8_t *in, const uint8_t *end, uint32_t frequencies[256]) {
    if (end - in < 2)
        return NULL;
    size_t value = in[0], last = in[1];
    uint32_t sum = 0;
    in += 2;
    memset(frequencies, 0, 256 * sizeof *frequencies);
    for (; value <= last; value++) {
        in = take_varint(in, end, &frequencies[value]);
        if (!in || frequencies[value] >= SCALE)
            return NULL;
        sum += frequencies[value];
        if (!frequencies[value]) {
            if (in == end)
                return NULL;
            value += *in++;
        }
    }
    return sum == SCALE ? in : NULL;
}

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

/* Write the body of a rANS run, or return NULL when it would not be smaller than the bytes. */
static uint8_t *put_rans(const uint8_t *data, size_t size, const uint32_t counts[256], uint8_t *out,
                         uint8_t *scratch) {
    uint32_t frequencies[256];
    struct symbol symbols[256];
    scale_counts(counts, size, frequencies);
    make_symbols(frequencies, symbols);
    uint32_t states[LANES];
    size_t lanes = size < LANES_FROM ? 1 : LANES;
    for (size_t lane = 0; lane < lanes; lane++)
        states[lane] = STATE_LEAST;
    uint8_t *words_end = scratch + 2 + 2 * size, *words = words_end;
    size_t i = size; /* from the last symbol to the first, since what goes in last comes out first */
    for (; i % lanes; i--)
        words = put_symbol(&states[(i - 1) % lanes], &symbols[data[i - 1]], words);
    if (lanes == LANES) {
        uint32_t fast[LANES]; /* only ever at constant indices: registers */
        memcpy(fast, states, sizeof fast);
        for (; i; i -= LANES)
            for (size_t lane = LANES; lane-- > 0;)
                words = put_symbol(&fast[lane], &symbols[data[i - LANES + lane]], words);
        memcpy(states, fast, sizeof fast);
    }
    for (; i; i--)
        words = put_symbol(&states[0], &symbols[data[i - 1]], words);
    uint8_t table[2 + 2 * 256];
    size_t table_size = (size_t)(put_table(table, frequencies) - table), words_size = (size_t)(words_end - words);
    if (table_size + 4 * lanes + words_size >= size)
        return NULL;
    memcpy(out, table, table_size);
    out += table_size;
    for (size_t lane = 0; lane < lanes; lane++, out += 4) {
        store_word(out, states[lane]);
        store_word(out + 2, states[lane] >> 16);
    }
    memcpy(out, words, words_size);
    return out + words_size;
}

/* A slot's symbol in bits 0-7, the symbol's frequency in 8-19, the slot's distance from its first slot in 20-31. */
static void make_slots(const uint32_t frequencies[256], uint32_t slots[SCALE]) {
    uint32_t *slot = slots;
    for (uint32_t value = 0; value < 256; value++)
        for (uint32_t i = 0; i < frequencies[value]; i++)
            *slot++ = value | frequencies[value] << 8 | i << 20;
}

/* Take one symbol out of a state that needs a word from `in` where it becomes small, which has to be readable. */
static inline __attribute__((always_inline)) const uint8_t *take_symbol(uint32_t *state, const uint8_t *in,
                                                                        const uint32_t slots[SCALE], uint8_t *out) {
    uint32_t slot = slots[*state & (SCALE - 1)];
    uint32_t next = (slot >> 8 & (SCALE - 1)) * (*state >> SCALE_BITS) + (slot >> 20);
    /* Without a branch, which half the time would be mispredicted: states and STATE_LEAST are below 2^31. */
    uint32_t low = 0 - ((next - STATE_LEAST) >> 31);
    uint32_t filled = next << WORD_BITS | load_word(in);
    *state = next ^ ((next ^ filled) & low);
    *out = (uint8_t)slot;
    return in + (2 & low);
}

static const uint8_t *take_rans(const uint8_t *in, const uint8_t *end, uint8_t *out, size_t size) {
    uint32_t frequencies[256], slots[SCALE], states[LANES];
    size_t lanes = size < LANES_FROM ? 1 : LANES, i = 0;
    in = take_table(in, end, frequencies);
    if (!in || (size_t)(end - in) < 4 * lanes)
        return NULL;
    make_slots(frequencies, slots);
    for (size_t lane = 0; lane < lanes; lane++, in += 4) {
        states[lane] = load_word(in) | load_word(in + 2) << 16;
        if (states[lane] >> 31)
            return NULL;
    }
    if (lanes == LANES) {
        uint32_t fast[LANES];
        memcpy(fast, states, sizeof fast);
        for (; i + LANES <= size && end - in >= 2 * LANES; i += LANES)
            for (size_t lane = 0; lane < LANES; lane++)
                in = take_symbol(&fast[lane], in, slots, out + i + lane);
        memcpy(states, fast, sizeof fast);
    }
    for (; i < size; i++) {
        uint8_t last[2] = {0, 0}; /* what lies behind the end is never taken, only looked at */
        const uint8_t *from = end - in >= 2 ? in : last;
        const uint8_t *next = take_symbol(&states[i % lanes], from, slots, out + i);
        if (next != from && from == last)
            return NULL;
        in += next - from;
    }
    for (size_t lane = 0; lane < lanes; lane++)
        if (states[lane] != STATE_LEAST)
            return NULL;
    return in;
}

/* ---- runs ---------------------------------------------------------------------------------------------------- */

static uint8_t *put_run(const uint8_t *data, size_t size, const uint32_t counts[256], int may_be_sparse, uint8_t *out,
                        uint8_t *scratch);

/* Write the body of a sparse run: how many bytes are not zero, the class of the gap before each (the bits that its
 * length has) as a run, these bytes as a run, and the bits of the gaps below their leading ones. NULL when it would not
 * be smaller than the bytes. */
static uint8_t *put_sparse(const uint8_t *data, size_t size, uint32_t filled, uint8_t *out, uint8_t *scratch) {
    uint8_t *classes = scratch, *values = classes + filled, *bits = values + filled;
    uint8_t *bits_end = bits, *inner = bits + 4 * (size_t)filled + 8;
    uint64_t waiting = 0;
    uint32_t waiting_bits = 0;
    size_t found = 0, gap_start = 0;
    for (size_t i = 0; i < size; i++) {
        uint64_t eight;
        while (i + 8 <= size && (memcpy(&eight, data + i, 8), !eight))
            i += 8;
        if (i >= size)
            break;
        if (!data[i])
            continue;
        uint32_t gap = (uint32_t)(i - gap_start), class = gap ? 32u - (uint32_t)__builtin_clz(gap) : 0;
        classes[found] = (uint8_t)class;
        values[found++] = data[i];
        gap_start = i + 1;
        if (class > 1) {
            waiting |= (uint64_t)(gap ^ 1u << (class - 1)) << waiting_bits;
            for (waiting_bits += class - 1; waiting_bits >= 8; waiting_bits -= 8, waiting >>= 8)
                *bits_end++ = (uint8_t)waiting;
        }
    }
    if (waiting_bits)
        *bits_end++ = (uint8_t)waiting;
    uint32_t counts[256];
    uint8_t *at = put_varint(out, filled);
    count_bytes(classes, filled, counts);
    at = put_run(classes, filled, counts, 0, at, inner);
    count_bytes(values, filled, counts);
    at = put_run(values, filled, counts, 0, at, inner);
    size_t bits_size = (size_t)(bits_end - bits);
    if ((size_t)(at - out) + bits_size >= size)
        return NULL;
    memcpy(at, bits, bits_size);
    return at + bits_size;
}

static const uint8_t *take_run(const uint8_t *in, const uint8_t *end, int may_be_sparse, uint8_t *out, size_t size,
                               uint8_t *scratch);

static const uint8_t *take_sparse(const uint8_t *in, const uint8_t *end, uint8_t *out, size_t size, uint8_t *scratch) {
    uint32_t filled;
    in = take_varint(in, end, &filled);
    if (!in || !filled || filled > size / SPARSE_FROM)
        return NULL;
    uint8_t *classes = scratch, *values = scratch + filled;
    in = take_run(in, end, 0, classes, filled, NULL);
    in = in ? take_run(in, end, 0, values, filled, NULL) : NULL;
    if (!in)
        return NULL;
    memset(out, 0, size);
    uint64_t waiting = 0, position = 0;
    uint32_t waiting_bits = 0;
    for (size_t i = 0; i < filled; i++, position++) {
        uint32_t class = classes[i];
        if (class > CLASS_MOST)
            return NULL;
        if (class) {
            uint32_t more = class - 1;
            for (; waiting_bits < more; waiting_bits += 8) {
                if (in == end)
                    return NULL;
                waiting |= (uint64_t)*in++ << waiting_bits;
            }
            uint32_t leading = 1u << more;
            position += leading | (waiting & (leading - 1));
            waiting >>= more;
            waiting_bits -= more;
        }
        if (position >= size)
            return NULL;
        out[position] = values[i];
    }
    return waiting ? NULL : in;
}

/* Write one run, of a kind and a body: at most size + 1 bytes. */
static uint8_t *put_run(const uint8_t *data, size_t size, const uint32_t counts[256], int may_be_sparse, uint8_t *out,
                        uint8_t *scratch) {
    uint8_t *end = NULL;
    if (counts[data[0]] == size) {
        *out = RUN_CONSTANT;
        out[1] = data[0];
        return out + 2;
    }
    uint32_t filled = (uint32_t)size - counts[0];
    if (may_be_sparse && filled <= size / SPARSE_FROM) {
        *out = RUN_SPARSE;
        end = put_sparse(data, size, filled, out + 1, scratch);
    } else if (!is_noise(counts, size)) {
        *out = RUN_RANS;
        end = put_rans(data, size, counts, out + 1, scratch);
    }
    if (end)
        return end;
    *out = RUN_RAW;
    memcpy(out + 1, data, size);
    return out + 1 + size;
}

static const uint8_t *take_run(const uint8_t *in, const uint8_t *end, int may_be_sparse, uint8_t *out, size_t size,
                               uint8_t *scratch) {
    if (end - in < 2)
        return NULL;
    switch (*in++) {
    case RUN_RAW:
        if ((size_t)(end - in) < size)
            return NULL;
        memcpy(out, in, size);
        return in + size;
    case RUN_CONSTANT: memset(out, *in, size); return in + 1;
    case RUN_RANS: return take_rans(in, end, out, size);
    case RUN_SPARSE: return may_be_sparse ? take_sparse(in, end, out, size, scratch) : NULL;
    default: return NULL;
    }
}

/* ---- planes -------------------------------------------------------------------------------------------------- */

size_t runs_scratch_size(size_t size) { return 3 * size + 64; }

size_t runs_room(size_t size, size_t segments) { return size + segments * (VARINT_SIZE_MOST + 2) + 2 + 2 * 256; }

size_t encode_segments(const uint8_t *data, size_t size, const size_t *lengths, size_t count, uint8_t *out,
                       uint8_t *scratch) {
    uint32_t counts[SEGMENTS_MOST][256], whole[256] = {0}, both[256];
    size_t begin = 0;
    for (size_t i = 0; i < count; begin += lengths[i++]) {
        count_bytes(data + begin, lengths[i], counts[i]);
        add_counts(whole, counts[i], whole);
    }
    if (count == 1 || is_noise(whole, size))
        return (size_t)(put_run(data, size, whole, 1, put_varint(out, (uint32_t)size), scratch) - out);
    uint8_t *at = out;
    for (size_t i = 0; i < count;) {
        /* A run takes its neighbour in for as long as that costs no more than a run of the neighbour's own. */
        uint32_t *run = counts[i];
        size_t length = lengths[i];
        uint64_t cost = estimate_cost(run, length);
        for (i++; i < count; i++) {
            add_counts(run, counts[i], both);
            uint64_t cost_both = estimate_cost(both, length + lengths[i]);
            if (cost_both > cost + estimate_cost(counts[i], lengths[i]))
                break;
            memcpy(run, both, sizeof both);
            length += lengths[i];
            cost = cost_both;
        }
        at = put_run(data, length, run, 1, put_varint(at, (uint32_t)length), scratch);
        data += length;
    }
    return (size_t)(at - out);
}

const uint8_t *decode_runs(const uint8_t *in, const uint8_t *end, uint8_t *out, size_t size, uint8_t *scratch) {
    while (in && size) {
        uint32_t length;
        in = take_varint(in, end, &length);
        if (!in || !length || length > size)
            return NULL;
        in = take_run(in, end, 1, out, length, scratch);
        out += length;
        size -= length;
    }
    return in;
}
