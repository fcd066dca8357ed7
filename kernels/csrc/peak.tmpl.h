/* The densest multiply-add loop: 12 independent chains in registers, enough to hide the latency. */

static double peak(int64_t rounds, float *sink) {
    const vf a = v_set(sink[0]), b = v_set(sink[1]);
    vf acc[12];
    for (int i = 0; i < 12; i++)
        acc[i] = v_set(sink[2] + (float)i);
    for (int64_t r = 0; r < rounds; r++) {
CS_UNROLL(12)
        for (int i = 0; i < 12; i++)
            acc[i] = acc[i] * a + b;
    }
    for (int i = 1; i < 12; i++)
        acc[0] += acc[i];
    v_store(sink, acc[0]);
    return 2.0 * 12 * CS_VL * (double)rounds;
}
