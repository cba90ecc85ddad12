/* The loops over every byte: content-defined cut points and chunk ids, plane entropies, marks; and the doors to the
 * coders.
 *
 * Owns speed and nothing else: each function here is defined by the Python of the same name in reference.py,
 * reference_coders.py, reference_differences.py or reference_records.py and returns the same bytes; docs/format.md has
 * the definitions in prose. It keeps no state, reads only the buffers it is given (`mark`, `raw_records`, `take_chunks`
 * and `take_chains` write to some), and runs without the GIL, so any number of threads may be inside at once.
 *
 * The cut kernels (portable, AVX2, AVX-512) are picked by name at run time; no -march flag is needed. What hashes is in
 * hash.h, byte planes are in planes.h, the entropy coder in coder.h, differences of floats in delta.h, records in
 * raw_records.h and stored_chunks.h, chains of deltas in chains.h.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "chains.h"
#include "coder.h"
#include "delta.h"
#include "hash.h"
#include "little_endian.h"
#include "planes.h"
#include "raw_records.h"
#include "stored_chunks.h"

#if HAVE_X86
#include <immintrin.h>
#endif

/* ---- cut points ---------------------------------------------------------------------------------------------- */

#define SIZE_MIN_LEAST 16 /* the hash reads the 16 bytes before a position, and they have to be of the chunk */
#define MEAN_BITS_LEAST 8 /* the prefilter alone passes 1 position in 2^8 */
#define MEAN_BITS_MOST 40

#define PREFILTER_TARGET 0x5B /* odd: bytes that repeat with period 1 or 2 make an even sum and never pass */
#define HASH_FACTOR_LOW 0x9E3779B97F4A7C15u /* the odd constants of splitmix64 and murmur3 */
#define HASH_FACTOR_MIX 0xFF51AFD7ED558CCDu

/* Return the first candidate p, from <= p < end, of the chunk that begins at `chunk`, or `end`.
 * Needs from >= SIZE_MIN_LEAST and end - 1 readable bytes. */
typedef size_t (*scan_function)(const uint8_t *chunk, size_t from, size_t end, uint64_t hash_mask);

static inline uint8_t prefilter_sum(const uint8_t *at) {
    return (uint8_t)(at[-4] + 5 * at[-3] + 3 * at[-2] + 9 * at[-1]);
}

static inline int hash_passes(const uint8_t *at, uint64_t hash_mask) {
    uint64_t hash = load_little_endian(at - 16) * HASH_FACTOR_LOW + load_little_endian(at - 8);
    hash = (hash ^ (hash >> 32)) * HASH_FACTOR_MIX;
    return (hash & hash_mask) == 0;
}

static inline size_t scan_bytewise(const uint8_t *chunk, size_t from, size_t end, uint64_t hash_mask) {
    for (size_t p = from; p < end; p++)
        if (prefilter_sum(chunk + p) == PREFILTER_TARGET && hash_passes(chunk + p, hash_mask))
            return p;
    return end;
}

/* Plain C in the shape that compilers turn into vectors of the baseline (SSE2, NEON). */
static size_t scan_portable(const uint8_t *chunk, size_t from, size_t end, uint64_t hash_mask) {
    enum { STEP = 64 };
    size_t p = from;
    for (; p + STEP <= end; p += STEP) {
        uint8_t any = 0;
        for (size_t i = 0; i < STEP; i++)
            any |= (uint8_t)(prefilter_sum(chunk + p + i) == PREFILTER_TARGET);
        if (any) {
            size_t found = scan_bytewise(chunk, p, p + STEP, hash_mask);
            if (found < p + STEP)
                return found;
        }
    }
    return scan_bytewise(chunk, p, end, hash_mask);
}

#if HAVE_X86
enum { STEP = 64, STEPS = 32 };

/* Write `position` + i for every set bit i of `bits` to `list`, and return how many there are. Two entries are written
 * always, and more are rare (1 step in 400): a loop over the bits would be mispredicted at every fifth step, which
 * made the whole scan a third slower. */
static inline __attribute__((always_inline)) size_t list_bits(uint64_t bits, uint32_t position, uint32_t *list) {
    const uint64_t last = (uint64_t)1 << 63; /* counting the zeros below nothing is undefined */
    size_t count = (size_t)__builtin_popcountll(bits);
    list[0] = position + (uint32_t)__builtin_ctzll(bits | last);
    bits &= bits - 1;
    list[1] = position + (uint32_t)__builtin_ctzll(bits | last);
    for (size_t i = 2; i < count; i++) {
        bits &= bits - 1;
        list[i] = position + (uint32_t)__builtin_ctzll(bits);
    }
    return count;
}

