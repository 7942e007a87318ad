/* SwiGLU's product (Shazeer 2020), x s(x) up with the logistic function s, and its gradient. */

#include "numbers.h"

/* Fewer elements are not worth waking other threads. */
enum { ALONE = 32768 };

static inline float logistic(float x)
{
    /* s(-|x|) is small * larger; as 1 - s(|x|) it would be lost in rounding. */
    float small = exponential(-fabsf(x));
    float larger = 1.0f / (1.0f + small);
    return x < 0.0f ? small * larger : larger;
}

void gated(const number *restrict x, const number *restrict up, number *restrict y, int64_t count)
{
#pragma omp parallel for simd schedule(static) if(parallel: count > ALONE)
    for (int64_t i = 0; i < count; i++)
        y[i] = rounded(load(x[i]) * logistic(load(x[i])) * load(up[i]));
}

void gated_gradient(const number *restrict x, const number *restrict up,
                    const number *restrict dy, number *restrict dx, number *restrict d_up,
                    int64_t count)
{
#pragma omp parallel for simd schedule(static) if(parallel: count > ALONE)
    for (int64_t i = 0; i < count; i++) {
        float wide = load(x[i]), slope = load(dy[i]);
        float gate = logistic(wide), silu = wide * gate;
        dx[i] = rounded(slope * load(up[i]) * (gate + silu * (1.0f - gate)));
        d_up[i] = rounded(slope * silu);
    }
}
