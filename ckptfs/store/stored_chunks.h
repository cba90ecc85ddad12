/* Chunks out of their records, verified; defined by reference_records.py, see stored_chunks.c. */
#ifndef CKPTFS_STORED_CHUNKS_H
#define CKPTFS_STORED_CHUNKS_H

#include <stddef.h>
#include <stdint.h>

#include "hash.h"

/* Of a place in a packed list: where the record begins, the chunk's number and its size, 8 bytes each. */
#define PLACE_SIZE 24

/* What a record has to hold. */
struct wanted {
    uint64_t number, seed;
    size_t size;
};

/* The scratch memory, aligned to 8 bytes, that a chunk of so many bytes takes. */
HIDDEN size_t chunk_scratch_size(size_t size);

/* Take a chunk out of the record at `record`, behind which lie `left` bytes in all. Return 1 when `out` then has its
 * bytes and they have the id; 0 when they are not what was written, or stored in another way than raw or in planes that
 * are raw or coded: `out` then means nothing. */
HIDDEN int take_chunk(const uint8_t *record, size_t left, const struct wanted *wanted, uint8_t *out, uint8_t *scratch,
                      hash_function hash, int vectors);

#endif