/* The scan around a `prefilter` whose bit i says that position at + i passes. Inlined, the pointer costs nothing. */
static inline __attribute__((always_inline)) size_t scan_vectors(uint64_t (*prefilter)(const uint8_t *at),
                                                                 const uint8_t *chunk, size_t from, size_t end,
                                                                 uint64_t hash_mask) {
    uint32_t passed[STEP * STEPS + 2];
    size_t p = from;
    while (end - p >= STEP) {
        size_t steps = (end - p) / STEP < STEPS ? (end - p) / STEP : STEPS;
        size_t count = 0;
        for (size_t i = 0; i < steps; i++)
            count += list_bits(prefilter(chunk + p + i * STEP), (uint32_t)(i * STEP), passed + count);
        for (size_t i = 0; i < count; i++)
            if (hash_passes(chunk + p + passed[i], hash_mask))
                return p + passed[i];
        p += steps * STEP;
    }
    return scan_bytewise(chunk, p, end, hash_mask);
}

/* Both prefilters compute  b0 + 5 b1 + 3 b2 + 9 b3  as  b0 + b1 + b2 + b3 + 2 (b2 + 2 (b1 + 2 b3)):
 * byte-wise additions only, which wrap modulo 256 as the definition does. */

#define TARGET_AVX2 __attribute__((target("avx2,bmi,popcnt")))
#define TARGET_AVX512 __attribute__((target("avx512f,avx512bw,bmi,popcnt")))

TARGET_AVX2 static inline uint32_t prefilter_32(const uint8_t *at) {
    __m256i b0 = _mm256_loadu_si256((const __m256i *)(at - 4));
    __m256i b1 = _mm256_loadu_si256((const __m256i *)(at - 3));
    __m256i b2 = _mm256_loadu_si256((const __m256i *)(at - 2));
    __m256i b3 = _mm256_loadu_si256((const __m256i *)(at - 1));
    __m256i ones = _mm256_add_epi8(_mm256_add_epi8(b0, b1), _mm256_add_epi8(b2, b3));
    __m256i more = _mm256_add_epi8(b1, _mm256_add_epi8(b3, b3));
    more = _mm256_add_epi8(b2, _mm256_add_epi8(more, more));
    __m256i sum = _mm256_add_epi8(ones, _mm256_add_epi8(more, more));
    return (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(sum, _mm256_set1_epi8(PREFILTER_TARGET)));
}

TARGET_AVX2 static inline uint64_t prefilter_avx2(const uint8_t *at) {
    return prefilter_32(at) | (uint64_t)prefilter_32(at + 32) << 32;
}

TARGET_AVX512 static inline uint64_t prefilter_avx512(const uint8_t *at) {
    __m512i b0 = _mm512_loadu_si512(at - 4);
    __m512i b1 = _mm512_loadu_si512(at - 3);
    __m512i b2 = _mm512_loadu_si512(at - 2);
    __m512i b3 = _mm512_loadu_si512(at - 1);
    __m512i ones = _mm512_add_epi8(_mm512_add_epi8(b0, b1), _mm512_add_epi8(b2, b3));
    __m512i more = _mm512_add_epi8(b1, _mm512_add_epi8(b3, b3));
    more = _mm512_add_epi8(b2, _mm512_add_epi8(more, more));
    __m512i sum = _mm512_add_epi8(ones, _mm512_add_epi8(more, more));
    return _mm512_cmpeq_epi8_mask(sum, _mm512_set1_epi8(PREFILTER_TARGET));
}

TARGET_AVX2 static size_t scan_avx2(const uint8_t *chunk, size_t from, size_t end, uint64_t hash_mask) {
    return scan_vectors(prefilter_avx2, chunk, from, end, hash_mask);
}

TARGET_AVX512 static size_t scan_avx512(const uint8_t *chunk, size_t from, size_t end, uint64_t hash_mask) {
    return scan_vectors(prefilter_avx512, chunk, from, end, hash_mask);
}
#endif

/* ---- chunks: cut points and ids ------------------------------------------------------------------------------ */

/* What finds the end of a chunk, and what makes its id. */
struct kernel {
    const char *name;
    scan_function scan;
    hash_function hash;
    int vectors; /* that the coders may use: 0 for none, 1 for those of AVX2, 2 for those of AVX-512 as well */
};

static const struct kernel kernels[] = {
#if HAVE_X86
    {"avx512", scan_avx512, hash_avx512, 2},
    {"avx2", scan_avx2, hash_avx2, 1},
#endif
    {"portable", scan_portable, hash_portable, 0},
};

enum { KERNELS = sizeof kernels / sizeof *kernels };

static int can_run(const struct kernel *kernel) {
#if HAVE_X86
    int scalar = __builtin_cpu_supports("bmi") && __builtin_cpu_supports("popcnt");
    if (kernel->scan == scan_avx512)
        return scalar && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
    if (kernel->scan == scan_avx2)
        return scalar && __builtin_cpu_supports("avx2");
#endif
    return kernel->scan == scan_portable;
}

/* Return the kernel of that name; an error and NULL when there is none or this processor cannot run it. */
static const struct kernel *kernel_named(const char *name) {
    for (size_t i = 0; i < KERNELS; i++)
        if (strcmp(kernels[i].name, name) == 0 && can_run(&kernels[i]))
            return &kernels[i];
    PyErr_Format(PyExc_ValueError, "no kernel named %s on this machine", name);
    return NULL;
}

