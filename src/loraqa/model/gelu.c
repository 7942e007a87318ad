/* GPT-2's GELU (Hendrycks and Gimpel 2016, with the hyperbolic tangent) and its slope.

   With tanh(u) = 2s(2u) - 1, s the logistic function, x (1 + tanh u) / 2 is x s(2u): one
   exponential and one division. All is computed in fp32, in one pass over memory. */

#include <math.h>
#include <stdint.h>
#include <string.h>

/* 2u = x (LINEAR + CUBIC x^2), LINEAR = 2 sqrt(2 / pi). */
static const float LINEAR = 1.5957691216057308f;
static const float CUBIC = 1.5957691216057308f * 0.044715f;

/* Fewer elements are not worth waking other threads. */
enum { ALONE = 32768 };

/* e^x of x <= 0, off by 2 units in the last place at most: the polynomial of Moshier's Cephes. */
static inline float exponential(float x)
{
    x = x < -87.0f ? -87.0f : x;
    float power = rintf(x * 1.44269504f);
    float rest = fmaf(power, 2.12194440e-4f, fmaf(power, -0.693359375f, x));
    float sum = 1.9875691500e-4f;
    sum = fmaf(sum, rest, 1.3981999507e-3f);
    sum = fmaf(sum, rest, 8.3334519073e-3f);
    sum = fmaf(sum, rest, 4.1665795894e-2f);
    sum = fmaf(sum, rest, 1.6666665459e-1f);
    sum = fmaf(sum, rest, 5.0000001201e-1f);
    sum = fmaf(sum, rest * rest, rest) + 1.0f;
    int32_t bits = ((int32_t)power + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return sum * scale;
}

static inline float gelu(float x, float *slope)
{
    float square = x * x;
    float twice_u = x * (LINEAR + CUBIC * square);
    /* s(-|2u|) is small * larger; as 1 - s(|2u|) it would be lost in rounding. */
    float small = exponential(-fabsf(twice_u));
    float larger = 1.0f / (1.0f + small);
    float gate = twice_u < 0.0f ? small * larger : larger;
    *slope = gate + x * small * larger * larger * (LINEAR + 3.0f * CUBIC * square);
    return x * gate;
}

static inline float from_float32(float x) { return x; }
static inline float to_float32(float x) { return x; }

static inline float from_bfloat16(uint16_t x)
{
    uint32_t bits = (uint32_t)x << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

/* To the nearest, of two as near to the even one. */
static inline uint16_t to_bfloat16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

#define KERNELS(dtype, number)                                                                    \
    void value_##dtype(const number *restrict x, number *restrict y, int64_t count)               \
    {                                                                                             \
        _Pragma("omp parallel for simd schedule(static) if(parallel: count > ALONE)")             \
        for (int64_t i = 0; i < count; i++) {                                                     \
            float slope;                                                                          \
            y[i] = to_##dtype(gelu(from_##dtype(x[i]), &slope));                                  \
        }                                                                                         \
    }                                                                                             \
                                                                                                  \
    void value_and_slope_##dtype(                                                                 \
        const number *restrict x, number *restrict y, number *restrict slopes, int64_t count)     \
    {                                                                                             \
        _Pragma("omp parallel for simd schedule(static) if(parallel: count > ALONE)")             \
        for (int64_t i = 0; i < count; i++) {                                                     \
            float slope;                                                                          \
            y[i] = to_##dtype(gelu(from_##dtype(x[i]), &slope));                                  \
            slopes[i] = to_##dtype(slope);                                                        \
        }                                                                                         \
    }

KERNELS(float32, float)
KERNELS(bfloat16, uint16_t)
