/* The router: norm, fp32 logits, and the likeliest experts of each token. */

INLINE float dot_f32(const float *a, const float *b, int columns) {
    vf sums[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
    int k = 0;
    for (; k + 64 <= columns; k += 64)
        UNROLL for (int i = 0; i < 4; i++)
            sums[i] = vf_fma(vf_load(a + k + 16 * i), vf_load(b + k + 16 * i), sums[i]);
    float sum = vf_reduce_add(vf_add(vf_add(sums[0], sums[1]), vf_add(sums[2], sums[3])));
    for (; k < columns; k++) sum += a[k] * b[k];
    return sum;
}

/* softmax over all experts, the k likeliest (of equals the first), renormalised by (sum + 1e-6). */
static void choose_experts(const Route *call, int token) {
    const int slots = call->top_k + call->shared;
    const float *logits = call->logits + (size_t)token * (size_t)call->experts;
    float *weights = call->weights + (size_t)token * (size_t)slots;
    int64_t *ids = call->ids + (size_t)token * (size_t)slots;
    float largest = -INFINITY, total = 0.0f, chosen = 0.0f;
    for (int e = 0; e < call->experts; e++) largest = logits[e] > largest ? logits[e] : largest;
    for (int e = 0; e < call->experts; e++) total += expf(logits[e] - largest);
    for (int k = 0; k < call->top_k; k++) {
        int best = -1;
        for (int e = 0; e < call->experts; e++) {
            int taken = 0;
            for (int before = 0; before < k; before++) taken |= ids[before] == e;
            if (!taken && (best < 0 || logits[e] > logits[best])) best = e;
        }
        ids[k] = best;
        weights[k] = expf(logits[best] - largest) / total;
        chosen += weights[k];
    }
    for (int k = 0; k < call->top_k; k++) weights[k] /= chosen + 1e-6f;
    for (int s = 0; s < call->shared; s++) {
        ids[call->top_k + s] = call->experts + s;
        weights[call->top_k + s] = 1.0f;
    }
}

static void route_units(const void *job, int first, int last) {
    const Route *call = job;
    for (int t = first; t < last; t++) {
        float *normed = call->normed + (size_t)t * (size_t)call->hidden;
        rms_norm(call->x + (size_t)t * (size_t)call->hidden, call->norm, call->eps, call->hidden,
                 normed);
        for (int e = 0; e < call->experts; e++)
            call->logits[(size_t)t * (size_t)call->experts + (size_t)e] =
                dot_f32(normed, call->router + (size_t)e * (size_t)call->hidden, call->hidden);
        choose_experts(call, t);
    }
}

static int route(const Route *call) {
    pool_lock();
    pool_run(route_units, call, call->tokens, call->tokens);
    pool_unlock();
    return 0;
}