struct chunk {
    size_t length;
    uint8_t id[ID_SIZE];
};

struct limits {
    Py_ssize_t size_min, size_max;
    int mean_bits, final;
};

/* Write the chunks to `chunks` (room for size / size_min + 1) and return their count. `hash` may be NULL; a chunk is
 * hashed as soon as its end is found, while its bytes are in the cache. */
static size_t cut_all(scan_function scan, hash_function hash, uint64_t seed, const uint8_t *data, size_t size,
                      const struct limits *limits, struct chunk *chunks) {
    size_t size_min = (size_t)limits->size_min, size_max = (size_t)limits->size_max;
    int hash_bits = limits->mean_bits - MEAN_BITS_LEAST;
    uint64_t hash_mask = hash_bits ? ~(uint64_t)0 << (64 - hash_bits) : 0;
    size_t count = 0, start = 0;
    while (start < size) {
        size_t rest = size - start, length = rest + 1;
        if (rest >= size_min)
            length = scan(data + start, size_min, rest < size_max ? rest + 1 : size_max, hash_mask);
        if (length > rest) { /* no candidate yet, and size_max is not reached */
            if (!limits->final)
                break;
            length = rest;
        }
        chunks[count].length = length;
        if (hash)
            hash(data + start, length, seed, chunks[count].id);
        count++;
        start += length;
    }
    return count;
}

static PyObject *lengths_of(const struct chunk *chunks, size_t count) {
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list && i < count; i++) {
        PyObject *length = PyLong_FromSize_t(chunks[i].length);
        if (length)
            PyList_SET_ITEM(list, (Py_ssize_t)i, length);
        else
            Py_CLEAR(list);
    }
    return list;
}

static PyObject *ids_of(const struct chunk *chunks, size_t count) {
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list && i < count; i++) {
        PyObject *id = PyBytes_FromStringAndSize((const char *)chunks[i].id, ID_SIZE);
        if (id)
            PyList_SET_ITEM(list, (Py_ssize_t)i, id);
        else
            Py_CLEAR(list);
    }
    return list;
}

/* Do `cut`, or with `hashing` `cut_and_hash`, which differ in the last argument and in what they return. */
static PyObject *cut_data(PyObject *args, int hashing) {
    const char *name;
    Py_buffer data;
    struct limits limits;
    unsigned long long seed = 0;
    if (!PyArg_ParseTuple(args, hashing ? "sy*ninpK" : "sy*ninp", &name, &data, &limits.size_min, &limits.mean_bits,
                          &limits.size_max, &limits.final, &seed))
        return NULL;
    PyObject *result = NULL;
    struct chunk *chunks = NULL;
    const struct kernel *kernel = kernel_named(name);
    if (!kernel)
        goto done;
    if (limits.size_min < SIZE_MIN_LEAST || limits.size_max < limits.size_min || limits.mean_bits < MEAN_BITS_LEAST ||
        limits.mean_bits > MEAN_BITS_MOST) {
        PyErr_SetString(PyExc_ValueError, "need 16 <= size_min <= size_max and 8 <= mean_bits <= 40");
        goto done;
    }
    chunks = PyMem_RawMalloc(((size_t)data.len / (size_t)limits.size_min + 1) * sizeof *chunks);
    if (!chunks) {
        PyErr_NoMemory();
        goto done;
    }
    size_t count;
    Py_BEGIN_ALLOW_THREADS
    count = cut_all(kernel->scan, hashing ? kernel->hash : NULL, seed, data.buf, (size_t)data.len, &limits, chunks);
    Py_END_ALLOW_THREADS
    /* N takes the reference over, and a NULL among the values makes the result NULL. */
    result = hashing ? Py_BuildValue("(NN)", lengths_of(chunks, count), ids_of(chunks, count))
                     : lengths_of(chunks, count);
done:
    PyMem_RawFree(chunks);
    PyBuffer_Release(&data);
    return result;
}

static PyObject *cut(PyObject *Py_UNUSED(module), PyObject *args) { return cut_data(args, 0); }

static PyObject *cut_and_hash(PyObject *Py_UNUSED(module), PyObject *args) { return cut_data(args, 1); }

/* Take the lengths from `list` and return their count, or -1 with an exception: they have to fill `size` bytes. */
static Py_ssize_t chunks_of(PyObject *list, size_t size, struct chunk **chunks) {
    Py_ssize_t count = PyList_GET_SIZE(list);
    *chunks = PyMem_RawMalloc(((size_t)count + 1) * sizeof **chunks);
    if (!*chunks) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        size_t length = PyLong_AsSize_t(PyList_GET_ITEM(list, i));
        if (length == (size_t)-1 && PyErr_Occurred())
            return -1;
        (*chunks)[i].length = length;
        if (length > size) {
            size = 1; /* what is left can not be 0 any more */
            break;
        }
        size -= length;
    }
    if (size) {
        PyErr_SetString(PyExc_ValueError, "the lengths have to add up to the bytes");
        return -1;
    }
    return count;
}

