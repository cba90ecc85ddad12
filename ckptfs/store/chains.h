/* Chains of deltas, decoded in one go; defined by reference_records.py, see chains.c. */
#ifndef CKPTFS_CHAINS_H
#define CKPTFS_CHAINS_H

#include <stddef.h>
#include <stdint.h>

#include "hash.h"

/* Of a link in a packed list: where its payload begins, its number, its place, 8 bytes each; the stored and the raw size,
 * 4 each; level and encoding, a byte each; how many bases it has, 2. */
#define LINK_SIZE 36
#define LEVELS_MOST 256
#define NO_PLACE UINT64_MAX

/* A chunk of a chain. It has a place in what is asked for, or gets room on its level until others need that. */
struct link {
    uint64_t payload, number;
    size_t stored_size, size, base_count;
    const uint8_t *bases; /* which links these are, 8 bytes each */
    unsigned level, encoding;
    int has_place;
    uint8_t *at;    /* where its bytes are, or belong */
    uint64_t begin; /* of its room: how much had been written on its level before */
    int is_decoded, tries;
};

/* All links, what they are decoded from, and where to: `level_size` bytes of `work` for each level but the first. In
 * `joined` there is room for the largest of them. */
struct chains {
    const uint8_t *data;
    size_t data_size;
    struct link *links;
    uint8_t *work, *joined, *scratch;
    size_t level_size;
    uint64_t written[LEVELS_MOST], seed;
    hash_function hash;
    int vectors;
};

/* The scratch memory, aligned to 8 bytes, that links of up to so many raw bytes take. */
HIDDEN size_t chains_scratch_size(size_t size_most);

/* Decode a link that has a place, and what it rests on. Return 1 when its bytes are there and have the id of its record;
 * 0 when they are not what was written, rest on a chunk in another encoding than take_payload knows, or when there is
 * too little room: what lies in its place then means nothing. */
HIDDEN int take_link(struct chains *chains, size_t index);

#endif
