/* Entropy-coded bytes; defined by reference_coders.py, see coder.c. */
#ifndef CKPTFS_CODER_H
#define CKPTFS_CODER_H

#include <stddef.h>
#include <stdint.h>

/* Each byte has a key, which both sides know; bytes of different keys may have different statistics. */
#define KEYS 256
#define CLASSES_MOST 32

/* Runs of neighbouring keys that an encoder looks at as one: `of_key` is their number, which ascends with the key, and
 * `sizes` says how many bytes have one of these keys. */
struct classes {
    uint8_t of_key[KEYS];
    uint32_t sizes[CLASSES_MOST];
    size_t count;
};

/* The classes of the keys that so many bytes have: one for each key, or CLASSES_MOST where there are more. */
void make_classes(const uint32_t counts[KEYS], size_t size, struct classes *classes);

/* The scratch memory, aligned to 8 bytes, that the functions below take for `size` bytes. */
size_t coder_scratch_size(size_t size);

/* The most bytes that `size` bytes take when they are coded. */
size_t coder_room(size_t size);

/* Code `size` (not 0) bytes, with AVX2 where `vectors` is 1 and with AVX-512 where it is 2; `class_of` has the class of
 * each one, and `slack` bytes more may be spent where they make decoding faster. Return the size of what was written to
 * `out`. */
size_t encode_bytes(const uint8_t *data, const uint8_t *class_of, const struct classes *classes, size_t size,
                    size_t slack, uint8_t *out, uint8_t *scratch, int vectors);

/* Return where the bytes are, which end where the coded ones do, if these are them as they are; else NULL. */
const uint8_t *find_raw(const uint8_t *in, const uint8_t *end, size_t size);

/* Fill `out`, `size` (not 0) bytes, from coded ones that begin at `in`; `keys` has the key of each one, or is NULL where
 * all are 0. Return where they end, or NULL when they are none or do not end before `end`. */
const uint8_t *decode_bytes(const uint8_t *in, const uint8_t *end, const uint8_t *keys, uint8_t *out, size_t size,
                            uint8_t *scratch, int vectors);

#endif
