/* The chosen and shared experts of all tokens, in two passes: gate and up to h, then down.
 *
 * Tokens are grouped by expert, so that a row block is read once for all of them. In the second
 * pass a thread owns rows of the output and adds the experts in ascending order, or keeps what each
 * slot would add apart. */

enum { DOWN_BLOCKS = 16 }; /* most row blocks of a run */

typedef struct {
    const Experts *call;
    int *start;    /* [experts + 1]: where an expert's entries begin */
    int *entry;    /* [T * S]: token * S + slot, by expert */
    int *active;   /* experts with entries */
    uint8_t *x;    /* [T] prepared */
    uint8_t *h;    /* [T * S] prepared, by entry */
    size_t x_bytes, h_bytes, gate_up_bytes;
    int actives, wide;
} ExpertWork;

INLINE int is_here(const Experts *call, int place) {
    return call->table[call->ids[place]] >= 0;
}

static void prepare_tokens(const void *job, int first, int last) {
    const ExpertWork *work = job;
    const Experts *call = work->call;
    const size_t hidden = (size_t)call->hidden;
    for (int t = first; t < last; t++) {
        prepare(call->x + (size_t)t * hidden, call->form, call->hidden, 0,
                work->x + (size_t)t * work->x_bytes);
        for (int place = t * call->slots; call->parts && place < (t + 1) * call->slots; place++)
            if (!is_here(call, place)) memset(call->parts + (size_t)place * hidden, 0, hidden * 4);
    }
}

INLINE const uint8_t *expert_block(const ExpertWork *work, int expert) {
    return work->call->blocks + (size_t)work->call->table[expert] * work->call->block_bytes;
}

/* 32 values of h for a tile of an expert's tokens: gate, up, gate, up row blocks. */
static void gate_up_tile(const ExpertWork *work, const uint8_t *data, int group, int entry,
                         int tokens, int fresh) {
    const Experts *call = work->call;
    const size_t pitch = row_block_bytes(call->form, call->hidden);
    const uint8_t *x[MOST_TOKENS];
    float h[MOST_TOKENS][GROUP];
    for (int t = 0; t < tokens; t++)
        x[t] = work->x + (size_t)(work->entry[entry + t] / call->slots) * work->x_bytes;
    for (int half = 0; half < 2; half++) {
        const int together = tokens > 1 ? TILE_BLOCKS : 1;
        vf sums[2][MOST_SUMS], tiled[MOST_SUMS];
        for (int b = 0; b < 2; b += together) {
            dot_tile(call->form, 0, tokens, together, ROWS * 2, fresh,
                     data + pitch * (size_t)(2 * half + b), pitch, call->hidden, x, tiled);
            for (int t = 0; t < tokens; t++)
                for (int i = 0; i < together; i++) sums[b + i][t] = tiled[t * together + i];
        }
        for (int t = 0; t < tokens; t++)
            vf_store(h[t] + ROWS * half, vf_swiglu(sums[0][t], sums[1][t]));
    }
    for (int t = 0; t < tokens; t++) {
        uint8_t *out = work->h + (size_t)(entry + t) * work->h_bytes;
        if (call->form == BF16) memcpy(out + (size_t)group * GROUP * 4, h[t], GROUP * 4);
        else quantise_group(h[t], call->form, 1, out + (size_t)group * sizeof(Wide));
    }
}

/* Units are groups of 32 values of h: of the first active expert, then the next. */
static void gate_up_units(const void *job, int first, int last) {
    const ExpertWork *work = job;
    const Experts *call = work->call;
    const size_t pitch = row_block_bytes(call->form, call->hidden);
    const int groups = call->width / GROUP, most = tile_tokens(call->form, 0);
    for (int unit = first; unit < last; unit++) {
        int expert = work->active[unit / groups], group = unit % groups;
        const uint8_t *data = expert_block(work, expert) + pitch * 4 * (size_t)group;
        int start = work->start[expert], end = work->start[expert + 1];
        for (int entry = start; entry < end; entry += most)
            gate_up_tile(work, data, group, entry, end - entry < most ? end - entry : most,
                         entry == start);
    }
}

