/* Products of small matrices, whose numbers are fp32 in memory.

   They are multiplied as units: pairs of bf16 where the processor multiplies those, else fp32.
   Counts of rows and columns are multiples of SLOTS; what is not used is 0. */

#include "numbers.h"

enum { SLOTS = 16 };

static inline int64_t up(int64_t count) { return (count + SLOTS - 1) / SLOTS * SLOTS; }

#if defined BFLOAT16 && defined __AVX512BF16__
#define PAIRS
#include <immintrin.h>
typedef uint32_t unit;
enum { PAIR = 2 };
#else
typedef float unit;
enum { PAIR = 1 };
#endif

static inline unit joined(float first, float second)
{
#ifdef PAIRS
    return rounded(first) | (unit)rounded(second) << 16;
#else
    (void)second;
    return first;
#endif
}

/* Units (rows, columns / PAIR) of x (rows, columns). */
static void pack_along(const float *restrict x, int64_t rows, int64_t columns, unit *restrict out)
{
    for (int64_t i = 0; i < rows * columns / PAIR; i++)
        out[i] = joined(x[PAIR * i], x[PAIR * i + PAIR - 1]);
}

/* Units (rows / PAIR, columns) of x (rows, columns). */
static void pack_across(const float *restrict x, int64_t rows, int64_t columns,
                        unit *restrict out)
{
    for (int64_t row = 0; row < rows / PAIR; row++)
        for (int64_t i = 0; i < columns; i++)
            out[row * columns + i] = joined(x[PAIR * row * columns + i],
                                            x[(PAIR * row + PAIR - 1) * columns + i]);
}

/* The transpose of `pack_along`: (columns / PAIR, rows). */
static void turn_along(const float *restrict x, int64_t rows, int64_t columns, unit *restrict out)
{
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < columns / PAIR; i++)
            out[i * rows + row] = joined(x[row * columns + PAIR * i],
                                         x[row * columns + PAIR * i + PAIR - 1]);
}

/* The transpose of `pack_across`: (columns, rows / PAIR). */
static void turn_across(const float *restrict x, int64_t rows, int64_t columns,
                        unit *restrict out)
{
    for (int64_t i = 0; i < columns; i++)
        for (int64_t row = 0; row < rows / PAIR; row++)
            out[i * (rows / PAIR) + row] = joined(x[PAIR * row * columns + i],
                                                  x[(PAIR * row + PAIR - 1) * columns + i]);
}

#ifdef __AVX512F__
enum { LANES = 16, ROWS = 8 };
#else
enum { LANES = 8, ROWS = 4 };
#endif

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static inline vector add_product(vector sum, unit one, const unit *many)
{
#ifdef PAIRS
    __m512i all = _mm512_loadu_si512(many);
    return (vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(one), (__m512bh)all);
#else
    return sum + one * *(const vector *)many;
#endif
}

/* ROWS rows and `width` vectors of c += a b. */
static inline __attribute__((always_inline)) void
add_vectors(const unit *a, int64_t a_row, const unit *b, int64_t b_row, float *c, int64_t c_row,
            int64_t depth, const int width)
{
    vector sums[ROWS][2];
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; row++)
#pragma GCC unroll 2
        for (int nth = 0; nth < width; nth++)
            sums[row][nth] = *(vector *)(c + row * c_row + nth * LANES);
    for (int64_t i = 0; i < depth; i++)
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; row++)
#pragma GCC unroll 2
            for (int nth = 0; nth < width; nth++)
                sums[row][nth] = add_product(sums[row][nth], a[row * a_row + i],
                                             b + i * b_row + nth * LANES);
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; row++)
#pragma GCC unroll 2
        for (int nth = 0; nth < width; nth++)
            *(vector *)(c + row * c_row + nth * LANES) = sums[row][nth];
}

static void multiply_vectors(const unit *a, int64_t a_row, const unit *b, int64_t b_row, float *c,
                             int64_t c_row, int64_t rows, int64_t columns, int64_t depth)
{
    for (int64_t column = 0; column < columns; column += 2 * LANES)
        for (int64_t row = 0; row < rows; row += ROWS) {
            const unit *left = a + row * a_row, *right = b + column;
            float *out = c + row * c_row + column;
            if (column + LANES < columns)
                add_vectors(left, a_row, right, b_row, out, c_row, depth, 2);
            else
                add_vectors(left, a_row, right, b_row, out, c_row, depth, 1);
        }
}

/* Whether this thread multiplies by tiles. */
static _Thread_local int has_tiles;

#if defined PAIRS && defined __AMX_BF16__ && defined __linux__
#include <sys/syscall.h>
#include <unistd.h>

/* A tile is a register for a matrix (Intel's AMX). Tiles 0 to 3 hold sums (16, 16); 4 holds units
   of a (16, 8) and 5 those of b (8, 16). Linux must be asked for them. */
static void start_products(void)
{
    enum { REQUEST = 0x1023, TILES = 18, DEPTH = SLOTS / PAIR };
    struct { uint8_t palette, row, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } shapes = {
        .palette = 1, .bytes = {64, 64, 64, 64, 4 * DEPTH, 64}, .rows = {16, 16, 16, 16, 16, DEPTH}
    };
    has_tiles = !syscall(SYS_arch_prctl, REQUEST, TILES);
    /* `_tile_loadconfig` of some compilers does not say that it reads all of the shapes. */
    if (has_tiles)
        __asm__ volatile("ldtilecfg %0" : : "m"(shapes));
}

static void end_products(void)
{
    if (has_tiles)
        _tile_release();
}

#define LOAD(nth) _tile_loadd(nth, out + nth * 16, 4 * c_row)
#define ADD(nth) _tile_loadd(5, right + nth * 16, 4 * b_row); _tile_dpbf16ps(nth, 4, 5)
#define STORE(nth) _tile_stored(nth, out + nth * 16, 4 * c_row)
#define FOR_COLUMNS(work)                                                                         \
    do {                                                                                          \
        work(0);                                                                                  \
        if (left > 16) { work(1); }                                                               \
        if (left > 32) { work(2); }                                                               \
        if (left > 48) { work(3); }                                                               \
    } while (0)

static void multiply_tiles(const unit *a, int64_t a_row, const unit *b, int64_t b_row, float *c,
                           int64_t c_row, int64_t rows, int64_t columns, int64_t depth)
{
    /* The compiler does not know that tiles read memory. */
    __asm__ volatile("" ::: "memory");
    for (int64_t row = 0; row < rows; row += 16)
        for (int64_t column = 0; column < columns; column += 64) {
            int64_t left = columns - column;
            float *out = c + row * c_row + column;
            FOR_COLUMNS(LOAD);
            for (int64_t i = 0; i < depth; i += SLOTS / PAIR) {
                const unit *right = b + i * b_row + column;
                _tile_loadd(4, a + row * a_row + i, 4 * a_row);
                FOR_COLUMNS(ADD);
            }
            FOR_COLUMNS(STORE);
        }
}
#else
static void start_products(void) {}
static void end_products(void) {}
#define multiply_tiles multiply_vectors
#endif

/* c (rows, columns) += a (rows, depth) b (depth, columns), between the calls of `start_products`
   and `end_products` in a thread; a_row is the step from a row of a to the next. */
static void multiply(const unit *a, int64_t a_row, const unit *b, int64_t b_row, float *c,
                     int64_t c_row, int64_t rows, int64_t columns, int64_t depth)
{
    (has_tiles ? multiply_tiles : multiply_vectors)(a, a_row, b, b_row, c, c_row, rows, columns,
                                                    depth);
}
