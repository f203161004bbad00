// Kernels that candle lacks. Each thread computes one number, so tests/it/kernels.rs can run them on the CPU with
// cuda_on_cpu.hpp in place of CUDA's headers.
#ifndef LLINK_CUDA_ON_CPU
#include <cuda_bf16.h>
#include <cstdint>
#endif

static __device__ __forceinline__ float widen(float x) { return x; }
static __device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
static __device__ __forceinline__ void narrow(float x, float *out) { *out = x; }
static __device__ __forceinline__ void narrow(float x, __nv_bfloat16 *out) { *out = __float2bfloat16(x); }

// Dropout as worker/src/numerics/dropout.rs defines it: a function of the row's key and salt and of the column.
static __device__ __forceinline__ float mask_factor(uint32_t column, uint32_t key, uint32_t salt, uint32_t threshold, float scale) {
    uint32_t x = (column * 0x9e3779b9u) ^ key;
    x = ((x ^ (x >> 16)) * 0x7feb352du) ^ salt;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    x ^= x >> 16;
    return x < threshold ? 0.0f : scale;
}

// out[row, column] = x[row, column] * mask; keys holds key and salt of each row.
template <typename T>
static __device__ void mask_rows(const T *x, T *out, const uint32_t *keys, uint64_t count, uint32_t width, uint32_t threshold, float scale) {
    const uint64_t at = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= count) return;
    const uint64_t row = at / width;
    const float factor = mask_factor((uint32_t)(at % width), keys[2 * row], keys[2 * row + 1], threshold, scale);
    narrow(widen(x[at]) * factor, &out[at]);
}

extern "C" __global__ void mask_rows_f32(const float *x, float *out, const uint32_t *keys, uint64_t count, uint32_t width,
                                         uint32_t threshold, float scale) {
    mask_rows(x, out, keys, count, width, threshold, scale);
}

extern "C" __global__ void mask_rows_bf16(const __nv_bfloat16 *x, __nv_bfloat16 *out, const uint32_t *keys, uint64_t count,
                                          uint32_t width, uint32_t threshold, float scale) {
    mask_rows(x, out, keys, count, width, threshold, scale);
}

// AdamW as worker/src/train/optimizer.rs defines it. state holds `count` parameters, then as many first and second moments.
extern "C" __global__ void adamw(float *state, const float *gradient, uint64_t count, float gradient_scale, float decay, float keep1,
                                 float keep2, float beta2, float inverse_root, float step_size, float epsilon) {
    const uint64_t at = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= count) return;
    const float g = gradient[at] * gradient_scale;
    const float first = state[count + at] + (g - state[count + at]) * keep1;
    const float second = state[2 * count + at] * beta2 + g * g * keep2;
    const float deviation = sqrtf(second) * inverse_root + epsilon;
    state[count + at] = first;
    state[2 * count + at] = second;
    state[at] = state[at] * decay - step_size * (first / deviation);
}
