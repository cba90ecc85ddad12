/* Chunks out of their records, verified; defined by reference_records.py, see stored_chunks.c. */
#ifndef CKPTFS_STORED_CHUNKS_H
#define CKPTFS_STORED_CHUNKS_H

#include <stddef.h>
#include <stdint.h>

#include "hash.h"

/* Of a place in a packed list: where the record begins, the chunk's number and its size, 8 bytes each. */
#define PLACE_SIZE 24
#define HEADER_SIZE 48 /* of a record */

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

/* Tell how long a record is, padding included, if it is that of a chunk: its header holds, neither size in it is more
 * than `size_most`, it rests on no more chunks than any does, and all of it lies in the `left` bytes at `record`. Otherwise 0. */
HIDDEN size_t chunk_record_size(const uint8_t *record, size_t left, uint64_t size_most);

/* Tell whether bases and payload of such a record are what its header's check says. */
HIDDEN int is_intact(const uint8_t *record);

/* Write the row of the table `chunks` for such a record, which lies at `offset` in a pack; it has `location_size` bytes. */
HIDDEN size_t location_size(const uint8_t *record);
HIDDEN void write_location(const uint8_t *record, uint32_t pack, uint64_t offset, uint8_t *row);

/* The steps of taking a chunk. Tell whether the header of a record, of which `left` bytes are there, is whole and that of the chunk;
 * take the chunk out of the payload, which may be in any encoding, and 0 is returned for others than said above; tell
 * whether the bytes of the chunk have the id that its header says. */
HIDDEN int is_record_of(const uint8_t *record, size_t left, const struct wanted *wanted);
HIDDEN int take_payload(unsigned encoding, const uint8_t *payload, size_t stored_size, uint8_t *out, size_t size,
                        uint8_t *scratch, int vectors);
HIDDEN int has_id(const uint8_t *record, const uint8_t *raw, const struct wanted *wanted, hash_function hash);

#endif
