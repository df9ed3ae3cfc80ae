// Copies and sums lines, with the widest vectors of a processor.
//
// kernels/checksum.py defines the sum, kvsum64.

#include <endian.h>
#include <stdint.h>
#include <string.h>

// A step is what is copied of a segment before the next segment has its turn. With sums, steps of 128 bytes are quicker
// than others: for the 32 KiB runs of an EPYC with AVX-512, sums add 5 % to the time of the copy, and 15 % with 256 bytes.
enum { WORD_BYTES = 8, LINE_BYTES = 64, STEP_BYTES = 128 };

// How to copy: higher levels are quicker. `kvdepot_copy_level` returns the best one of the processor.
enum { MEMCPY, SSE2, AVX2, AVX512 };

// The place of word number i of a chunk is i * K.
#define K 0x9E3779B97F4A7C15ull

static uint64_t place_at(int64_t chunk_offset) { return (uint64_t)(chunk_offset / WORD_BYTES) * K; }

typedef struct {
    char *dst;
    const char *src;
    uint64_t place;  // of its first word
} Segment;

// Copies segments of `size` bytes, a multiple of LINE_BYTES, to destinations that are aligned to lines. Returns what
// their words add to the checksum, or 0 if it does not sum.
typedef uint64_t SideBySide(const Segment *segments, int count, int64_t size);

// Returns what words add to the checksum.
typedef uint64_t Sum(const char *words, int64_t size, uint64_t place);

static uint64_t part_of(uint64_t word, uint64_t place) {
    return (uint64_t)(uint32_t)(word + place) * (uint32_t)((word >> 32) + (place >> 32)) + word;
}

// Sums bytes. What is behind the last whole word counts as a word that is filled up with zeros.
static uint64_t sum_words(const char *words, int64_t size, uint64_t place) {
    uint64_t sum = 0, word = 0;
    for (; size >= WORD_BYTES; words += WORD_BYTES, size -= WORD_BYTES, place += K) {
        memcpy(&word, words, WORD_BYTES);
        sum += part_of(le64toh(word), place);
    }
    if (!size) return sum;
    word = 0;
    memcpy(&word, words, size);
    return sum + part_of(le64toh(word), place);
}

static uint64_t with_memcpy(const Segment *segments, int count, int64_t size) {
    for (int i = 0; i < count; i++) memcpy(segments[i].dst, segments[i].src, size);
    return 0;
}

#if defined(__x86_64__)
#include <immintrin.h>

#define EIGHT(i) (i) * K, (i + 1) * K, (i + 2) * K, (i + 3) * K, (i + 4) * K, (i + 5) * K, (i + 6) * K, (i + 7) * K

// The places of a step's words, less the first one's.
static const uint64_t PLACES[STEP_BYTES / WORD_BYTES] = {EIGHT(0), EIGHT(8)};

#define UNROLL _Pragma("GCC unroll 16")
#define IN(TARGET) __attribute__((target(TARGET), always_inline)) static inline

// Hides where a vector comes from. Else the compiler may load it again, and foreign memory has changed meanwhile.
#define LOADED_ONCE(VECTOR) __asm__("" : "+x"(VECTOR))

