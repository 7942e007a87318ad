/* Attention over packed trees, and its gradient, in parallel over trees and key heads.

   A tree is a trunk and its branches; each of these runs is causal, and branches also see the whole
   trunk. So a block of queries of a run sees all or nothing of the trunk, and its own run up to
   itself. Scores are computed again for the gradient (Dao et al. 2022).

   Every run starts at a multiple of SLOTS in memory, and what is between runs is 0. */

#include <stdlib.h>

#include "products.h"

/* Of a block. */
enum { QUERIES = 64 };

/* A trunk or a branch: its first token in the packed sequence, its first slot, its length. */
struct run {
    int64_t token, slot, length;
};

/* The runs of a tree, how many slots they take, and memory to work in. */
struct tree {
    struct run *runs;
    int64_t count, slots;
    float *floats;
    unit *units;
};

/* One head's numbers of a tree: where its first token's vector lies, and the step to the next. */
static void gather(const struct tree *tree, const number *x, int64_t step, int64_t size,
                   float factor, float *out)
{
    memset(out, 0, tree->slots * up(size) * sizeof *out);
    for (int64_t nth = 0; nth < tree->count; nth++)
        for (int64_t t = 0; t < tree->runs[nth].length; t++)
            for (int64_t i = 0; i < size; i++)
                out[(tree->runs[nth].slot + t) * up(size) + i] =
                    factor * load(x[(tree->runs[nth].token + t) * step + i]);
}

static void scatter(const struct run *run, int64_t first, int64_t count, const float *in,
                    int64_t size, float factor, number *x, int64_t step)
{
    for (int64_t t = 0; t < count; t++)
        for (int64_t i = 0; i < size; i++)
            x[(run->token + first + t) * step + i] = rounded(factor * in[t * up(size) + i]);
}

/* Queries of a run from `first`, `count` of them; they see `trunk` keys of the trunk, in `wide`
   slots, and keys of their own run, in `own` slots. */
struct block {
    int64_t first, count, rows, trunk, wide, own, width;
};

static struct block block_at(const struct tree *tree, int64_t nth, int64_t first)
{
    int64_t left = tree->runs[nth].length - first, count = left < QUERIES ? left : QUERIES;
    int64_t trunk = nth ? tree->runs[0].length : 0, own = up(first + count);
    return (struct block){first, count, up(count), trunk, up(trunk), own, up(trunk) + own};
}

/* c (rows, width) = a (rows, depth) times the columns of b (depth, slots) that the block sees. */
static void multiply_seen(const unit *a, const unit *b, const struct tree *tree,
                          const struct run *run, const struct block *block, int64_t depth,
                          float *c)
{
    memset(c, 0, block->rows * block->width * sizeof *c);
    multiply(a, depth, b, tree->slots, c, block->width, block->rows, block->wide, depth);
    multiply(a, depth, b + run->slot, tree->slots, c + block->wide, block->width, block->rows,
             block->own, depth);
}

/* c (rows, size) = a (rows, width) times the rows of b (slots, size) that the block sees. */
static void multiply_sum(const unit *a, const unit *b, const struct run *run,
                         const struct block *block, int64_t size, float *c)
{
    int64_t wide = block->wide / PAIR, step = block->width / PAIR;
    memset(c, 0, block->rows * size * sizeof *c);
    multiply(a, step, b, size, c, size, block->rows, size, wide);
    multiply(a + wide, step, b + run->slot / PAIR * size, size, c, size, block->rows, size,
             block->own / PAIR);
}

/* The rows of c (slots, size) that the block sees += a (width, rows) b (rows, size). */
static void multiply_back(const unit *a, const unit *b, const struct run *run,
                          const struct block *block, int64_t size, float *c)
{
    int64_t depth = block->rows / PAIR;
    multiply(a, depth, b, size, c, size, block->wide, size, depth);
    multiply(a + block->wide * depth, depth, b, size, c + run->slot * size, size, block->own, size,
             depth);
}

/* Scores become weights, e^(score - shift); what a query does not see becomes 0. */
static float exponentials(float *scores, int64_t seen, int64_t end, float shift)
{
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < seen; i++) {
        scores[i] = exponential(scores[i] - shift);
        sum += scores[i];
    }
    memset(scores + seen, 0, (end - seen) * sizeof *scores);
    return sum;
}

static float largest_of(const float *scores, int64_t count, float largest)
{
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < count; i++)
        largest = scores[i] > largest ? scores[i] : largest;
    return largest;
}

static void softmax(const struct block *block, float *scores, float *logs, int64_t step)
{
    for (int64_t row = 0; row < block->rows; row++) {
        float *trunk = scores + row * block->width, *own = trunk + block->wide;
        int64_t seen = row < block->count ? block->first + row + 1 : 0;
        if (!seen) {
            memset(trunk, 0, block->width * sizeof *trunk);
            continue;
        }
        float shift = largest_of(own, seen, largest_of(trunk, block->trunk, -INFINITY));
        float sum = exponentials(trunk, block->trunk, block->wide, shift)
                    + exponentials(own, seen, block->own, shift);
        float inverse = 1.0f / sum;
#pragma omp simd
        for (int64_t i = 0; i < block->width; i++)
            trunk[i] *= inverse;
        logs[row * step] = shift + logf(sum);
    }
}

