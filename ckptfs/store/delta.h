/* The difference of two runs of elements, coded; defined by reference_differences.py, see delta.c. */
#ifndef CKPTFS_DELTA_H
#define CKPTFS_DELTA_H

#include <stddef.h>
#include <stdint.h>

/* Two byte strings of one size, taken as elements of `width` (1, 2, 4 or 8) bytes from `phase` (< width) on. */
struct elements {
    size_t size, width, phase;
};

/* The scratch memory, aligned to 8 bytes, that the functions below take, and the most bytes that a coded difference has.
 * The scratch memory of a larger size of any width is enough for a smaller one. */
size_t difference_scratch_size(size_t size);
size_t difference_room(const struct elements *elements);

/* Code what `target` differs in from `base`; return the size of what was written to `out`. */
size_t encode_difference(const struct elements *elements, const uint8_t *target, const uint8_t *base, uint8_t *out,
                         uint8_t *scratch, int vectors);

/* Undo `encode_difference`; return 0 when `coded` is not a difference of these elements. */
int decode_difference(const struct elements *elements, const uint8_t *coded, size_t size, const uint8_t *base,
                      uint8_t *target, uint8_t *scratch, int vectors);

#endif