#define DEFINE_LEVEL(NAME, TARGET, VECTOR, LOAD, STREAM, ADD32, ADD64, MULTIPLY, SHIFT, SPREAD)                       \
    /* Adds the part of vector number `i` of a step. */                                                               \
    IN(TARGET) VECTOR NAME##_add(VECTOR sum, VECTOR words, VECTOR place, int i) {                                     \
        VECTOR halves = ADD32(words, ADD64(place, LOAD((const void *)((const VECTOR *)PLACES + i))));                 \
        return ADD64(ADD64(sum, words), MULTIPLY(halves, SHIFT(halves, 32)));                                         \
    }                                                                                                                 \
    IN(TARGET) uint64_t NAME##_total(VECTOR sum) {                                                                    \
        uint64_t total = 0, lanes[sizeof(VECTOR) / WORD_BYTES];                                                       \
        memcpy(lanes, &sum, sizeof(VECTOR));                                                                          \
        for (unsigned i = 0; i < sizeof(VECTOR) / WORD_BYTES; i++) total += lanes[i];                                 \
        return total;                                                                                                 \
    }                                                                                                                 \
    IN(TARGET) VECTOR NAME##_step(Segment segment, int64_t at, int64_t size, VECTOR sum, int is_summed) {             \
        enum { N = STEP_BYTES / sizeof(VECTOR) };                                                                     \
        VECTOR *dst = (VECTOR *)(segment.dst + at), part[N];                                                          \
        const VECTOR *src = (const VECTOR *)(segment.src + at);                                                       \
        VECTOR place = SPREAD(segment.place + place_at(at));                                                          \
        if (size - at >= STEP_BYTES) {                                                                                \
            UNROLL for (int i = 0; i < N; i++) part[i] = LOAD((const void *)(src + i));                               \
            UNROLL for (int i = 0; i < N; i++) LOADED_ONCE(part[i]);                                                  \
            UNROLL for (int i = 0; i < N; i++) STREAM((void *)(dst + i), part[i]);                                    \
            UNROLL for (int i = 0; is_summed && i < N; i++) sum = NAME##_add(sum, part[i], place, i);                 \
            return sum;                                                                                               \
        }                                                                                                             \
        for (int i = 0; i < (size - at) / (int)sizeof(VECTOR); i++) {                                                 \
            part[0] = LOAD((const void *)(src + i));                                                                  \
            LOADED_ONCE(part[0]);                                                                                     \
            STREAM((void *)(dst + i), part[0]);                                                                       \
            if (is_summed) sum = NAME##_add(sum, part[0], place, i);                                                  \
        }                                                                                                             \
        return sum;                                                                                                   \
    }                                                                                                                 \
    __attribute__((target(TARGET))) static uint64_t NAME(const Segment *segments, int count, int64_t size) {          \
        for (int64_t at = 0; at < size; at += STEP_BYTES)                                                             \
            for (int i = 0; i < count; i++) NAME##_step(segments[i], at, size, SPREAD(0), 0);                         \
        return 0;                                                                                                     \
    }                                                                                                                 \
    __attribute__((target(TARGET))) static uint64_t NAME##_summing(const Segment *segments, int count,                \
                                                                   int64_t size) {                                    \
        VECTOR sum = SPREAD(0);                                                                                       \
        for (int64_t at = 0; at < size; at += STEP_BYTES)                                                             \
            for (int i = 0; i < count; i++) sum = NAME##_step(segments[i], at, size, sum, 1);                         \
        return NAME##_total(sum);                                                                                     \
    }                                                                                                                 \
    __attribute__((target(TARGET))) static uint64_t NAME##_sum(const char *words, int64_t size, uint64_t place) {     \
        VECTOR sum = SPREAD(0);                                                                                       \
        int64_t at = 0;                                                                                               \
        for (; size - at >= STEP_BYTES; at += STEP_BYTES) {                                                           \
            const VECTOR *step = (const VECTOR *)(words + at);                                                        \
            VECTOR first = SPREAD(place + place_at(at));                                                              \
            UNROLL for (int i = 0; i < STEP_BYTES / (int)sizeof(VECTOR); i++)                                         \
                sum = NAME##_add(sum, LOAD((const void *)(step + i)), first, i);                                      \
        }                                                                                                             \
        return NAME##_total(sum) + sum_words(words + at, size - at, place + place_at(at));                            \
    }

DEFINE_LEVEL(sse2, "sse2", __m128i, _mm_loadu_si128, _mm_stream_si128, _mm_add_epi32, _mm_add_epi64, _mm_mul_epu32,
             _mm_srli_epi64, _mm_set1_epi64x)
DEFINE_LEVEL(avx2, "avx2", __m256i, _mm256_loadu_si256, _mm256_stream_si256, _mm256_add_epi32, _mm256_add_epi64,
             _mm256_mul_epu32, _mm256_srli_epi64, _mm256_set1_epi64x)
DEFINE_LEVEL(avx512, "avx512f", __m512i, _mm512_loadu_si512, _mm512_stream_si512, _mm512_add_epi32, _mm512_add_epi64,
             _mm512_mul_epu32, _mm512_srli_epi64, _mm512_set1_epi64)

static SideBySide *const COPY[] = {with_memcpy, sse2, avx2, avx512};
static SideBySide *const COPY_AND_SUM[] = {NULL, sse2_summing, avx2_summing, avx512_summing};
static Sum *const SUM[] = {sum_words, sse2_sum, avx2_sum, avx512_sum};

int kvdepot_copy_level(void) {
    if (__builtin_cpu_supports("avx512f")) return AVX512;
    return __builtin_cpu_supports("avx2") ? AVX2 : SSE2;
}

static void order_stores(void) { _mm_sfence(); }

#else

static SideBySide *const COPY[] = {with_memcpy};
static SideBySide *const COPY_AND_SUM[] = {NULL};
static Sum *const SUM[] = {sum_words};

int kvdepot_copy_level(void) { return MEMCPY; }

static void order_stores(void) {}

#endif
