/* Records of chunks that are stored as they are, ready to be appended: reference.raw_records is the definition. */
#ifndef CKPTFS_RAW_RECORDS_H
#define CKPTFS_RAW_RECORDS_H

#include <stddef.h>
#include <stdint.h>

#include "hash.h"

/* Where a chunk lies in the bytes that were cut. */
struct span {
    uint64_t start, size;
};

/* The size of a record around a payload of so many bytes, padding included. */
HIDDEN size_t raw_record_size(size_t payload_size);

/* Write the records of `count` chunks of `data` to `out`, one behind the other; the first has the number `number`. */
HIDDEN void write_raw_records(int encoding, const uint8_t *data, const struct span *spans, const uint8_t *ids,
                              size_t count, uint64_t number, uint8_t *out);

#endif
