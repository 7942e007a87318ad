/* The numbers of a tensor, of the dtype that is compiled for. All is counted in fp32. */

/* For many processors GCC prefers shorter vectors, which are no faster and do half as much. */
#if defined __AVX512F__ && !defined __clang__
#pragma GCC target("prefer-vector-width=512")
#endif

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef BFLOAT16

typedef uint16_t number;

static inline float load(number x)
{
    uint32_t bits = (uint32_t)x << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

/* To the nearest, of two as near to the even one. */
static inline number rounded(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (number)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

#else

typedef float number;

static inline float load(number x) { return x; }
static inline number rounded(float x) { return x; }

#endif

/* e^x of x <= 0, off by 2 units in the last place at most: the polynomial of Moshier's Cephes. */
static inline float exponential(float x)
{
    x = x < -87.0f ? -87.0f : x;
    float power = rintf(x * 1.44269504f);
    float rest = x - power * 0.693359375f + power * 2.12194440e-4f;
    float sum = 1.9875691500e-4f;
    sum = sum * rest + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * rest * rest + rest + 1.0f;
    int32_t bits = ((int32_t)power + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return sum * scale;
}
