/* Elements as they lie on the disk, least byte first, whatever the machine. */
#ifndef CKPTFS_LITTLE_ENDIAN_H
#define CKPTFS_LITTLE_ENDIAN_H

#include <stdint.h>
#include <string.h>

#define LITTLE_ENDIAN_8(element) (element)
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define LITTLE_ENDIAN_16(element) __builtin_bswap16(element)
#define LITTLE_ENDIAN_32(element) __builtin_bswap32(element)
#define LITTLE_ENDIAN_64(element) __builtin_bswap64(element)
#else
#define LITTLE_ENDIAN_16(element) (element)
#define LITTLE_ENDIAN_32(element) (element)
#define LITTLE_ENDIAN_64(element) (element)
#endif

static inline uint64_t load_little_endian(const uint8_t *at) {
    uint64_t word;
    memcpy(&word, at, sizeof word);
    return LITTLE_ENDIAN_64(word);
}

#endif
