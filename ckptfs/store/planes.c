/* Between elements and their byte planes; docs/format.md says what a plane is, reference.py defines it. */
#include "planes.h"

#include <string.h>

/* The width is a constant wherever these two are inlined, so that the compiler can make shuffles of the loops. */
static inline __attribute__((always_inline)) void split(const uint8_t *restrict elements, uint8_t *restrict planes,
                                                        size_t count, size_t width) {
    for (size_t i = 0; i < count; i++)
        for (size_t k = 0; k < width; k++)
            planes[k * count + i] = elements[i * width + k];
}

static inline __attribute__((always_inline)) void join(const uint8_t *restrict planes, uint8_t *restrict elements,
                                                       size_t count, size_t width) {
    for (size_t i = 0; i < count; i++)
        for (size_t k = 0; k < width; k++)
            elements[i * width + k] = planes[k * count + i];
}

void split_elements(const uint8_t *elements, uint8_t *planes, size_t count, size_t width) {
    switch (width) {
    case 1: memcpy(planes, elements, count); break;
    case 2: split(elements, planes, count, 2); break;
    case 4: split(elements, planes, count, 4); break;
    default: split(elements, planes, count, 8);
    }
}

void join_elements(const uint8_t *planes, uint8_t *elements, size_t count, size_t width) {
    switch (width) {
    case 1: memcpy(elements, planes, count); break;
    case 2: join(planes, elements, count, 2); break;
    case 4: join(planes, elements, count, 4); break;
    default: join(planes, elements, count, 8);
    }
}
