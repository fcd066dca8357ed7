/* Activations: bounds, which the kernels apply as they store, and curves, over what was stored. */

#define CS_EACH(expression)                                                                        \
    for (int64_t i = 0; i < n; i++) {                                                              \
        const vf v = v_load(x + i * x_px);                                                         \
        v_store(y + i * y_px, expression);                                                         \
    }                                                                                              \
    break

/* n vectors, x_px and y_px floats apart; x and y may be the same */
static void activate(const cs_activation *f, int64_t n, const float *x, int64_t x_px, float *y,
                     int64_t y_px) {
    const vf a = v_set(f->a), b = v_set(f->b), zero = {0}, one = v_set(1.0f);
    const vf low = v_set(f->low), high = v_set(f->high);
    switch (f->curve) {
    case CS_LEAKY_RELU:
        CS_EACH(v_select(v > zero, v, a * v));
    case CS_ELU:
        CS_EACH(v_select(v > zero, v, a * v_expm1(v)));
    case CS_SIGMOID:
        CS_EACH(v_sigmoid(v));
    case CS_HARD_SIGMOID:
        CS_EACH(v_clip(a * v + b, zero, one));
    case CS_HARD_SWISH:
        CS_EACH(v * v_clip(v_set(1.0f / 6) * v + v_set(0.5f), zero, one));
    case CS_SILU:
        CS_EACH(v * v_sigmoid(v));
    case CS_GELU:
        CS_EACH(v_gelu(v));
    case CS_GELU_TANH:
        CS_EACH(v_gelu_tanh(v));
    case CS_TANH:
        CS_EACH(v_tanh(v));
    case CS_EXP:
        CS_EACH(v_exp(v));
    default:
        CS_EACH(v_clip(v, low, high));
    }
}

/* The second pass over n pixels of a block that were stored within the bounds. */
CS_INLINE void follow_curve(const cs_activation *f, int64_t n, float *y, int64_t y_px) {
    if (f->curve)
        activate(f, n, y, y_px, y, y_px);
}
