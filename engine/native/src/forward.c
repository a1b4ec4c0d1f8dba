/* The forward pass of a Llama-family model in one call: every thread of the crew runs `forward`.
 *
 *     embed -> layers x [norm -> qkv, rotated, into the pool -> attention -> out -> norm -> gate, up -> down] -> head
 *
 * Residual rows are fp32. Each row's result has the same bits in every company: see `matrix.h` and
 * `attention.h`. With one row, small steps (norms, the merging of chunks) are done by every thread for
 * itself: cheaper than a gate.
 */
#include "model.h"

enum { EMBED, NORMED, QKV, ATTEND, MERGED, OUT, NORMED_AGAIN, GATE_UP, DOWN, PHASES };

static int phase(int number, int which) { return number * PHASES + which; }
static int ceil_div(int a, int b) { return (a + b - 1) / b; }

static void normalise(const float *x, const float *weight, float *out, int width, float eps) {
    f8 sum = _mm256_setzero_ps();
    for (int i = 0; i < width; i += 8) {
        f8 v = _mm256_loadu_ps(x + i);
        sum = _mm256_fmadd_ps(v, v, sum);
    }
    const f8 by = _mm256_set1_ps(1.0f / sqrtf(f8_sum(sum) / (float)width + eps));
    for (int i = 0; i < width; i += 8)
        _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(x + i), by), _mm256_loadu_ps(weight + i)));
}

static void norm_row(const model *m, room *r, int row, const float *weight, const rows8 *to, int at) {
    normalise(m->x + (int64_t)row * m->s.hidden, weight, r->one, m->s.hidden, m->s.eps);
    for (int g = 0; g < m->s.hidden / GROUP; g++) quantise(r->one + g * GROUP, to, g, at);
}

/* The normed rows as codes: every row by somebody, or the only one by everybody for itself. */
static const rows8 *norm_all(model *m, room *r, int number, int which, const float *weight) {
    if (m->call->rows == 1) {
        norm_row(m, r, 0, weight, &r->own, 0);
        return &r->own;
    }
    const int items = ceil_div(m->call->rows, 4);
    for (int item; (item = take(&m->crew, phase(number, which), items, r->thread)) >= 0;)
        for (int row = 4 * item; row < 4 * item + 4 && row < m->call->rows; row++)
            norm_row(m, r, row, weight, &m->normed, row);
    gate(&m->crew, r->thread);
    return &m->normed;
}

static int finite8(const float *x, int width) {
    const f8 most = _mm256_set1_ps(3.0e38f), sign = _mm256_set1_ps(-0.0f);
    f8 good = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
    for (int i = 0; i < width; i += 8)
        good = _mm256_and_ps(good, _mm256_cmp_ps(_mm256_andnot_ps(sign, _mm256_loadu_ps(x + i)), most, _CMP_LE_OQ));
    return _mm256_movemask_ps(good) == 255;
}

/* Rotary positions (Su et al., 2021), pairs half a head apart. */
static void rotate(const model *m, float *x, int position) {
    const int half = m->s.dim / 2;
    const float *c = m->cosine + (int64_t)position * half, *s = m->sine + (int64_t)position * half;
    for (int i = 0; i < half; i += 8) {
        f8 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + half + i);
        f8 cc = _mm256_loadu_ps(c + i), ss = _mm256_loadu_ps(s + i);
        _mm256_storeu_ps(x + i, _mm256_sub_ps(_mm256_mul_ps(a, cc), _mm256_mul_ps(b, ss)));
        _mm256_storeu_ps(x + half + i, _mm256_add_ps(_mm256_mul_ps(b, cc), _mm256_mul_ps(a, ss)));
    }
}

static uint16_t *block_of(const model *m, int number, int block) {
    return m->pool + block * m->block_elements + number * (m->block_elements / m->s.layers);
}

