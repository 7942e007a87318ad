/* GPT-2's GELU (Hendrycks and Gimpel 2016, with the hyperbolic tangent) and its slope.

   With tanh(u) = 2s(2u) - 1, s the logistic function, x (1 + tanh u) / 2 is x s(2u): one
   exponential and one division, in one pass over memory. */

#include "numbers.h"

/* 2u = x (LINEAR + CUBIC x^2), LINEAR = 2 sqrt(2 / pi). */
static const float LINEAR = 1.5957691216057308f;
static const float CUBIC = 1.5957691216057308f * 0.044715f;

/* Fewer elements are not worth waking other threads. */
enum { ALONE = 32768 };

static inline float value(float x, float *slope)
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

void gelu(const number *restrict x, number *restrict y, int64_t count)
{
#pragma omp parallel for simd schedule(static) if(parallel: count > ALONE)
    for (int64_t i = 0; i < count; i++) {
        float slope;
        y[i] = rounded(value(load(x[i]), &slope));
    }
}

void gelu_and_slope(const number *restrict x, number *restrict y, number *restrict slopes,
                    int64_t count)
{
#pragma omp parallel for simd schedule(static) if(parallel: count > ALONE)
    for (int64_t i = 0; i < count; i++) {
        float slope;
        y[i] = rounded(value(load(x[i]), &slope));
        slopes[i] = rounded(slope);
    }
}
