/* From records to chunks, and to where they lie; docs/format.md, "Record header", "Location" and "Planes", has the layouts. */
#include "stored_chunks.h"

#include <string.h>

#include "coder.h"
#include "planes.h"

#define XXH_INLINE_ALL
#include "vendor/xxhash.h"

#define CHECKED_SIZE 44 /* of the header, by its last four bytes */
#define TYPE_CHUNK 2
#define ALIGNMENT 8
#define BASE_SIZE 8
#define BASES_MOST 8 /* on which a chunk rests */
#define LOCATION_SIZE 24 /* of a row of the table `chunks`, before its bases */
#define ENTRY_SIZE 5 /* of a plane, in the table of a payload */

enum encoding { RAW = 0, PLANES = 2, WAITING = 4 };
enum plane_kind { PLANE_RAW = 0, PLANE_CODED = 2 };

static uint64_t load(const uint8_t *from, int size) {
    uint64_t value = 0;
    for (int i = 0; i < size; i++)
        value |= (uint64_t)from[i] << 8 * i;
    return value;
}

static void store(uint8_t *to, uint64_t value, int size) {
    for (int i = 0; i < size; i++)
        to[i] = (uint8_t)(value >> 8 * i);
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

/* Tell whether the header of a chunk's record is there, whole. */
static int is_header(const uint8_t *record, size_t left) {
    return left >= HEADER_SIZE && !memcmp(record, "ckR1", 4) &&
           (uint32_t)XXH3_64bits(record, CHECKED_SIZE) == load(record + CHECKED_SIZE, 4) && record[4] == TYPE_CHUNK;
}

/* The bytes of bases and payload, which the check of the payload is over. */
static size_t body_size(const uint8_t *record) {
    return BASE_SIZE * (size_t)load(record + 6, 2) + (size_t)load(record + 12, 4);
}

size_t chunk_record_size(const uint8_t *record, size_t left, uint64_t size_most) {
    if (!is_header(record, left) || load(record + 6, 2) > BASES_MOST || load(record + 8, 4) > size_most ||
        load(record + 12, 4) > size_most)
        return 0;
    size_t size = HEADER_SIZE + body_size(record) + ALIGNMENT - 1;
    size -= size % ALIGNMENT;
    return size <= left ? size : 0;
}

int is_intact(const uint8_t *record) {
    return (uint32_t)XXH3_64bits(record + HEADER_SIZE, body_size(record)) == load(record + 40, 4);
}

size_t location_size(const uint8_t *record) { return LOCATION_SIZE + BASE_SIZE * (size_t)load(record + 6, 2); }

void write_location(const uint8_t *record, uint32_t pack, uint64_t offset, uint8_t *row) {
    store(row, pack, 4);
    store(row + 4, offset, 8);
    memcpy(row + 12, record + 12, 4); /* stored size */
    memcpy(row + 16, record + 8, 4);  /* raw size */
    memcpy(row + 20, record + 6, 2);  /* how many bases */
    row[22] = record[5];              /* encoding */
    row[23] = 0;                      /* height: nothing rests on it yet */
    memcpy(row + LOCATION_SIZE, record + HEADER_SIZE, location_size(record) - LOCATION_SIZE);
}

int is_record_of(const uint8_t *record, size_t left, const struct wanted *wanted) {
    return is_header(record, left) && load(record + 8, 4) == wanted->size && load(record + 16, 8) == wanted->number;
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