/* A row's key or value into the pool; zeros for what is not finite, as others read beside it. */
static void keep(const model *m, int number, int head, int is_value, int piece, int row, const float *x) {
    const int tokens = m->s.block_tokens, dim = m->s.dim, position = m->call->positions[row];
    const int block = m->call->tables[m->call->table_starts[piece] + position / tokens], at = position % tokens;
    uint16_t *to = block_of(m, number, block) + (int64_t)head * dim * tokens;
    const int good = finite8(x, dim);
    if (!good) m->call->bad[row] = 1;
    if (is_value) {
        to += (int64_t)m->s.kv_heads * dim * tokens + (int64_t)at * dim;
        for (int d = 0; d < dim; d++) to[d] = good ? to_bf16(x[d]) : 0;
    } else {
        for (int d = 0; d < dim; d++) to[(int64_t)d * tokens + at] = good ? to_bf16(x[d]) : 0;
    }
}

static void qkv_item(model *m, room *r, int number, const rows8 *in, int head, int first, int count) {
    const layer *l = &m->layers[number];
    const int dim = m->s.dim, heads = m->s.heads, keys = heads + m->s.kv_heads;
    linear(&l->qkv, head * dim, dim, in, first, count, r->out);
    int piece = 0;
    for (int i = 0; i < count; i++) {
        const int row = first + i;
        float *x = r->out + (int64_t)i * dim;
        const float *norm = head < heads ? l->query_norm : head < keys ? l->key_norm : NULL;
        if (norm) normalise(x, norm, x, dim, m->s.eps);
        if (head < keys) rotate(m, x, m->call->positions[row]);
        if (head < heads) {
            memcpy(m->q + ((int64_t)row * heads + head) * dim, x, dim * sizeof *x);
            continue;
        }
        while (row >= m->call->starts[piece + 1]) piece++;
        keep(m, number, (head - heads) % m->s.kv_heads, head >= keys, piece, row, x);
    }
}

/* -- attention -------------------------------------------------------------------------------------- */

static paged pages(const model *m, int number, int kv_head, int piece) {
    const int64_t head = (int64_t)m->s.dim * m->s.block_tokens;
    return (paged){
        .pool = block_of(m, number, 0) + kv_head * head,
        .block_stride = m->block_elements,
        .values = m->s.kv_heads * head,
        .table = m->call->tables + m->call->table_starts[piece],
        .block_tokens = m->s.block_tokens,
        .dim = m->s.dim,
    };
}

static void gather_queries(const model *m, room *r, const tile *t, int kv_head) {
    const int shared = shared_heads(m), dim = m->s.dim;
    const f8 scale = _mm256_set1_ps(m->s.softmax_scale * 1.44269504f); /* weights are powers of two */
    for (int i = 0; i < t->rows; i++) {
        const float *from = m->q + ((int64_t)(t->row + i) * m->s.heads + kv_head * shared) * dim;
        for (int d = 0; d < shared * dim; d += 8)
            _mm256_storeu_ps(r->queries + (int64_t)i * shared * dim + d, _mm256_mul_ps(_mm256_loadu_ps(from + d), scale));
    }
}

static void chunk_of(const model *m, room *r, const tile *t, int number, int kv_head, int chunk, state *states, float *values) {
    const int shared = shared_heads(m);
    int seen[TILE_ROWS * MAX_SHARED], most = 0;
    for (int i = 0; i < t->rows; i++) {
        int keys = t->position + i + 1 - chunk * CHUNK;
        if (keys > CHUNK) keys = CHUNK;
        if (keys > most) most = keys;
        for (int g = 0; g < shared; g++) seen[i * shared + g] = keys;
    }
    const paged kv = pages(m, number, kv_head, t->piece);
    attend_chunk(&kv, chunk, r->queries, t->rows * shared, seen, most, &r->attention, states, values);
}

/* What a tile's query heads of one KV head heard, as codes for the output projection. */
static void finish(const model *m, const tile *t, int kv_head, const state *states, float *values, const rows8 *to, int at) {
    const int shared = shared_heads(m), dim = m->s.dim;
    for (int i = 0; i < t->rows * shared; i++) {
        float *v = values + (int64_t)i * dim;
        const f8 total = _mm256_set1_ps(states[i].total);
        for (int d = 0; d < dim; d += 8) _mm256_storeu_ps(v + d, _mm256_div_ps(_mm256_loadu_ps(v + d), total));
        const int head = kv_head * shared + i % shared;
        for (int d = 0; d < dim; d += GROUP) quantise(v + d, to, (head * dim + d) / GROUP, at + i / shared);
    }
}

