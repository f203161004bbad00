// The parts of CUDA that kernels.cu needs, for a C++ compiler. A grid is two loops, so threads must be independent.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#define LLINK_CUDA_ON_CPU
#define __device__
#define __global__
#define __forceinline__ inline

struct Index { unsigned x; };
static thread_local Index blockIdx, blockDim, threadIdx;

struct __nv_bfloat16 { uint16_t bits; };

static inline float __bfloat162float(__nv_bfloat16 x) {
    const uint32_t wide = (uint32_t)x.bits << 16;
    float out;
    std::memcpy(&out, &wide, 4);
    return out;
}

// Rounds to the nearest value, with ties to even. The tests pass no NaN.
static inline __nv_bfloat16 __float2bfloat16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    bits += 0x7fffu + ((bits >> 16) & 1u);
    return {(uint16_t)(bits >> 16)};
}

template <typename Kernel, typename... Args>
static void launch(uint64_t count, unsigned block, Kernel kernel, Args... args) {
    blockDim.x = block;
    for (blockIdx.x = 0; (uint64_t)blockIdx.x * block < count; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < block; ++threadIdx.x) kernel(args...);
}
