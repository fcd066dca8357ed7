/* The table of the kernels for training. */

static const cs_train_kernels train_table = {
    .gemm = gemm,
    .norm_statistics = norm_statistics,
    .norm = norm,
    .norm_sums = norm_sums,
    .norm_dx = norm_dx,
    .activate_dx = activate_dx,
    .prelu_dx = prelu_dx,
    .prelu_slopes = prelu_slopes,
    .scale_dx = scale_dx,
    .multiply_dx = multiply_dx,
    .sum = sum,
    .max_pool_dx = max_pool_dx,
    .avg_pool_dx = avg_pool_dx,
    .global_max_dx = global_max_dx,
    .fill = fill,
    .dropout = dropout,
    .softmax_dx = softmax_dx,
    .cross_entropy = cross_entropy,
};