static PyObject *hash_chunks(PyObject *Py_UNUSED(module), PyObject *args) {
    const char *name;
    Py_buffer data;
    PyObject *list, *result = NULL;
    unsigned long long seed;
    if (!PyArg_ParseTuple(args, "sy*O!K", &name, &data, &PyList_Type, &list, &seed))
        return NULL;
    struct chunk *chunks = NULL;
    const struct kernel *kernel = kernel_named(name);
    if (!kernel)
        goto done;
    Py_ssize_t count = chunks_of(list, (size_t)data.len, &chunks);
    if (count < 0)
        goto done;
    const uint8_t *start = data.buf;
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < count; i++) {
        kernel->hash(start, chunks[i].length, seed, chunks[i].id);
        start += chunks[i].length;
    }
    Py_END_ALLOW_THREADS
    result = ids_of(chunks, (size_t)count);
done:
    PyMem_RawFree(chunks);
    PyBuffer_Release(&data);
    return result;
}

/* ---- byte planes --------------------------------------------------------------------------------------------- */

static PyObject *transpose(PyObject *args, int joining) {
    Py_buffer data;
    int width, turned;
    if (!PyArg_ParseTuple(args, "y*ip", &data, &width, &turned))
        return NULL;
    PyObject *result = NULL;
    if (width != 2 && width != 4 && width != 8) {
        PyErr_SetString(PyExc_ValueError, "the width of an element has to be 2, 4 or 8");
        goto done;
    }
    result = PyBytes_FromStringAndSize(NULL, data.len);
    if (!result)
        goto done;
    const uint8_t *from = data.buf;
    uint8_t *to = (uint8_t *)PyBytes_AS_STRING(result);
    size_t size = (size_t)data.len, count = size / (size_t)width, tail = size % (size_t)width;
    const uint8_t *planes[WIDTH_MOST];
    for (size_t k = 0; k < (size_t)width; k++)
        planes[k] = from + k * count;
    if (size) {
        Py_BEGIN_ALLOW_THREADS
        if (joining)
            join_elements(planes, to, count, (size_t)width, turned);
        else
            split_elements(from, to, count, (size_t)width, turned);
        memcpy(to + size - tail, from + size - tail, tail);
        Py_END_ALLOW_THREADS
    }
done:
    PyBuffer_Release(&data);
    return result;
}

static PyObject *split_planes(PyObject *Py_UNUSED(module), PyObject *args) { return transpose(args, 0); }

static PyObject *join_planes(PyObject *Py_UNUSED(module), PyObject *args) { return transpose(args, 1); }

/* ---- plane entropies ----------------------------------------------------------------------------------------- */

/* See reference.plane_entropies for the estimate. */
static double entropy(const uint32_t counts[256], size_t total) {
    double sum = 0.0;
    int distinct = 0;
    for (int value = 0; value < 256; value++) {
        if (counts[value] > 1)
            sum += counts[value] * log2(counts[value]);
        distinct += counts[value] != 0;
    }
    return total ? log2((double)total) - sum / (double)total + (distinct - 1) / (2.0 * (double)total * log(2.0)) : 0.0;
}

static PyObject *plane_entropies(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer data;
    int width, turned;
    if (!PyArg_ParseTuple(args, "y*ip", &data, &width, &turned))
        return NULL;
    PyObject *list = NULL;
    if (width < 1 || width > WIDTH_MOST) {
        PyErr_SetString(PyExc_ValueError, "the width of an element has to be 1 to 8");
        goto done;
    }
    if ((uint64_t)data.len / (uint64_t)width > UINT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "the sample is too large to be counted");
        goto done;
    }
    double bits[WIDTH_MOST];
    Py_BEGIN_ALLOW_THREADS
    uint32_t counts[WIDTH_MOST][256];
    memset(counts, 0, sizeof counts);
    const uint8_t *bytes = data.buf;
    size_t count = (size_t)data.len / (size_t)width;
    for (size_t i = 0; i < count; i++, bytes += width)
        for (int k = 0; k < width; k++)
            counts[k][turned ? (uint8_t)(bytes[k] << 1 | bytes[(k ? k : width) - 1] >> 7) : bytes[k]]++;
    for (int k = 0; k < width; k++)
        bits[k] = entropy(counts[k], count);
    Py_END_ALLOW_THREADS
    list = PyList_New(width);
    for (int k = 0; list && k < width; k++) {
        PyObject *value = PyFloat_FromDouble(bits[k]);
        if (value)
            PyList_SET_ITEM(list, k, value);
        else
            Py_CLEAR(list);
    }
done:
    PyBuffer_Release(&data);
    return list;
}

/* ---- coded bytes and differences ----------------------------------------------------------------------------- */

static PyObject *damaged(void) {
    PyErr_SetString(PyExc_ValueError, "the bytes are not what the encoder makes");
    return NULL;
}

static PyObject *too_large(void) {
    PyErr_SetString(PyExc_ValueError, "4 GiB are too much to be coded at once");
    return NULL;
}

