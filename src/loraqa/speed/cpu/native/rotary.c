/* Rotary position embedding (Su et al. 2021) as in Llama, and its gradient.

   The first half a of a head and its second half b become a cos - b sin and b cos + a sin. */

#include "numbers.h"

/* Fewer elements are not worth waking other threads. */
enum { ALONE = 32768 };

/* x, y: (tokens, heads, size). cosines, sines: (tokens, size). */
void rotate(const number *restrict x, const number *restrict cosines,
            const number *restrict sines, number *restrict y, int64_t tokens, int64_t heads,
            int64_t size)
{
    int64_t half = size / 2;
#pragma omp parallel for schedule(static) if(tokens * heads * size > ALONE)
    for (int64_t token = 0; token < tokens; token++) {
        const number *cosine = cosines + token * size, *sine = sines + token * size;
        for (int64_t head = 0; head < heads; head++) {
            const number *a = x + (token * heads + head) * size, *b = a + half;
            number *first = y + (token * heads + head) * size, *second = first + half;
#pragma omp simd
            for (int64_t i = 0; i < half; i++) {
                first[i] = rounded(load(a[i]) * load(cosine[i]) - load(b[i]) * load(sine[i]));
                second[i] = rounded(load(b[i]) * load(cosine[half + i])
                                    + load(a[i]) * load(sine[half + i]));
            }
        }
    }
}

/* The same, transposed: from the gradient of y to that of x. */
void rotate_back(const number *restrict dy, const number *restrict cosines,
                 const number *restrict sines, number *restrict dx, int64_t tokens,
                 int64_t heads, int64_t size)
{
    int64_t half = size / 2;
#pragma omp parallel for schedule(static) if(tokens * heads * size > ALONE)
    for (int64_t token = 0; token < tokens; token++) {
        const number *cosine = cosines + token * size, *sine = sines + token * size;
        for (int64_t head = 0; head < heads; head++) {
            const number *a = dy + (token * heads + head) * size, *b = a + half;
            number *first = dx + (token * heads + head) * size, *second = first + half;
#pragma omp simd
            for (int64_t i = 0; i < half; i++) {
                first[i] = rounded(load(a[i]) * load(cosine[i])
                                   + load(b[i]) * load(sine[half + i]));
                second[i] = rounded(load(b[i]) * load(cosine[half + i])
                                    - load(a[i]) * load(sine[i]));
            }
        }
    }
}
