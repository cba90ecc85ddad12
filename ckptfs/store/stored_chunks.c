/* From records to chunks; docs/format.md, "Record header" and "Planes", has the layouts. */
#include "stored_chunks.h"

#include <string.h>

#include "coder.h"
#include "planes.h"

#define XXH_INLINE_ALL
#include "vendor/xxhash.h"

#define CHECKED_SIZE 44 /* of the header, by its last four bytes */
#define TYPE_CHUNK 2
#define ENTRY_SIZE 5 /* of a plane, in the table of a payload */

enum encoding { RAW = 0, PLANES = 2, WAITING = 4 };
enum plane_kind { PLANE_RAW = 0, PLANE_CODED = 2 };

static uint64_t load(const uint8_t *from, int size) {
    uint64_t value = 0;
    for (int i = 0; i < size; i++)
        value |= (uint64_t)from[i] << 8 * i;
    return value;
}

size_t chunk_scratch_size(size_t size) { return coder_scratch_size(size) + size; }

/* Join the planes of a payload to `out`; return 0 where they are damaged or of another kind. */
static int take_planes(const uint8_t *payload, size_t stored_size, uint8_t *out, size_t size, uint8_t *scratch,
                       int vectors) {
    const uint8_t *planes[WIDTH_MOST], *body, *end = payload + stored_size;
    if (!stored_size)
        return 0;
    size_t width = payload[0] & 15, phase = payload[0] >> 4 & 7;
    if ((width != 2 && width != 4 && width != 8) || phase >= width || size < phase ||
        stored_size < 1 + ENTRY_SIZE * width)
        return 0;
    size_t count = (size - phase) / width, rest = (size - phase) % width + phase;
    uint8_t *decoded = scratch + coder_scratch_size(size);
    body = payload + 1 + ENTRY_SIZE * width;
    for (size_t k = 0; k < width; k++) {
        const uint8_t *entry = payload + 1 + ENTRY_SIZE * k;
        size_t body_size = (size_t)load(entry + 1, 4);
        if (body_size > (size_t)(end - body))
            return 0;
        if (entry[0] == PLANE_CODED && count) {
            if (decode_bytes(body, body + body_size, NULL, decoded, count, scratch, vectors) != body + body_size)
                return 0;
            planes[k] = decoded;
            decoded += count;
        } else if (entry[0] == PLANE_RAW && body_size == count) {
            planes[k] = body;
        } else {
            return 0;
        }
        body += body_size;
    }
    if ((size_t)(end - body) != rest)
        return 0;
    join_elements(planes, out + phase, count, width, payload[0] >> 7);
    memcpy(out + size - (rest - phase), body, rest - phase);
    memcpy(out, body + rest - phase, phase);
    return 1;
}

int is_record_of(const uint8_t *record, size_t left, const struct wanted *wanted) {
    return left >= HEADER_SIZE && !memcmp(record, "ckR1", 4) &&
           (uint32_t)XXH3_64bits(record, CHECKED_SIZE) == load(record + CHECKED_SIZE, 4) && record[4] == TYPE_CHUNK &&
           load(record + 8, 4) == wanted->size && load(record + 16, 8) == wanted->number;
}

int take_payload(unsigned encoding, const uint8_t *payload, size_t stored_size, uint8_t *out, size_t size,
                 uint8_t *scratch, int vectors) {
    if (encoding == PLANES)
        return take_planes(payload, stored_size, out, size, scratch, vectors);
    if ((encoding != RAW && encoding != WAITING) || stored_size != size)
        return 0;
    memcpy(out, payload, size);
    return 1;
}

int has_id(const uint8_t *record, const uint8_t *raw, const struct wanted *wanted, hash_function hash) {
    uint8_t id[ID_SIZE];
    hash(raw, wanted->size, wanted->seed, id);
    return !memcmp(id, record + 24, ID_SIZE);
}

int take_chunk(const uint8_t *record, size_t left, const struct wanted *wanted, uint8_t *out, uint8_t *scratch,
               hash_function hash, int vectors) {
    if (!is_record_of(record, left, wanted))
        return 0;
    size_t stored_size = (size_t)load(record + 12, 4);
    return !load(record + 6, 2) && stored_size <= left - HEADER_SIZE &&
           take_payload(record[5], record + HEADER_SIZE, stored_size, out, wanted->size, scratch, vectors) &&
           has_id(record, out, wanted, hash);
}