static PyObject *encode_bytes_of(PyObject *Py_UNUSED(module), PyObject *args) {
    const char *name;
    Py_buffer data;
    if (!PyArg_ParseTuple(args, "sy*", &name, &data))
        return NULL;
    const struct kernel *kernel = kernel_named(name);
    if (!kernel || (uint64_t)data.len > UINT32_MAX) {
        PyBuffer_Release(&data);
        return kernel ? too_large() : NULL;
    }
    size_t size = (size_t)data.len, coded_size = 0;
    PyObject *result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)coder_room(size));
    uint8_t *scratch = PyMem_RawMalloc(coder_scratch_size(size)), *class_of = PyMem_RawCalloc(size, 1);
    if (!result || !scratch || !class_of) {
        Py_CLEAR(result);
        PyErr_NoMemory();
    } else {
        uint8_t *out = (uint8_t *)PyBytes_AS_STRING(result);
        Py_BEGIN_ALLOW_THREADS
        struct classes one = {{0}, {(uint32_t)size}, 1};
        if (size)
            coded_size = encode_bytes(data.buf, class_of, &one, size, 0, out, scratch, kernel->vectors);
        Py_END_ALLOW_THREADS
        _PyBytes_Resize(&result, (Py_ssize_t)coded_size);
    }
    PyMem_RawFree(class_of);
    PyMem_RawFree(scratch);
    PyBuffer_Release(&data);
    return result;
}

static PyObject *decode_bytes_of(PyObject *Py_UNUSED(module), PyObject *args) {
    const char *name;
    Py_buffer coded;
    Py_ssize_t size;
    if (!PyArg_ParseTuple(args, "sy*n", &name, &coded, &size))
        return NULL;
    PyObject *result = NULL;
    uint8_t *scratch = NULL;
    const struct kernel *kernel = kernel_named(name);
    if (!kernel)
        goto done;
    if (size < 0 || (uint64_t)size > UINT32_MAX) {
        damaged();
        goto done;
    }
    result = PyBytes_FromStringAndSize(NULL, size);
    scratch = PyMem_RawMalloc(coder_scratch_size((size_t)size));
    if (!result || !scratch) {
        Py_CLEAR(result);
        PyErr_NoMemory();
        goto done;
    }
    const uint8_t *in = coded.buf, *end = in + coded.len;
    uint8_t *out = (uint8_t *)PyBytes_AS_STRING(result);
    Py_BEGIN_ALLOW_THREADS
    if (size)
        in = decode_bytes(in, end, NULL, out, (size_t)size, scratch, kernel->vectors);
    Py_END_ALLOW_THREADS
    if (in != end) {
        Py_CLEAR(result);
        damaged();
    }
done:
    PyMem_RawFree(scratch);
    PyBuffer_Release(&coded);
    return result;
}

/* Set an error, and return 0, where elements cannot be coded. */
static int check_elements(Py_ssize_t size, int width, int phase, int alike) {
    if ((width != 1 && width != 2 && width != 4 && width != 8) || phase < 0 || phase >= width || !alike) {
        PyErr_SetString(PyExc_ValueError, "need a width of 1, 2, 4 or 8, a smaller phase, and a base of equal size");
        return 0;
    }
    if ((uint64_t)size > UINT32_MAX) {
        too_large();
        return 0;
    }
    return 1;
}

static PyObject *encode_difference_of(PyObject *Py_UNUSED(module), PyObject *args) {
    const char *name;
    Py_buffer target, base;
    int width, phase;
    if (!PyArg_ParseTuple(args, "sy*y*ii", &name, &target, &base, &width, &phase))
        return NULL;
    PyObject *result = NULL;
    uint8_t *scratch = NULL;
    const struct kernel *kernel = kernel_named(name);
    if (!kernel || !check_elements(base.len, width, phase, target.len == base.len))
        goto done;
    struct elements elements = {(size_t)base.len, (size_t)width, (size_t)phase};
    result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)difference_room(&elements));
    scratch = PyMem_RawMalloc(difference_scratch_size(elements.size));
    if (!result || !scratch) {
        Py_CLEAR(result);
        PyErr_NoMemory();
        goto done;
    }
    uint8_t *out = (uint8_t *)PyBytes_AS_STRING(result);
    size_t size;
    Py_BEGIN_ALLOW_THREADS
    size = encode_difference(&elements, target.buf, base.buf, out, scratch, kernel->vectors);
    Py_END_ALLOW_THREADS
    _PyBytes_Resize(&result, (Py_ssize_t)size);
done:
    PyMem_RawFree(scratch);
    PyBuffer_Release(&target);
    PyBuffer_Release(&base);
    return result;
}