/* Adds an expert's share to rows [16 * block, 16 * (block + blocks)) of a tile of its tokens. */
static void down_tile(const ExpertWork *work, const uint8_t *down, int block, int blocks, int entry,
                      int tokens, int fresh) {
    const Experts *call = work->call;
    const size_t pitch = row_block_bytes(call->form, call->width);
    const uint8_t *x[MOST_TOKENS];
    vf sums[MOST_SUMS];
    for (int t = 0; t < tokens; t++) x[t] = work->h + (size_t)(entry + t) * work->h_bytes;
    dot_tile(call->form, work->wide, tokens, blocks, ROWS * blocks, fresh,
             down + pitch * (size_t)block, pitch, call->width, x, sums);
    for (int t = 0; t < tokens; t++) {
        int place = work->entry[entry + t];
        vf weight = vf_set(call->weights[place]);
        size_t line = (size_t)(call->parts ? place : place / call->slots);
        float *out = (call->parts ? call->parts : call->out) + line * (size_t)call->hidden +
                     (size_t)(block * ROWS);
        for (int b = 0; b < blocks; b++) {
            vf before = call->parts ? vf_zero() : vf_load(out + ROWS * b);
            vf_store(out + ROWS * b, vf_fma(weight, sums[t * blocks + b], before));
        }
    }
}

/* Units are row blocks of the output. */
static void down_units(const void *job, int first, int last) {
    const ExpertWork *work = job;
    const Experts *call = work->call;
    const int most = tile_tokens(call->form, work->wide);
    const int sums = call->parts ? 0 : call->tokens; /* lines that experts are added to */
    const size_t row = (size_t)call->hidden, from = (size_t)first * ROWS;
    const size_t count = (size_t)(last - first) * ROWS;
    for (int t = 0; t < sums; t++) memset(call->out + (size_t)t * row + from, 0, count * 4);
    for (int a = 0; a < work->actives; a++) {
        int expert = work->active[a], end = work->start[expert + 1];
        const uint8_t *down = expert_block(work, expert) + work->gate_up_bytes;
        for (int entry = work->start[expert]; entry < end; entry += most) {
            int tokens = end - entry < most ? end - entry : most;
            for (int block = first, some; block < last; block += some) {
                some = tokens > 1 && last - block >= TILE_BLOCKS ? TILE_BLOCKS : 1;
                down_tile(work, down, block, some, entry, tokens, entry == work->start[expert]);
            }
        }
    }
    for (int t = 0; t < sums; t++)
        for (size_t i = (size_t)t * row + from; i < (size_t)t * row + from + count; i++)
            call->out[i] += call->residual[i];
}

/* Entries by expert, in the order of tokens, without those of experts that are not here; -1 for an
 * id that is no expert's. */
static int group_by_expert(ExpertWork *work) {
    const Experts *call = work->call;
    int entries = call->tokens * call->slots, *start = work->start;
    memset(start, 0, sizeof(int) * (size_t)(call->experts + 1));
    for (int i = 0; i < entries; i++) {
        int64_t id = call->ids[i];
        if (id < 0 || id >= call->experts) return -1;
        start[id + 1] += is_here(call, i);
    }
    for (int e = 0; e < call->experts; e++) {
        if (start[e + 1]) work->active[work->actives++] = e;
        start[e + 1] += start[e];
    }
    for (int i = 0; i < entries; i++)
        if (is_here(call, i)) work->entry[start[call->ids[i]]++] = i;
    for (int e = call->experts; e > 0; e--) start[e] = start[e - 1];
    start[0] = 0;
    return 0;
}

static int experts(const Experts *call) {
    ExpertWork work = {.call = call, .wide = call->form != BF16};
    size_t tokens = (size_t)call->tokens, entries = tokens * (size_t)call->slots;
    work.x_bytes = activation_bytes(call->form, call->hidden, 0);
    work.h_bytes = activation_bytes(call->form, call->width, 1);
    work.gate_up_bytes =
        row_block_bytes(call->form, call->hidden) * (size_t)(2 * call->width / ROWS);
    int failed = 1;
    pool_lock();
    work.x = scratch(0, tokens * work.x_bytes);
    work.h = scratch(1, entries * work.h_bytes);
    work.start = scratch(2, sizeof(int) * (2 * (size_t)call->experts + 1 + entries));
    if (work.x && work.h && work.start) {
        work.active = work.start + call->experts + 1;
        work.entry = work.active + call->experts;
        failed = group_by_expert(&work);
    }
    if (!failed) {
        pool_run(prepare_tokens, &work, call->tokens, call->tokens);
        pool_run(gate_up_units, &work, work.actives * (call->width / GROUP), call->width / GROUP);
        pool_run(down_units, &work, call->hidden / ROWS, DOWN_BLOCKS);
    }
    pool_unlock();
    return failed;
}