static void whole_item(model *m, room *r, int number, const tile *t, int kv_head) {
    const int count = t->rows * shared_heads(m), dim = m->s.dim;
    gather_queries(m, r, t, kv_head);
    chunk_of(m, r, t, number, kv_head, 0, r->states, r->values);
    for (int chunk = 1; chunk < t->chunks; chunk++) {
        chunk_of(m, r, t, number, kv_head, chunk, r->chunk_states, r->chunk_values);
        for (int i = 0; i < count; i++)
            merge(&r->states[i], r->values + (int64_t)i * dim, &r->chunk_states[i], r->chunk_values + (int64_t)i * dim, dim);
    }
    finish(m, t, kv_head, r->states, r->values, &m->mixed, t->row);
}

static int64_t part_at(const model *m, int part, int kv_head) { return ((int64_t)part * m->s.kv_heads + kv_head) * tile_heads(m); }

static void merged_item(const model *m, room *r, const tile *t, int kv_head, const rows8 *to, int at) {
    const int count = t->rows * shared_heads(m), dim = m->s.dim;
    for (int chunk = 0; chunk < t->chunks; chunk++) {
        const int64_t from = part_at(m, t->part + chunk, kv_head);
        const state *states = m->part_states + from;
        const float *values = m->part_values + from * dim;
        if (chunk == 0) {
            memcpy(r->states, states, count * sizeof *states);
            memcpy(r->values, values, (int64_t)count * dim * sizeof *values);
            continue;
        }
        for (int i = 0; i < count; i++)
            merge(&r->states[i], r->values + (int64_t)i * dim, &states[i], values + (int64_t)i * dim, dim);
    }
    finish(m, t, kv_head, r->states, r->values, to, at);
}

/* Codes of what all rows heard, in every row's own order: see `attention.h`. */
static const rows8 *attend_all(model *m, room *r, int number) {
    crew *c = &m->crew;
    const int heads = m->s.kv_heads;
    if (!m->split) {
        for (int item; (item = take(c, phase(number, ATTEND), m->tile_count * heads, r->thread)) >= 0;)
            whole_item(m, r, number, &m->tiles[item / heads], item % heads);
        gate(c, r->thread);
        return &m->mixed;
    }
    for (int item; (item = take(c, phase(number, ATTEND), m->part_count * heads, r->thread)) >= 0;) {
        const int part = item / heads, head = item % heads;
        const tile *t = &m->tiles[m->part_tile[part]];
        const int64_t at = part_at(m, part, head);
        gather_queries(m, r, t, head);
        chunk_of(m, r, t, number, head, m->part_chunk[part], m->part_states + at, m->part_values + at * m->s.dim);
    }
    gate(c, r->thread);
    if (m->call->rows == 1) {
        for (int head = 0; head < heads; head++) merged_item(m, r, &m->tiles[0], head, &r->own, 0);
        return &r->own;
    }
    for (int item; (item = take(c, phase(number, MERGED), m->tile_count * heads, r->thread)) >= 0;)
        merged_item(m, r, &m->tiles[item / heads], item % heads, &m->mixed, m->tiles[item / heads].row);
    gate(c, r->thread);
    return &m->mixed;
}

/* -- the other half --------------------------------------------------------------------------------- */

/* x += w in, WIDE channels and up to MOST_ROWS rows an item. */
static void add_all(model *m, room *r, int phase_number, const matrix *w, const rows8 *in) {
    const int rows = m->call->rows, pieces = ceil_div(rows, MOST_ROWS), items = m->s.hidden / WIDE * pieces;
    for (int item; (item = take(&m->crew, phase_number, items, r->thread)) >= 0;) {
        const int channel = item / pieces * WIDE, first = item % pieces * MOST_ROWS;
        const int count = rows - first < MOST_ROWS ? rows - first : MOST_ROWS;
        linear(w, channel, WIDE, in, first, count, r->out);
        for (int i = 0; i < count; i++) {
            float *x = m->x + (int64_t)(first + i) * m->s.hidden + channel;
            for (int c = 0; c < WIDE; c += 8)
                _mm256_storeu_ps(x + c, _mm256_add_ps(_mm256_loadu_ps(x + c), _mm256_loadu_ps(r->out + i * WIDE + c)));
        }
    }
    gate(&m->crew, r->thread);
}