static PyObject *decode_difference_of(PyObject *Py_UNUSED(module), PyObject *args) {
    const char *name;
    Py_buffer coded, base;
    int width, phase;
    if (!PyArg_ParseTuple(args, "sy*y*ii", &name, &coded, &base, &width, &phase))
        return NULL;
    PyObject *result = NULL;
    uint8_t *scratch = NULL;
    const struct kernel *kernel = kernel_named(name);
    if (!kernel || !check_elements(base.len, width, phase, 1))
        goto done;
    struct elements elements = {(size_t)base.len, (size_t)width, (size_t)phase};
    result = PyBytes_FromStringAndSize(NULL, base.len);
    scratch = PyMem_RawMalloc(difference_scratch_size(elements.size));
    if (!result || !scratch) {
        Py_CLEAR(result);
        PyErr_NoMemory();
        goto done;
    }
    uint8_t *target = (uint8_t *)PyBytes_AS_STRING(result);
    int intact;
    Py_BEGIN_ALLOW_THREADS
    intact = decode_difference(&elements, coded.buf, (size_t)coded.len, base.buf, target, scratch, kernel->vectors);
    Py_END_ALLOW_THREADS
    if (!intact) {
        Py_CLEAR(result);
        damaged();
    }
done:
    PyMem_RawFree(scratch);
    PyBuffer_Release(&coded);
    PyBuffer_Release(&base);
    return result;
}

/* ---- marks --------------------------------------------------------------------------------------------------- */

static PyObject *mark(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer bits, numbers;
    if (!PyArg_ParseTuple(args, "w*y*", &bits, &numbers))
        return NULL;
    uint8_t *to = bits.buf;
    const uint8_t *from = numbers.buf;
    uint64_t limit = (uint64_t)bits.len * 8;
    size_t count = (size_t)numbers.len / 8;
    Py_BEGIN_ALLOW_THREADS
    for (size_t i = 0; i < count; i++) {
        uint64_t number = load_little_endian(from + 8 * i);
        if (number < limit)
            to[number >> 3] |= (uint8_t)(1u << (number & 7));
    }
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&bits);
    PyBuffer_Release(&numbers);
    Py_RETURN_NONE;
}

/* ---- records ------------------------------------------------------------------------------------------------- */

static PyObject *raw_records(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer out, data, packed, ids;
    int encoding;
    unsigned long long number;
    if (!PyArg_ParseTuple(args, "w*iy*y*y*K", &out, &encoding, &data, &packed, &ids, &number))
        return NULL;
    size_t count = (size_t)packed.len / sizeof(struct span), size = 0;
    struct span *spans = PyMem_RawMalloc(count * sizeof *spans + 1);
    int fits = (size_t)packed.len == count * sizeof *spans && (size_t)ids.len == count * ID_SIZE;
    for (size_t i = 0; spans && fits && i < count; i++) {
        const uint8_t *at = (const uint8_t *)packed.buf + i * sizeof *spans;
        spans[i] = (struct span){load_little_endian(at), load_little_endian(at + 8)};
        fits = spans[i].start <= (uint64_t)data.len && spans[i].size <= (uint64_t)data.len - spans[i].start &&
               spans[i].size <= UINT32_MAX;
        if (fits)
            size += raw_record_size((size_t)spans[i].size);
    }
    fits = fits && size == (size_t)out.len;
    if (!spans) {
        PyErr_NoMemory();
    } else if (!fits) {
        PyErr_SetString(PyExc_ValueError, "need chunks inside the data, an id for each, and room for just their records");
    } else {
        Py_BEGIN_ALLOW_THREADS
        write_raw_records(encoding, data.buf, spans, ids.buf, count, number, out.buf);
        Py_END_ALLOW_THREADS
    }
    PyMem_RawFree(spans);
    PyBuffer_Release(&out);
    PyBuffer_Release(&data);
    PyBuffer_Release(&packed);
    PyBuffer_Release(&ids);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *take_chunks(PyObject *Py_UNUSED(module), PyObject *args) {
    const char *name;
    Py_buffer data, packed, out;
    unsigned long long seed;
    if (!PyArg_ParseTuple(args, "sy*y*w*K", &name, &data, &packed, &out, &seed))
        return NULL;
    PyObject *result = NULL;
    uint8_t *scratch = NULL;
    const struct kernel *kernel = kernel_named(name);
    size_t count = (size_t)packed.len / PLACE_SIZE, room = (size_t)out.len;
    uint64_t size_most = 0;
    int fits = (size_t)packed.len == count * PLACE_SIZE;
    for (size_t i = 0; fits && i < count; i++) {
        uint64_t raw_size = load_little_endian((const uint8_t *)packed.buf + i * PLACE_SIZE + 16);
        fits = raw_size <= room;
        room -= fits ? (size_t)raw_size : 0;
        size_most = raw_size > size_most ? raw_size : size_most;
    }
    if (!kernel)
        goto done;
    if (!fits || room || size_most > UINT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "need places, and room for just their chunks");
        goto done;
    }
    result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)count);
    scratch = PyMem_RawMalloc(chunk_scratch_size((size_t)size_most));
    if (!result || !scratch) {
        Py_CLEAR(result);
        PyErr_NoMemory();
        goto done;
    }
    uint8_t *target = out.buf, *taken = (uint8_t *)PyBytes_AS_STRING(result);
    Py_BEGIN_ALLOW_THREADS
    for (size_t i = 0; i < count; i++) {
        const uint8_t *at = (const uint8_t *)packed.buf + i * PLACE_SIZE;
        uint64_t start = load_little_endian(at);
        size_t raw_size = (size_t)load_little_endian(at + 16);
        struct wanted wanted = {load_little_endian(at + 8), seed, raw_size};
        taken[i] = start <= (uint64_t)data.len &&
                   take_chunk((const uint8_t *)data.buf + start, (size_t)data.len - (size_t)start, &wanted, target,
                              scratch, kernel->hash, kernel->vectors);
        target += raw_size;
    }
    Py_END_ALLOW_THREADS
