/* Root mean square layer normalization (Zhang and Sennrich 2019) and its gradient.

   y = w x r, with r = 1 / sqrt(mean of x^2 + eps) of each row. The gradient computes r again: it
   reads x anyway. */

#include "numbers.h"

/* Fewer elements are not worth waking other threads. */
enum { ALONE = 32768 };

static inline float inverse_root(const number *restrict x, int64_t width, float eps)
{
    float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < width; i++)
        squares += load(x[i]) * load(x[i]);
    return 1.0f / sqrtf(squares / width + eps);
}

/* x, y: (rows, width). weight: (width). */
void norm(const number *restrict x, const number *restrict weight, number *restrict y,
          int64_t rows, int64_t width, float eps)
{
#pragma omp parallel for schedule(static) if(rows * width > ALONE)
    for (int64_t row = 0; row < rows; row++) {
        const number *in = x + row * width;
        number *out = y + row * width;
        float root = inverse_root(in, width, eps);
#pragma omp simd
        for (int64_t i = 0; i < width; i++)
            out[i] = rounded(load(weight[i]) * (load(in[i]) * root));
    }
}

/* dx = r (w dy - x r^2 mean(w dy x)). All but weight, (width), are (rows, width). */
void norm_gradient(const number *restrict x, const number *restrict weight,
                   const number *restrict dy, number *restrict dx, int64_t rows, int64_t width,
                   float eps)
{
#pragma omp parallel for schedule(static) if(rows * width > ALONE)
    for (int64_t row = 0; row < rows; row++) {
        const number *in = x + row * width, *slope = dy + row * width;
        number *out = dx + row * width;
        float root = inverse_root(in, width, eps), product = 0.0f;
#pragma omp simd reduction(+ : product)
        for (int64_t i = 0; i < width; i++)
            product += load(weight[i]) * load(slope[i]) * load(in[i]);
        float along = product / width * root * root;
#pragma omp simd
        for (int64_t i = 0; i < width; i++)
            out[i] = rounded(root * (load(weight[i]) * load(slope[i]) - along * load(in[i])));
    }
}
