/* Chains of deltas: what is asked for is decoded in order, each chunk right before the first one that rests on it.
 *
 * So a base was mostly written a moment before it is needed, and is in the cache. Each level has room of its own, which
 * is written round and round: neighbours lie one behind the other, and a delta's bases need not be copied together. A
 * chunk that was written over and is needed again is decoded again. Believes nothing, as coder.c.
 */
#include "chains.h"

#include <string.h>

#include "delta.h"
#include "little_endian.h"
#include "stored_chunks.h"

#define DELTA 3
#define DELTA_HEAD_SIZE 6 /* width, phase, and 4 bytes of skip */
#define TRIES_MOST 2      /* so often a chunk is decoded at most, however chunks rest on one another */

static struct link *base_of(const struct chains *chains, const struct link *link, size_t k) {
    return &chains->links[load_little_endian(link->bases + 8 * k)];
}

static size_t larger(size_t one, size_t other) { return one > other ? one : other; }

size_t chains_scratch_size(size_t size_most) {
    return larger(difference_scratch_size(size_most), chunk_scratch_size(size_most));
}

/* Whether a chunk was decoded and nothing has been written over it since. */
static int is_there(const struct chains *chains, const struct link *link) {
    return link->is_decoded &&
           (link->has_place || chains->written[link->level] - link->begin <= chains->level_size);
}

/* Give a chunk room on its level, behind the one before or, where the end is near, at the front again. */
static int make_room(struct chains *chains, struct link *link) {
    uint64_t *written = &chains->written[link->level];
    if (!link->level || !chains->level_size || link->size > chains->level_size)
        return 0;
    size_t start = (size_t)(*written % chains->level_size);
    if (link->size > chains->level_size - start) {
        *written += chains->level_size - start;
        start = 0;
    }
    link->begin = *written;
    *written += link->size;
    link->at = chains->work + (link->level - 1) * chains->level_size + start;
    return 1;
}

/* Return as many bytes as a chunk has, from `skip` on, of its bases, which are taken as one behind the other; NULL where
 * they are not that many or have been written over. */
static const uint8_t *join_bases(const struct chains *chains, const struct link *link, size_t skip) {
    const uint8_t *first = base_of(chains, link, 0)->at, *end = first;
    size_t size = 0;
    for (size_t k = 0; k < link->base_count; k++) {
        const struct link *base = base_of(chains, link, k);
        if (!is_there(chains, base))
            return NULL;
        first = base->at == end ? first : NULL;
        end = base->at + base->size;
        size += base->size;
    }
    if (skip > size || link->size > size - skip)
        return NULL;
    if (first)
        return first + skip;
    uint8_t *at = chains->joined;
    for (size_t k = 0, left = link->size; left; k++) {
        const struct link *base = base_of(chains, link, k);
        size_t begin = base->size < skip ? base->size : skip;
        size_t part = base->size - begin < left ? base->size - begin : left;
        memcpy(at, base->at + begin, part);
        at += part;
        left -= part;
        skip -= begin;
    }
    return chains->joined;
}

static int take_delta(const struct chains *chains, const struct link *link) {
    const uint8_t *payload = chains->data + link->payload;
    if (link->stored_size < DELTA_HEAD_SIZE)
        return 0;
    struct elements elements = {link->size, payload[0], payload[1]};
    if ((elements.width != 1 && elements.width != 2 && elements.width != 4 && elements.width != 8) ||
        elements.phase >= elements.width)
        return 0;
    size_t skip = payload[2] | (size_t)payload[3] << 8 | (size_t)payload[4] << 16 | (size_t)payload[5] << 24;
    const uint8_t *base = join_bases(chains, link, skip);
    return base && decode_difference(&elements, payload + DELTA_HEAD_SIZE, link->stored_size - DELTA_HEAD_SIZE, base,
                                     link->at, chains->scratch, chains->vectors);
}

/* Decode a chunk, and before it those that it rests on and that are not there; return 0 where that cannot be. */
static int decode_link(struct chains *chains, struct link *link) {
    if (is_there(chains, link))
        return 1;
    if (link->tries == TRIES_MOST)
        return 0;
    link->tries++;
    link->is_decoded = 0;
    for (size_t k = 0; k < link->base_count; k++) {
        struct link *base = base_of(chains, link, k);
        if (base->level <= link->level || !decode_link(chains, base))
            return 0;
    }
    if (!link->has_place && !make_room(chains, link))
        return 0;
    if (link->base_count)
        link->is_decoded = link->encoding == DELTA && take_delta(chains, link);
    else
        link->is_decoded = take_payload(link->encoding, chains->data + link->payload, link->stored_size, link->at,
                                        link->size, chains->scratch, chains->vectors);
    return link->is_decoded;
}

int take_link(struct chains *chains, size_t index) {
    struct link *link = &chains->links[index];
    struct wanted wanted = {link->number, chains->seed, link->size};
    size_t head_size = HEADER_SIZE + 8 * link->base_count;
    if (link->payload < head_size)
        return 0;
    const uint8_t *record = chains->data + link->payload - head_size;
    return is_record_of(record, head_size, &wanted) && decode_link(chains, link) &&
           has_id(record, link->at, &wanted, chains->hash);
}
