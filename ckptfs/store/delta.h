/* The difference of two runs of elements, coded; defined by reference_coders.py, see delta.c. */
#ifndef CKPTFS_DELTA_H
#define CKPTFS_DELTA_H

#include <stddef.h>
#include <stdint.h>

/* Two byte strings of one size, taken as elements of `width` (1, 2, 4 or 8) bytes from `phase` (< width) on. */
struct elements {
    size_t size, width, phase;
};

/* The scratch memory that the functions below take, and the most bytes that a coded difference has. */
size_t difference_scratch_size(const struct elements *elements);
size_t difference_room(const struct elements *elements);

/* Write to `out` what `target` differs in from `base`; return its size. */
size_t encode_difference(const struct elements *elements, const uint8_t *target, const uint8_t *base, uint8_t *out,
                         uint8_t *scratch);

/* Fill `target` from `base` and a coded difference; return 0 when it is none, or not exactly `size` bytes. */
int decode_difference(const struct elements *elements, const uint8_t *coded, size_t size, const uint8_t *base,
                      uint8_t *target, uint8_t *scratch);

#endif