/* Scores become weights p, and their slopes dp become p (dp - sum of p dp). */
static void softmax_gradient(const struct block *block, float *scores, float *slopes,
                             const float *logs, int64_t step)
{
    for (int64_t row = 0; row < block->rows; row++) {
        float *trunk = scores + row * block->width, *slope = slopes + row * block->width;
        if (row >= block->count) {
            memset(trunk, 0, block->width * sizeof *trunk);
            memset(slope, 0, block->width * sizeof *slope);
            continue;
        }
        /* A score is at most the logarithm of the sum, but for rounding. */
        exponentials(trunk, block->trunk, block->wide, logs[row * step]);
        exponentials(trunk + block->wide, block->first + row + 1, block->own, logs[row * step]);
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < block->width; i++)
            sum += trunk[i] * slope[i];
#pragma omp simd
        for (int64_t i = 0; i < block->width; i++)
            slope[i] = trunk[i] * (slope[i] - sum);
    }
}

/* A layer. Queries, results and slopes are (tokens, heads, size), keys and values (tokens, key
   heads, size), and their gradients like them; logs are (tokens, heads). */
struct layer {
    const number *queries, *keys, *values, *slopes;
    number *results, *d_queries, *d_keys, *d_values;
    float *logs;
    int64_t heads, key_heads, size;
    float scaling;
};

/* The results of the heads that share a key head, for the tokens of a tree. */
static void attend_tree(const struct layer *layer, const struct tree *tree, int64_t key_head)
{
    int64_t size = layer->size, padded = up(size), all = tree->slots * padded;
    int64_t heads = layer->heads, groups = heads / layer->key_heads;
    int64_t step = heads * size, key_step = layer->key_heads * size;
    float *x = tree->floats, *sums = x + all, *scores = sums + all;
    unit *turned = tree->units, *across = turned + all, *rows = across + all;
    unit *weights = rows + all;
    gather(tree, layer->keys + key_head * size, key_step, size, 1.0f, x);
    turn_along(x, tree->slots, padded, turned);
    gather(tree, layer->values + key_head * size, key_step, size, 1.0f, x);
    pack_across(x, tree->slots, padded, across);
    for (int64_t head = key_head * groups; head < (key_head + 1) * groups; head++) {
        gather(tree, layer->queries + head * size, step, size, layer->scaling, x);
        pack_along(x, tree->slots, padded, rows);
        for (int64_t nth = 0; nth < tree->count; nth++)
            for (int64_t first = 0; first < tree->runs[nth].length; first += QUERIES) {
                const struct run *run = &tree->runs[nth];
                struct block block = block_at(tree, nth, first);
                int64_t row = (run->slot + first) * padded / PAIR;
                multiply_seen(rows + row, turned, tree, run, &block, padded / PAIR, scores);
                softmax(&block, scores, layer->logs + (run->token + first) * heads + head, heads);
                pack_along(scores, block.rows, block.width, weights);
                multiply_sum(weights, across, run, &block, padded, sums);
                scatter(run, first, block.count, sums, size, 1.0f, layer->results + head * size,
                        step);
            }
    }
}

/* Their gradients, from `slopes`, the gradient of the results. */
static void attend_tree_gradient(const struct layer *layer, const struct tree *tree,
                                 int64_t key_head)
{
    int64_t size = layer->size, padded = up(size), all = tree->slots * padded;
    int64_t heads = layer->heads, groups = heads / layer->key_heads;
    int64_t step = heads * size, key_step = layer->key_heads * size;
    float *x = tree->floats, *sums = x + all, *d_key = sums + all, *d_value = d_key + all;
    float *scores = d_value + all, *d_scores = scores + QUERIES * tree->slots;
    unit *key_turned = tree->units, *key_across = key_turned + all;
    unit *value_turned = key_across + all, *query = value_turned + all;
    unit *query_across = query + all, *slope = query_across + all;
    unit *slope_across = slope + all, *weights = slope_across + all;
    memset(d_key, 0, 2 * all * sizeof *d_key);
    gather(tree, layer->values + key_head * size, key_step, size, 1.0f, x);
    turn_along(x, tree->slots, padded, value_turned);
    gather(tree, layer->keys + key_head * size, key_step, size, 1.0f, x);
    turn_along(x, tree->slots, padded, key_turned);
    pack_across(x, tree->slots, padded, key_across);
    for (int64_t head = key_head * groups; head < (key_head + 1) * groups; head++) {
        gather(tree, layer->slopes + head * size, step, size, 1.0f, x);
        pack_along(x, tree->slots, padded, slope);
        pack_across(x, tree->slots, padded, slope_across);
        gather(tree, layer->queries + head * size, step, size, layer->scaling, x);
        pack_along(x, tree->slots, padded, query);
        pack_across(x, tree->slots, padded, query_across);
        for (int64_t nth = 0; nth < tree->count; nth++)
            for (int64_t first = 0; first < tree->runs[nth].length; first += QUERIES) {
                const struct run *run = &tree->runs[nth];
                struct block block = block_at(tree, nth, first);
                int64_t row = (run->slot + first) * padded / PAIR;
                multiply_seen(query + row, key_turned, tree, run, &block, padded / PAIR, scores);
                multiply_seen(slope + row, value_turned, tree, run, &block, padded / PAIR,
                              d_scores);
                softmax_gradient(&block, scores, d_scores,
                                 layer->logs + (run->token + first) * heads + head, heads);
                turn_across(scores, block.rows, block.width, weights);
                multiply_back(weights, slope_across + row, run, &block, padded, d_value);
                turn_across(d_scores, block.rows, block.width, weights);
                multiply_back(weights, query_across + row, run, &block, padded, d_key);
                pack_along(d_scores, block.rows, block.width, weights);
                multiply_sum(weights, key_across, run, &block, padded, sums);
                scatter(run, first, block.count, sums, size, layer->scaling,
                        layer->d_queries + head * size, step);
            }
    }
    for (int64_t nth = 0; nth < tree->count; nth++) {
        const struct run *run = &tree->runs[nth];
        scatter(run, 0, run->length, d_key + run->slot * padded, size, 1.0f,
                layer->d_keys + key_head * size, key_step);
        scatter(run, 0, run->length, d_value + run->slot * padded, size, 1.0f,
                layer->d_values + key_head * size, key_step);
    }
}

