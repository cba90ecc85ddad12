/* Records around bytes that stay as they are; docs/format.md, "Record", has the layout. One pass over the payload. */
#include "raw_records.h"

#include <string.h>

#define XXH_INLINE_ALL
#include "vendor/xxhash.h"

#define ALIGNMENT 8
#define HEADER_SIZE 48
#define CHECKED_SIZE 44 /* of the header, by its last four bytes */
#define TYPE_CHUNK 2

static void store(uint8_t *to, uint64_t value, int size) {
    for (int i = 0; i < size; i++)
        to[i] = (uint8_t)(value >> 8 * i);
}

size_t raw_record_size(size_t payload_size) {
    return (HEADER_SIZE + payload_size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

void write_raw_records(int encoding, const uint8_t *data, const struct span *spans, const uint8_t *ids, size_t count,
                       uint64_t number, uint8_t *out) {
    for (size_t i = 0; i < count; i++) {
        size_t size = spans[i].size, record_size = raw_record_size(size);
        const uint8_t *payload = data + spans[i].start;
        memcpy(out, "ckR1", 4);
        out[4] = TYPE_CHUNK;
        out[5] = (uint8_t)encoding;
        store(out + 6, 0, 2); /* no bases */
        store(out + 8, size, 4);
        store(out + 12, size, 4);
        store(out + 16, number + i, 8);
        memcpy(out + 24, ids + i * ID_SIZE, ID_SIZE);
        store(out + 40, XXH3_64bits(payload, size), 4);
        store(out + CHECKED_SIZE, XXH3_64bits(out, CHECKED_SIZE), 4);
        memcpy(out + HEADER_SIZE, payload, size);
        memset(out + HEADER_SIZE + size, 0, record_size - HEADER_SIZE - size);
        out += record_size;
    }
}
