/* The function HASH, for the instructions that the including file chose; see hash.h. */
#define XXH_INLINE_ALL
#include "vendor/xxhash.h"

void HASH(const uint8_t *data, size_t size, uint64_t seed, uint8_t id[ID_SIZE]) {
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_withSeed(data, size, seed));
    memcpy(id, canonical.digest, ID_SIZE);
}