/* The trees of a batch. lengths: of all runs, of which a tree has those from first_runs[tree] to
   before first_runs[tree + 1]; its first token is first_tokens[tree]. */
struct trees {
    const int64_t *lengths, *first_runs, *first_tokens;
    int64_t count;
};

/* Lay out the runs of a tree, if there is memory for them. */
static struct tree tree_at(const struct trees *trees, int64_t nth)
{
    const int64_t *lengths = trees->lengths + trees->first_runs[nth];
    int64_t count = trees->first_runs[nth + 1] - trees->first_runs[nth];
    int64_t token = trees->first_tokens[nth], slot = 0;
    struct run *runs = malloc(count * sizeof *runs);
    for (int64_t run = 0; runs && run < count; run++) {
        runs[run] = (struct run){token, slot, lengths[run]};
        token += lengths[run];
        slot += up(lengths[run]);
    }
    return (struct tree){runs, count, slot, NULL, NULL};
}

/* Call `work` for all trees and key heads. Its memory has room for the vectors of a tree's slots,
   `floats` and `units` times, and for twice the floats and once the units of a block's scores.
   Returns 1 if there is not so much memory, else 0. */
static int for_each_tree(const struct trees *trees, const struct layer *layer, int64_t floats,
                         int64_t units,
                         void work(const struct layer *, const struct tree *, int64_t))
{
    int lacking = 0;
#pragma omp parallel for collapse(2) schedule(dynamic) reduction(| : lacking)
    for (int64_t nth = 0; nth < trees->count; nth++)
        for (int64_t key_head = 0; key_head < layer->key_heads; key_head++) {
            struct tree tree = tree_at(trees, nth);
            int64_t all = tree.slots * up(layer->size), scores = QUERIES * tree.slots;
            tree.floats = malloc((floats * all + 2 * scores) * sizeof *tree.floats);
            tree.units = malloc((units * all + scores) * sizeof *tree.units);
            start_products();
            if (tree.runs && tree.floats && tree.units)
                work(layer, &tree, key_head);
            else
                lacking = 1;
            end_products();
            free(tree.units);
            free(tree.floats);
            free(tree.runs);
        }
    return lacking;
}

int attend_trees(const number *queries, const number *keys, const number *values,
                 const int64_t *lengths, const int64_t *first_runs, const int64_t *first_tokens,
                 number *results, float *logs, int64_t count, int64_t heads, int64_t key_heads,
                 int64_t size, float scaling)
{
    struct trees trees = {lengths, first_runs, first_tokens, count};
    struct layer layer = {.queries = queries, .keys = keys, .values = values,
                          .results = results, .logs = logs,
                          .heads = heads, .key_heads = key_heads, .size = size,
                          .scaling = scaling};
    return for_each_tree(&trees, &layer, 2, 3, attend_tree);
}

int attend_trees_gradient(const number *queries, const number *keys, const number *values,
                          const number *slopes, float *logs, const int64_t *lengths,
                          const int64_t *first_runs, const int64_t *first_tokens,
                          number *d_queries, number *d_keys, number *d_values, int64_t count,
                          int64_t heads, int64_t key_heads, int64_t size, float scaling)
{
    struct trees trees = {lengths, first_runs, first_tokens, count};
    struct layer layer = {.queries = queries, .keys = keys, .values = values, .slopes = slopes,
                          .d_queries = d_queries, .d_keys = d_keys, .d_values = d_values,
                          .logs = logs, .heads = heads, .key_heads = key_heads, .size = size,
                          .scaling = scaling};
    return for_each_tree(&trees, &layer, 4, 7, attend_tree_gradient);
}
