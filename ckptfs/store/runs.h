/* Entropy-coded bytes: a plane as runs, each stored the way that suits it. Defined by reference_coders.py, see runs.c. */
#ifndef CKPTFS_RUNS_H
#define CKPTFS_RUNS_H

#include <stddef.h>
#include <stdint.h>

/* The scratch memory that coding or decoding a plane of `size` bytes takes. */
size_t runs_scratch_size(size_t size);

/* The most bytes that a coded plane of `size` bytes in `segments` segments takes. */
size_t runs_room(size_t size, size_t segments);

#define SEGMENTS_MOST 32

/* Code `size` bytes that consist of `count` (1 to SEGMENTS_MOST) segments of these lengths (in bytes, none 0), joining neighbours that are
 * alike; return the size of what was written to `out`. */
size_t encode_segments(const uint8_t *data, size_t size, const size_t *lengths, size_t count, uint8_t *out,
                       uint8_t *scratch);

/* Fill `out`, `size` bytes, from a coded plane that begins at `in`; return where it ends, or NULL when it is none or
 * does not end before `end`. */
const uint8_t *decode_runs(const uint8_t *in, const uint8_t *end, uint8_t *out, size_t size, uint8_t *scratch);

#endif
