/* A Llama-family model and the room its forward pass works in. */
#pragma once
#include "attention.h"
#include "crew.h"
#include "matrix.h"

#define MOST_ROWS 64 /* rows of an item: their codes and sums stay in the core's own caches */
#define WIDE 32      /* channels of an item: one group of what follows */
#define MOST_SPLIT_ROWS 8 /* up to so many rows, threads share one row's chunks */

typedef struct {
    int32_t layers, hidden, heads, kv_heads, dim, intermediate, vocab, context, block_tokens, most_rows;
    float eps, softmax_scale;
} shape;

typedef struct {
    const float *attention_norm, *mlp_norm, *query_norm, *key_norm; /* the last two or NULL */
    matrix qkv, out, gate, up, down;
} layer;

/* The rows of one call. A piece is a run of one sequence's rows. */
typedef struct {
    int32_t rows, pieces, wanted;
    const int32_t *tokens, *positions;     /* (rows,) */
    const int32_t *starts, *table_starts;  /* (pieces + 1,) first row, first block id */
    const int32_t *tables;                 /* block ids of all pieces */
    const int32_t *wanted_rows;            /* (wanted,) rows whose logits are wanted */
    float *logits;                         /* (wanted, vocab) */
    uint8_t *bad;                          /* (rows,) set to 1 where a number is not finite */
} call;

/* Up to TILE_ROWS rows at neighbouring positions of one piece, inside one chunk. */
typedef struct {
    int32_t piece, row, rows, position, chunks, part;
} tile;

typedef struct {
    attention_room attention;
    int thread;
    float *queries, *values, *chunk_values; /* (TILE_ROWS * shared, dim) */
    state *states, *chunk_states;           /* (TILE_ROWS * shared,) */
    float *out;                             /* (MOST_ROWS, 2 * max(WIDE, dim)) */
    float *one;                             /* (max(hidden, dim),) */
    rows8 own;                              /* one row of codes, as wide as the widest input */
} room;

typedef struct {
    shape s;
    crew crew;
    layer *layers;
    matrix embedding, head;
    const float *final_norm, *cosine, *sine; /* (context, dim / 2) */
    uint16_t *pool;
    int64_t block_elements;
    float *x, *q;           /* (rows, hidden), (rows, heads, dim) */
    rows8 normed, mixed, active; /* inputs of qkv and the MLP, of out, of down */
    room *rooms;
    tile *tiles;
    int32_t *part_tile, *part_chunk; /* split: which tile and chunk a part is */
    state *part_states;
    float *part_values;
    int32_t tile_count, part_count, part_room;
    int split;
    const call *call;
} model;

static int shared_heads(const model *m) { return m->s.heads / m->s.kv_heads; }
static int tile_heads(const model *m) { return TILE_ROWS * shared_heads(m); }