done:
    PyMem_RawFree(scratch);
    PyBuffer_Release(&data);
    PyBuffer_Release(&packed);
    PyBuffer_Release(&out);
    return result;
}

/* Put what is said of a record at `at` into three new lists at an index; 0 where there is no memory. */
static int list_record(const uint8_t *at, uint32_t pack, uint64_t offset, PyObject *const *lists, Py_ssize_t index) {
    PyObject *number = PyLong_FromUnsignedLongLong(load_little_endian(at + 16));
    PyObject *id = PyBytes_FromStringAndSize((const char *)at + 24, ID_SIZE);
    PyObject *row = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)location_size(at));
    if (row)
        write_location(at, pack, offset, (uint8_t *)PyBytes_AS_STRING(row));
    PyList_SET_ITEM(lists[0], index, number); /* NULL where it failed: the list lets that go */
    PyList_SET_ITEM(lists[1], index, id);
    PyList_SET_ITEM(lists[2], index, row);
    return number && id && row;
}

static PyObject *scan_chunks(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer data;
    unsigned long size_most, pack;
    unsigned long long offset;
    if (!PyArg_ParseTuple(args, "y*kkK", &data, &size_most, &pack, &offset))
        return NULL;
    const uint8_t *start = data.buf;
    size_t length = (size_t)data.len, at = 0, size, count = 0;
    Py_BEGIN_ALLOW_THREADS
    while ((size = chunk_record_size(start + at, length - at, size_most)) && is_intact(start + at)) {
        at += size;
        count++;
    }
    Py_END_ALLOW_THREADS
    PyObject *lists[3] = {PyList_New((Py_ssize_t)count), PyList_New((Py_ssize_t)count), PyList_New((Py_ssize_t)count)};
    int fits = lists[0] && lists[1] && lists[2];
    at = 0;
    for (size_t i = 0; fits && i < count; i++) {
        /* Looked at again, lest somebody has changed it. */
        size = chunk_record_size(start + at, length - at, size_most);
        fits = size && list_record(start + at, (uint32_t)pack, offset + at, lists, (Py_ssize_t)i);
        at += size;
    }
    PyBuffer_Release(&data);
    if (fits)
        return Py_BuildValue("nNNN", (Py_ssize_t)at, lists[0], lists[1], lists[2]);
    for (int i = 0; i < 3; i++)
        Py_XDECREF(lists[i]);
    if (!PyErr_Occurred())
        PyErr_SetString(PyExc_RuntimeError, "the data changes while it is looked at");
    return NULL;
}

/* Take links from a packed list, which has been allocated with zeros; return the largest raw size, or -1 where one is not
 * as it should be. */
static int64_t links_of(const Py_buffer *packed, const Py_buffer *bases, const Py_buffer *out, struct chains *chains,
                        unsigned *level_most) {
    size_t count = (size_t)packed->len / LINK_SIZE, bases_left = (size_t)bases->len / 8;
    const uint8_t *at = packed->buf, *base = bases->buf;
    int64_t size_most = 0;
    for (size_t k = 0; k < bases_left; k++)
        if (load_little_endian(base + 8 * k) >= count)
            return -1;
    for (struct link *link = chains->links; link < chains->links + count; link++, at += LINK_SIZE) {
        uint64_t place = load_little_endian(at + 16), sizes = load_little_endian(at + 24);
        *link = (struct link){.payload = load_little_endian(at), .number = load_little_endian(at + 8)};
        link->stored_size = (uint32_t)sizes;
        link->size = (size_t)(sizes >> 32);
        link->level = at[32];
        link->encoding = at[33];
        link->base_count = (size_t)at[34] | (size_t)at[35] << 8;
        link->bases = base;
        link->has_place = place != NO_PLACE;
        if (link->base_count > bases_left || link->payload > chains->data_size ||
            link->stored_size > chains->data_size - link->payload)
            return -1;
        if (link->has_place) {
            if (place > (uint64_t)out->len || link->size > (uint64_t)out->len - place)
                return -1;
            link->at = (uint8_t *)out->buf + place;
        }
        base += 8 * link->base_count;
        bases_left -= link->base_count;
        size_most = (int64_t)link->size > size_most ? (int64_t)link->size : size_most;
        *level_most = link->level > *level_most ? link->level : *level_most;
    }
    return size_most;
}

