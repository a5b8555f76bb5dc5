/* Dense layers: activations are prepared once, then row blocks are shared out. */

enum { FORMS = 3 };
enum { LINEAR_BLOCKS = 16 }; /* most row blocks of a run: what a second-level cache holds */

typedef struct {
    const Linear *call;
    uint8_t *x[FORMS]; /* [T] prepared for weights of each form */
    size_t x_bytes[FORMS];
    float *normed;
    int columns_out;
} LinearWork;

INLINE int which_activations(Form form) { return form == BF16 ? 0 : form == INT8 ? 1 : 2; }

static void prepare_linear(const void *job, int first, int last) {
    const LinearWork *work = job;
    const Linear *call = work->call;
    for (int t = first; t < last; t++) {
        const float *x = call->x + (size_t)t * (size_t)call->columns;
        if (call->norm) {
            float *normed = work->normed + (size_t)t * (size_t)call->columns;
            rms_norm(x, call->norm, call->eps, call->columns, normed);
            x = normed;
        }
        int done[FORMS] = {0};
        for (int m = 0; m < call->count; m++) {
            Form form = call->matrices[m].form;
            int which = which_activations(form);
            if (done[which]++) continue;
            prepare(x, form, call->columns, 0, work->x[which] + (size_t)t * work->x_bytes[which]);
        }
    }
}

/* Rows of a matrix, whose first one is `base` of all, times a tile of tokens. */
static void linear_tile(const LinearWork *work, const Matrix *matrix, int base, int block,
                        int blocks, int token, int tokens) {
    const Linear *call = work->call;
    const size_t pitch = row_block_bytes(matrix->form, call->columns);
    const int which = which_activations(matrix->form), row = block * ROWS;
    const uint8_t *x[MOST_TOKENS];
    vf sums[MOST_SUMS];
    for (int t = 0; t < tokens; t++)
        x[t] = work->x[which] + (size_t)(token + t) * work->x_bytes[which];
    dot_tile(matrix->form, 0, tokens, blocks, matrix->rows - row, token == 0,
             matrix->data + pitch * (size_t)block, pitch, call->columns, x, sums);
    for (int t = 0; t < tokens; t++) {
        size_t start = (size_t)(token + t) * (size_t)work->columns_out + (size_t)(base + row);
        float lanes[ROWS * 2];
        int rows = matrix->rows - row < ROWS * blocks ? matrix->rows - row : ROWS * blocks;
        for (int b = 0; b < blocks; b++) vf_store(lanes + ROWS * b, sums[t * blocks + b]);
        if (matrix->bias)
            for (int r = 0; r < rows; r++) lanes[r] += matrix->bias[row + r];
        if (call->residual)
            for (int r = 0; r < rows; r++) lanes[r] += call->residual[start + (size_t)r];
        memcpy(call->out + start, lanes, sizeof(float) * (size_t)rows);
    }
}

/* Units are row blocks of all matrices, one after the other. */
static void linear_units(const void *job, int first, int last) {
    const LinearWork *work = job;
    const Linear *call = work->call;
    int unit = 0, base = 0;
    for (int m = 0; m < call->count; m++) {
        const Matrix *matrix = &call->matrices[m];
        int blocks = (matrix->rows + ROWS - 1) / ROWS;
        int from = first - unit, to = last - unit;
        from = from < 0 ? 0 : from;
        to = to > blocks ? blocks : to;
        int most = tile_tokens(matrix->form, 0);
        for (int token = 0; from < to && token < call->tokens; token += most) {
            int tokens = call->tokens - token < most ? call->tokens - token : most;
            for (int block = from, some; block < to; block += some) {
                some = tokens > 1 && to - block >= TILE_BLOCKS ? TILE_BLOCKS : 1;
                linear_tile(work, matrix, base, block, some, token, tokens);
            }
        }
        unit += blocks;
        base += matrix->rows;
    }
}

static int linear(const Linear *call) {
    LinearWork work = {.call = call};
    size_t tokens = (size_t)call->tokens;
    int units = 0, failed = 1;
    for (int m = 0; m < call->count; m++) {
        Form form = call->matrices[m].form;
        work.x_bytes[which_activations(form)] = activation_bytes(form, call->columns, 0);
        work.columns_out += call->matrices[m].rows;
        units += (call->matrices[m].rows + ROWS - 1) / ROWS;
    }
    pool_lock();
    work.normed = scratch(0, tokens * (size_t)call->columns * 4);
    int enough = work.normed != NULL;
    for (int i = 0; i < FORMS; i++) {
        work.x[i] = scratch(1 + i, tokens * work.x_bytes[i] + 64);
        enough &= work.x[i] != NULL;
    }
    if (enough) {
        pool_run(prepare_linear, &work, call->tokens, call->tokens);
        pool_run(linear_units, &work, units, LINEAR_BLOCKS);
        failed = 0;
    }
    pool_unlock();
    return failed;
}
