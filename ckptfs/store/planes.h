/* Byte planes: byte k of every element, one plane behind the other. Defined by reference.py, see planes.c. */
#ifndef CKPTFS_PLANES_H
#define CKPTFS_PLANES_H

#include <stddef.h>
#include <stdint.h>

#define WIDTH_MOST 8

/* Move `count` elements of `width` bytes (2, 4 or 8) into their planes, which lie one behind the other, and out of
 * planes that may lie anywhere. `turned` elements are rotated left by a bit before they are split, so that the sign of a
 * float comes to lie below all else. */
void split_elements(const uint8_t *elements, uint8_t *planes, size_t count, size_t width, int turned);
void join_elements(const uint8_t *const planes[], uint8_t *elements, size_t count, size_t width, int turned);

#endif
