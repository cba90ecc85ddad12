/* Between elements and their byte planes; docs/format.md says what a plane is, reference.py defines it. */
#include "planes.h"

#include <string.h>

#include "little_endian.h"

/* `turn` is 0 or 1, and a constant wherever these are inlined, so that the compiler can make shuffles of the loops. */
#define DEFINE_MOVES(BITS, UINT)                                                                                       \
    static inline __attribute__((always_inline)) void split_##BITS(                                                    \
        const uint8_t *restrict elements, uint8_t *restrict planes, size_t count, unsigned turn) {                     \
        for (size_t i = 0; i < count; i++) {                                                                           \
            UINT element;                                                                                              \
            memcpy(&element, elements + i * sizeof element, sizeof element);                                           \
            element = LITTLE_ENDIAN_##BITS(element);                                                                   \
            if (turn)                                                                                                  \
                element = (UINT)((UINT)(element << 1) | element >> (BITS - 1));                                        \
            for (size_t k = 0; k < sizeof element; k++)                                                                \
                planes[k * count + i] = (uint8_t)(element >> 8 * k);                                                   \
        }                                                                                                              \
    }                                                                                                                  \
    static inline __attribute__((always_inline)) void join_##BITS(                                                     \
        const uint8_t *const *planes, uint8_t *restrict elements, size_t count, unsigned turn) {                       \
        const uint8_t *plane[sizeof(UINT)];                                                                            \
        memcpy(plane, planes, sizeof plane);                                                                           \
        for (size_t i = 0; i < count; i++) {                                                                           \
            UINT element = 0;                                                                                          \
            for (size_t k = 0; k < sizeof element; k++)                                                                \
                element = (UINT)(element | (UINT)((UINT)plane[k][i] << 8 * k));                                        \
            if (turn)                                                                                                  \
                element = (UINT)(element >> 1 | (UINT)(element << (BITS - 1)));                                        \
            element = LITTLE_ENDIAN_##BITS(element);                                                                   \
            memcpy(elements + i * sizeof element, &element, sizeof element);                                           \
        }                                                                                                              \
    }

DEFINE_MOVES(16, uint16_t)
DEFINE_MOVES(32, uint32_t)
DEFINE_MOVES(64, uint64_t)

void split_elements(const uint8_t *elements, uint8_t *planes, size_t count, size_t width, int turned) {
    switch (2 * width + (turned != 0)) {
    case 4: split_16(elements, planes, count, 0); break;
    case 5: split_16(elements, planes, count, 1); break;
    case 8: split_32(elements, planes, count, 0); break;
    case 9: split_32(elements, planes, count, 1); break;
    case 16: split_64(elements, planes, count, 0); break;
    default: split_64(elements, planes, count, 1);
    }
}

void join_elements(const uint8_t *const planes[], uint8_t *elements, size_t count, size_t width, int turned) {
    switch (2 * width + (turned != 0)) {
    case 4: join_16(planes, elements, count, 0); break;
    case 5: join_16(planes, elements, count, 1); break;
    case 8: join_32(planes, elements, count, 0); break;
    case 9: join_32(planes, elements, count, 1); break;
    case 16: join_64(planes, elements, count, 0); break;
    default: join_64(planes, elements, count, 1);
    }
}