/* SwiGLU (Shazeer, 2020): WIDE gates and values become one group of codes. */
static void gate_up_item(model *m, room *r, const layer *l, const rows8 *in, int group, int first, int count) {
    float *gates = r->out, *values = r->out + MOST_ROWS * WIDE;
    linear(&l->gate, group * WIDE, WIDE, in, first, count, gates);
    linear(&l->up, group * WIDE, WIDE, in, first, count, values);
    const f8 one = _mm256_set1_ps(1.0f), minus_log2e = _mm256_set1_ps(-1.44269504f), most = _mm256_set1_ps(126.0f);
    for (int i = 0; i < count; i++) {
        for (int c = 0; c < WIDE; c += 8) {
            f8 g = _mm256_loadu_ps(gates + i * WIDE + c);
            f8 e = f8_exp2(_mm256_min_ps(_mm256_mul_ps(g, minus_log2e), most));
            f8 silu = _mm256_div_ps(g, _mm256_add_ps(one, e));
            _mm256_storeu_ps(gates + i * WIDE + c, _mm256_mul_ps(silu, _mm256_loadu_ps(values + i * WIDE + c)));
        }
        quantise(gates + i * WIDE, &m->active, group, first + i);
    }
}

static void layer_pass(model *m, room *r, int number) {
    const layer *l = &m->layers[number];
    const int rows = m->call->rows, pieces = ceil_div(rows, MOST_ROWS);
    const rows8 *in = norm_all(m, r, number, NORMED, l->attention_norm);
    const int qkv = (m->s.heads + 2 * m->s.kv_heads) * pieces;
    for (int item; (item = take(&m->crew, phase(number, QKV), qkv, r->thread)) >= 0;) {
        const int first = item % pieces * MOST_ROWS;
        qkv_item(m, r, number, in, item / pieces, first, rows - first < MOST_ROWS ? rows - first : MOST_ROWS);
    }
    gate(&m->crew, r->thread);
    in = attend_all(m, r, number);
    add_all(m, r, phase(number, OUT), &l->out, in);
    in = norm_all(m, r, number, NORMED_AGAIN, l->mlp_norm);
    const int gates = m->s.intermediate / WIDE * pieces;
    for (int item; (item = take(&m->crew, phase(number, GATE_UP), gates, r->thread)) >= 0;) {
        const int first = item % pieces * MOST_ROWS;
        gate_up_item(m, r, l, in, item / pieces, first, rows - first < MOST_ROWS ? rows - first : MOST_ROWS);
    }
    gate(&m->crew, r->thread);
    add_all(m, r, phase(number, DOWN), &l->down, &m->active);
}

static void head_pass(model *m, room *r) {
    const call *c = m->call;
    const int last = m->s.layers, vocab = m->s.vocab;
    for (int item; (item = take(&m->crew, phase(last, NORMED), c->wanted, r->thread)) >= 0;)
        norm_row(m, r, c->wanted_rows[item], m->final_norm, &m->normed, item);
    gate(&m->crew, r->thread);
    const int pieces = ceil_div(c->wanted, MOST_ROWS), items = ceil_div(vocab, WIDE) * pieces;
    for (int item; (item = take(&m->crew, phase(last, OUT), items, r->thread)) >= 0;) {
        const int channel = item / pieces * WIDE, first = item % pieces * MOST_ROWS;
        const int count = c->wanted - first < MOST_ROWS ? c->wanted - first : MOST_ROWS;
        const int width = vocab - channel < WIDE ? vocab - channel : WIDE;
        linear(&m->head, channel, WIDE, &m->normed, first, count, r->out);
        for (int i = 0; i < count; i++)
            memcpy(c->logits + (int64_t)(first + i) * vocab + channel, r->out + i * WIDE, width * sizeof(float));
    }
}

static void forward(void *what, int thread) {
    model *m = what;
    room *r = &m->rooms[thread];
    r->thread = thread;
    const call *c = m->call;
    for (int row; (row = take(&m->crew, phase(m->s.layers, EMBED), c->rows, r->thread)) >= 0;)
        dequantise_row(&m->embedding, c->tokens[row], m->x + (int64_t)row * m->s.hidden);
    gate(&m->crew, r->thread);
    for (int number = 0; number < m->s.layers; number++) layer_pass(m, r, number);
    for (int row; (row = take(&m->crew, phase(m->s.layers, QKV), c->rows, r->thread)) >= 0;)
        if (!finite8(m->x + (int64_t)row * m->s.hidden, m->s.hidden)) c->bad[row] = 1;
    if (c->wanted) head_pass(m, r);
}

