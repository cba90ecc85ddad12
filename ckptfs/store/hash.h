/* The id of a chunk: XXH3-128 of its bytes, seeded, canonical (big-endian), as reference.cut_and_hash defines it.
 *
 * xxhash.h picks its vectors when it is compiled, so each function lies in a file of its own, hash_NAME.c, which picks
 * the instructions for that file alone and then includes hash_body.h. kernels.c picks the function at run time. All
 * are pure, read `size` bytes and no more, and need no GIL.
 */
#ifndef CKPTFS_HASH_H
#define CKPTFS_HASH_H

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define HAVE_X86 1
#else
#define HAVE_X86 0
#endif

#if defined(__GNUC__)
#define HIDDEN __attribute__((visibility("hidden")))
#else
#define HIDDEN
#endif

#define ID_SIZE 16

typedef void (*hash_function)(const uint8_t *data, size_t size, uint64_t seed, uint8_t id[ID_SIZE]);

HIDDEN void hash_portable(const uint8_t *data, size_t size, uint64_t seed, uint8_t id[ID_SIZE]);
#if HAVE_X86
HIDDEN void hash_avx2(const uint8_t *data, size_t size, uint64_t seed, uint8_t id[ID_SIZE]);
HIDDEN void hash_avx512(const uint8_t *data, size_t size, uint64_t seed, uint8_t id[ID_SIZE]);
#endif

#endif
