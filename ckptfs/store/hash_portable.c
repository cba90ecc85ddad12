/* Chunk ids with what every machine of its kind has: SSE2, NEON, or plain C. */
#include "hash.h"
#include <string.h>

#define HASH hash_portable
#include "hash_body.h"