/* -- what Python calls ------------------------------------------------------------------------------ */

static void *zeros(int64_t count, int64_t size) {
    const int64_t bytes = (count * size + 127) / 64 * 64;
    void *memory = aligned_alloc(64, (size_t)bytes);
    return memory ? memset(memory, 0, (size_t)bytes) : NULL;
}

static int make_rows(rows8 *r, int width, int rows) {
    r->stride = rows;
    r->codes = zeros((int64_t)width * rows, 1);
    r->scales = zeros((int64_t)width / GROUP * rows, sizeof(float));
    r->sums = zeros((int64_t)width / GROUP * rows, sizeof(float));
    return r->codes && r->scales && r->sums ? 0 : -1;
}

static void free_rows(rows8 *r) {
    free(r->codes);
    free(r->scales);
    free(r->sums);
}

int kvgate_lanes(void) { return LANES; }

int64_t kvgate_packed_bytes(int outputs, int inputs, int bits) {
    return (int64_t)ceil_div(outputs, WIDE) * (WIDE / LANES) * (inputs / GROUP) * tile_bytes(bits);
}

void kvgate_pack(const uint8_t *rows, int outputs, int inputs, int bits, uint8_t *tiles) { pack(rows, outputs, inputs, bits, tiles); }

/* y (rows, outputs) = w x: one linear layer by itself, for tests and for the check at the start. */
int kvgate_linear(const matrix *w, const float *x, int rows, float *y) {
    rows8 codes = {0};
    float out[MOST_ROWS * WIDE];
    int status = make_rows(&codes, w->inputs, rows);
    for (int row = 0; row < rows && !status; row++)
        for (int g = 0; g < w->inputs / GROUP; g++) quantise(x + (int64_t)row * w->inputs + g * GROUP, &codes, g, row);
    for (int c = 0; c < w->outputs && !status; c += WIDE)
        for (int first = 0; first < rows; first += MOST_ROWS) {
            const int count = rows - first < MOST_ROWS ? rows - first : MOST_ROWS;
            const int width = w->outputs - c < WIDE ? w->outputs - c : WIDE;
            linear(w, c, WIDE, &codes, first, count, out);
            for (int i = 0; i < count; i++) memcpy(y + (int64_t)(first + i) * w->outputs + c, out + i * WIDE, width * sizeof(float));
        }
    free_rows(&codes);
    return status;
}

void kvgate_free(model *m) {
    if (!m) return;
    if (m->rooms)
        for (int i = 0; i < m->crew.threads; i++) {
            room *r = &m->rooms[i];
            free(r->queries), free(r->values), free(r->chunk_values), free(r->states), free(r->chunk_states);
            free(r->out), free(r->one), free_rows(&r->own);
        }
    if (m->crew.items) crew_end(&m->crew);
    free_rows(&m->normed), free_rows(&m->mixed), free_rows(&m->active);
    free(m->layers), free(m->x), free(m->q), free(m->rooms), free(m->tiles);
    free(m->part_tile), free(m->part_chunk), free(m->part_states), free(m->part_values);
    free(m);
}

static int make_room(const model *m, room *r) {
    const int heads = tile_heads(m), dim = m->s.dim;
    const int widest = m->s.hidden > m->s.heads * dim ? m->s.hidden : m->s.heads * dim;
    r->queries = zeros((int64_t)heads * dim, sizeof(float));
    r->values = zeros((int64_t)heads * dim, sizeof(float));
    r->chunk_values = zeros((int64_t)heads * dim, sizeof(float));
    r->states = zeros(heads, sizeof(state));
    r->chunk_states = zeros(heads, sizeof(state));
    r->out = zeros(2 * MOST_ROWS * (int64_t)(dim > WIDE ? dim : WIDE), sizeof(float));
    r->one = zeros(m->s.hidden, sizeof(float));
    const int good = r->queries && r->values && r->chunk_values && r->states && r->chunk_states && r->out && r->one;
    return make_rows(&r->own, widest, 1) || !good ? -1 : 0;
}

