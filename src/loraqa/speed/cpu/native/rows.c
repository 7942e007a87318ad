/* Attention of answers being written: one new token each, to a trunk and to what is its own.

   Each row reads the keys and values that it sees where they lie: nothing is padded, copied or
   masked. Rows of one trunk follow one another, so that its keys are still in the cache. */

#include <stdlib.h>

#include "numbers.h"

/* What one head of one row sees, and where its result goes; all vectors are of the same size. */
struct head {
    const number *query, *trunk_keys, *trunk_values, *own_keys, *own_values;
    int64_t trunk, own;
    number *result;
};

/* scores[t] = query . keys[t] */
static inline void products(const float *restrict query, const number *restrict keys,
                            int64_t count, int64_t size, float *restrict scores)
{
    for (int64_t t = 0; t < count; t++, keys += size) {
        float product = 0.0f;
#pragma omp simd reduction(+ : product)
        for (int64_t i = 0; i < size; i++)
            product += query[i] * load(keys[i]);
        scores[t] = product;
    }
}

/* Scores become the numerators of their softmax, of which the sum is returned. */
static inline float exponentials(float *scores, int64_t count)
{
    float largest = scores[0], sum = 0.0f;
#pragma omp simd reduction(max : largest)
    for (int64_t t = 0; t < count; t++)
        largest = scores[t] > largest ? scores[t] : largest;
#pragma omp simd reduction(+ : sum)
    for (int64_t t = 0; t < count; t++) {
        scores[t] = exponential(scores[t] - largest);
        sum += scores[t];
    }
    return sum;
}

/* attended += the sum of weights[t] values[t] */
static inline void add(const float *restrict weights, const number *restrict values,
                       int64_t count, int64_t size, float *restrict attended)
{
    for (int64_t t = 0; t < count; t++, values += size) {
        float weight = weights[t];
#pragma omp simd
        for (int64_t i = 0; i < size; i++)
            attended[i] += weight * load(values[i]);
    }
}

/* `scratch` holds twice the size, and a number for each token that is seen. */
static inline void attend(const struct head *head, int64_t size, float scaling, float *scratch)
{
    float *query = scratch, *attended = query + size, *weights = attended + size;
    for (int64_t i = 0; i < size; i++) {
        query[i] = scaling * load(head->query[i]);
        attended[i] = 0.0f;
    }
    products(query, head->trunk_keys, head->trunk, size, weights);
    products(query, head->own_keys, head->own, size, weights + head->trunk);
    float sum = exponentials(weights, head->trunk + head->own);
    add(weights, head->trunk_values, head->trunk, size, attended);
    add(weights + head->trunk, head->own_values, head->own, size, attended);
    for (int64_t i = 0; i < size; i++)
        head->result[i] = rounded(attended[i] / sum);
}

/* queries, results: (rows, heads, size). trunk_keys, trunk_values: (key heads, tokens, size) of all
   trunks, of which a row sees those from trunk_starts[row] to before trunk_ends[row]. own_keys,
   own_values: (rows, key heads, room, size), seen from own_starts[row] to before own_end.
   Returns 1 if there is no memory to work in, else 0. */
int attend_rows(const number *queries, const number *trunk_keys, const number *trunk_values,
                const number *own_keys, const number *own_values, const int64_t *trunk_starts,
                const int64_t *trunk_ends, const int64_t *own_starts, number *results,
                int64_t own_end, int64_t rows, int64_t heads, int64_t key_heads, int64_t tokens,
                int64_t room, int64_t size, float scaling)
{
    int lacking = 0;
#pragma omp parallel reduction(| : lacking)
    {
        float *scratch = malloc((2 * size + tokens + room) * sizeof *scratch);
        lacking = !scratch;
#pragma omp for collapse(2) schedule(dynamic, 4)
        for (int64_t nth = 0; nth < heads; nth++) {
            for (int64_t row = 0; row < rows; row++) {
                int64_t key_head = nth * key_heads / heads;
                int64_t place = (row * heads + nth) * size;
                int64_t trunk = (key_head * tokens + trunk_starts[row]) * size;
                int64_t own = ((row * key_heads + key_head) * room + own_starts[row]) * size;
                struct head head = {
                    queries + place,
                    trunk_keys + trunk,
                    trunk_values + trunk,
                    own_keys + own,
                    own_values + own,
                    trunk_ends[row] - trunk_starts[row],
                    own_end - own_starts[row],
                    results + place,
                };
                if (scratch)
                    attend(&head, size, scaling, scratch);
            }
        }
        free(scratch);
    }
    return lacking;
}