static PyObject *take_chains(PyObject *Py_UNUSED(module), PyObject *args) {
    const char *name;
    Py_buffer data, packed, bases, out, work;
    unsigned long long seed;
    if (!PyArg_ParseTuple(args, "sy*y*y*w*w*K", &name, &data, &packed, &bases, &out, &work, &seed))
        return NULL;
    PyObject *result = NULL;
    const struct kernel *kernel = kernel_named(name);
    size_t count = (size_t)packed.len / LINK_SIZE;
    unsigned level_most = 0;
    struct chains chains = {.data = data.buf, .data_size = (size_t)data.len, .work = work.buf, .seed = seed};
    chains.links = PyMem_RawMalloc(count * sizeof *chains.links + 1);
    if (!kernel)
        goto done;
    if (!chains.links) {
        PyErr_NoMemory();
        goto done;
    }
    int64_t size_most = links_of(&packed, &bases, &out, &chains, &level_most);
    if (size_most < 0 || (size_t)packed.len != count * LINK_SIZE) {
        PyErr_SetString(PyExc_ValueError, "need links whose payloads, bases and places are there");
        goto done;
    }
    chains.level_size = level_most ? (size_t)work.len / level_most : 0;
    chains.hash = kernel->hash;
    chains.vectors = kernel->vectors;
    result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)count);
    chains.scratch = PyMem_RawMalloc(chains_scratch_size((size_t)size_most));
    chains.joined = PyMem_RawMalloc((size_t)size_most + 1);
    if (!result || !chains.scratch || !chains.joined) {
        Py_CLEAR(result);
        PyErr_NoMemory();
        goto done;
    }
    uint8_t *taken = (uint8_t *)PyBytes_AS_STRING(result);
    Py_BEGIN_ALLOW_THREADS
    for (size_t i = 0; i < count; i++)
        taken[i] = chains.links[i].has_place && take_link(&chains, i);
    Py_END_ALLOW_THREADS
done:
    PyMem_RawFree(chains.joined);
    PyMem_RawFree(chains.scratch);
    PyMem_RawFree(chains.links);
    PyBuffer_Release(&data);
    PyBuffer_Release(&packed);
    PyBuffer_Release(&bases);
    PyBuffer_Release(&out);
    PyBuffer_Release(&work);
    return result;
}

/* ---- the module ---------------------------------------------------------------------------------------------- */

static PyObject *cut_kernels(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none)) {
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && i < KERNELS; i++) {
        if (!can_run(&kernels[i]))
            continue;
        PyObject *name = PyUnicode_FromString(kernels[i].name);
        if (!name || PyList_Append(list, name) < 0)
            Py_CLEAR(list);
        Py_XDECREF(name);
    }
    return list;
}

static PyMethodDef methods[] = {
    {"cut", cut, METH_VARARGS, "cut(kernel, data, size_min, mean_bits, size_max, final) -> list of chunk lengths"},
    {"cut_and_hash", cut_and_hash, METH_VARARGS,
     "cut_and_hash(kernel, data, size_min, mean_bits, size_max, final, seed) -> chunk lengths, chunk ids"},
    {"hash_chunks", hash_chunks, METH_VARARGS, "hash_chunks(kernel, data, lengths, seed) -> list of chunk ids"},
    {"cut_kernels", cut_kernels, METH_NOARGS, "Return the names of the kernels this machine can run, fastest first."},
    {"split_planes", split_planes, METH_VARARGS, "split_planes(data, width, turned) -> bytes"},
    {"join_planes", join_planes, METH_VARARGS, "join_planes(data, width, turned) -> bytes"},
    {"encode_bytes", encode_bytes_of, METH_VARARGS, "encode_bytes(kernel, data) -> bytes"},
    {"decode_bytes", decode_bytes_of, METH_VARARGS, "decode_bytes(kernel, coded, size) -> bytes"},
    {"encode_difference", encode_difference_of, METH_VARARGS,
     "encode_difference(kernel, target, base, width, phase) -> bytes"},
    {"decode_difference", decode_difference_of, METH_VARARGS,
     "decode_difference(kernel, coded, base, width, phase) -> bytes"},
    {"mark", mark, METH_VARARGS, "mark(bits, numbers) -> None"},
    {"raw_records", raw_records, METH_VARARGS, "raw_records(out, encoding, data, spans, ids, number) -> None"},
    {"take_chunks", take_chunks, METH_VARARGS, "take_chunks(kernel, data, places, out, seed) -> a byte for each place"},
    {"scan_chunks", scan_chunks, METH_VARARGS,
     "scan_chunks(data, size_most, pack, offset) -> size of the records, numbers, ids, locations"},
    {"take_chains", take_chains, METH_VARARGS,
     "take_chains(kernel, data, links, bases, out, work, seed) -> a byte for each link"},
    {"plane_entropies", plane_entropies, METH_VARARGS, "plane_entropies(data, width, turned) -> list of bits per byte"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_kernels",
    .m_doc = "C kernels of ckptfs; see ckptfs/store/kernels.py.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModuleDef_Init(&definition); }