/* NULL when memory or threads cannot be had. Weights and pool stay the caller's. */
model *kvgate_new(const shape *s, const layer *layers, const matrix *embedding, const matrix *head,
                  const float *final_norm, const float *cosine, const float *sine, uint16_t *pool, int threads) {
    model *m = zeros(1, sizeof *m); /* its crew is aligned to cache lines, which calloc is not */
    if (!m) return NULL;
    m->s = *s;
    m->embedding = *embedding, m->head = *head;
    m->final_norm = final_norm, m->cosine = cosine, m->sine = sine, m->pool = pool;
    m->block_elements = 2LL * s->layers * s->kv_heads * s->dim * s->block_tokens;
    const int64_t rows = s->most_rows;
    m->layers = calloc(s->layers, sizeof *layers);
    m->x = zeros(rows * s->hidden, sizeof(float));
    m->q = zeros(rows * s->heads * s->dim, sizeof(float));
    m->tiles = zeros(rows, sizeof(tile));
    m->rooms = zeros(threads, sizeof(room));
    int status = !(m->layers && m->x && m->q && m->tiles && m->rooms);
    status |= make_rows(&m->normed, s->hidden, s->most_rows);
    status |= make_rows(&m->mixed, s->heads * s->dim, s->most_rows);
    status |= make_rows(&m->active, s->intermediate, s->most_rows);
    if (!status) memcpy(m->layers, layers, s->layers * sizeof *layers);
    for (int i = 0; i < threads && !status; i++) status |= make_room(m, &m->rooms[i]);
    if (status || crew_start(&m->crew, threads, (s->layers + 1) * PHASES)) {
        m->crew.threads = m->crew.items ? m->crew.threads : threads;
        kvgate_free(m);
        return NULL;
    }
    return m;
}

/* For the thread that will call `kvgate_forward`: it is the first of the crew. */
void kvgate_bind(model *m) { bind_thread(&m->crew, 0); }

/* Cut pieces into tiles at multiples of TILE_ROWS, and few tiles into their chunks. */
static int plan(model *m, const call *c) {
    m->call = c;
    m->tile_count = m->part_count = 0;
    for (int piece = 0; piece < c->pieces; piece++)
        for (int row = c->starts[piece]; row < c->starts[piece + 1];) {
            const int position = c->positions[row], left = c->starts[piece + 1] - row;
            const int room_left = TILE_ROWS - position % TILE_ROWS, rows = left < room_left ? left : room_left;
            const int chunks = position / CHUNK + 1;
            m->tiles[m->tile_count++] = (tile){piece, row, rows, position, chunks, m->part_count};
            m->part_count += chunks;
            row += rows;
        }
    m->split = c->rows <= MOST_SPLIT_ROWS;
    if (!m->split) return 0;
    if (m->part_count > m->part_room) {
        const int room_wanted = m->part_count + 32;
        const int64_t heads = (int64_t)room_wanted * m->s.kv_heads * tile_heads(m);
        free(m->part_tile), free(m->part_chunk), free(m->part_states), free(m->part_values);
        m->part_tile = zeros(room_wanted, sizeof(int32_t));
        m->part_chunk = zeros(room_wanted, sizeof(int32_t));
        m->part_states = zeros(heads, sizeof(state));
        m->part_values = zeros(heads * m->s.dim, sizeof(float));
        m->part_room = m->part_tile && m->part_chunk && m->part_states && m->part_values ? room_wanted : 0;
        if (!m->part_room) return -1;
    }
    for (int t = 0; t < m->tile_count; t++)
        for (int chunk = 0; chunk < m->tiles[t].chunks; chunk++) {
            m->part_tile[m->tiles[t].part + chunk] = t;
            m->part_chunk[m->tiles[t].part + chunk] = chunk;
        }
    return 0;
}

/* Compute the rows of a call with so many threads. Says how many nanoseconds the first of them waited for
 * others; -1 when memory cannot be had: then nothing was computed. */
int64_t kvgate_forward(model *m, const call *c, int threads) {
    if (plan(m, c)) return -1;
    crew_run(&m->crew, forward, m, threads);
    return m->crew.waited_ns;
}
