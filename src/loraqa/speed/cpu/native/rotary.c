/* Rotary position embedding (Su et al. 2021) as in Llama, and its gradient.

   The first half a of a head and its second half b become a cos - b sin and b cos + a sin. */

#include "numbers.h"

/* Fewer elements are not worth waking other threads. */
enum { ALONE = 32768 };

/* x, y: (tokens, heads, size). cosines, sines: (tokens, size). The first half of y
   takes the sines from `first` on, the second half those from `second` on, all times `sign`. */
static inline void turn(const number *restrict x, const number *restrict cosines,
                        const number *restrict sines, number *restrict y, int64_t tokens,
                        int64_t heads, int64_t size, int64_t first, int64_t second, float sign)
{
    int64_t half = size / 2;
#pragma omp parallel for schedule(static) if(tokens * heads * size > ALONE)
    for (int64_t token = 0; token < tokens; token++) {
        const number *cosine = cosines + token * size, *sine = sines + token * size;
        for (int64_t head = 0; head < heads; head++) {
            const number *a = x + (token * heads + head) * size, *b = a + half;
            number *out = y + (token * heads + head) * size;
#pragma omp simd
            for (int64_t i = 0; i < half; i++) {
                out[i] = rounded(load(a[i]) * load(cosine[i])
                                 - load(b[i]) * (sign * load(sine[first + i])));
                out[half + i] = rounded(load(b[i]) * load(cosine[half + i])
                                        + load(a[i]) * (sign * load(sine[second + i])));
            }
        }
    }
}

void rotate(const number *x, const number *cosines, const number *sines, number *y,
            int64_t tokens, int64_t heads, int64_t size)
{
    turn(x, cosines, sines, y, tokens, heads, size, 0, size / 2, 1.0f);
}

/* The same, transposed: from the gradient of y to that of x. */
void rotate_back(const number *dy, const number *cosines, const number *sines, number *dx,
                 int64_t tokens, int64_t heads, int64_t size)
{
    turn(dy, cosines, sines, dx, tokens, heads, size, size / 2, 0, -1.0f);
}
